//! The program that sees what redirected connections dialled stands in the way of every getsockopt:
//! it comes only when a proxy listens, and no call tells that it is there.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    process::{Command, Output, Stdio},
};

use guardrail_graph::{observe::FlowCounts, peer::Protocol::Tcp};

use self::kernel::{
    Agent, Half, Key, LEFT, LEFT_V6, Pair, RIGHT, RIGHT_V6, SocketPod, at, client, mapped, server, until,
};

const PROGRAM: &str = "original_dst";
/// `SO_ORIGINAL_DST`, and `TCP_ZEROCOPY_RECEIVE` (`include/uapi/linux/tcp.h`).
const ORIGINAL_DST: i32 = 80;
const ZEROCOPY_RECEIVE: i32 = 35;
/// An option that no socket has.
const NO_OPTION: i32 = 9_999;

/// What a call gave: its error, the length, and the bytes.
type Given = (Option<i32>, u32, Vec<u8>);

/// getsockopt(2) with this much room, which is full of something.
fn get(socket: &impl AsFd, level: i32, option: i32, room: usize) -> Given {
    let mut bytes = vec![0xaa_u8; room];
    if option == ZEROCOPY_RECEIVE {
        bytes.fill(0);
    }
    let mut length = room as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes no more than `length` bytes.
    let result = unsafe { libc::getsockopt(fd, level, option, bytes.as_mut_ptr().cast(), &raw mut length) };
    let error = (result != 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or_default());
    (error, length, bytes)
}

/// A stream socket of AF_UNIX that is connected to another one of the same pod.
fn unix(pod: &SocketPod) -> (OwnedFd, OwnedFd) {
    let new = || pod.socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).expect("a socket");
    let (listener, client) = (new(), new());
    // SAFETY: all zero is a valid value; with the length below the kernel chooses a name.
    let mut name: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    name.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let mut length = size_of::<libc::sa_family_t>() as libc::socklen_t;
    // SAFETY: the name is as long as said, and has room for what the kernel chose.
    unsafe {
        assert_eq!(libc::bind(listener.as_raw_fd(), (&raw const name).cast(), length), 0);
        assert_eq!(libc::listen(listener.as_raw_fd(), 1), 0);
        length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        assert_eq!(libc::getsockname(listener.as_raw_fd(), (&raw mut name).cast(), &raw mut length), 0);
        assert_eq!(libc::connect(client.as_raw_fd(), (&raw const name).cast(), length), 0);
    }
    (listener, client)
}

#[test]
fn every_getsockopt_gives_the_same_with_and_without_the_program_and_it_comes_with_the_first_proxy() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 8080));
    let mut client = web.connect(at(RIGHT, 8080)).expect("connected");
    let (server, _) = listener.accept().expect("accepted");
    client.write_all(b"unread").expect("written");
    assert!(until(|| get(&server, libc::IPPROTO_TCP, libc::TCP_INFO, 4).0.is_none()));
    let (unix_listener, unix) = unix(&db);
    let udp = db.udp_at(at(RIGHT, 5353));
    let all = || -> Vec<(&str, Given)> {
        let info = |room| get(&server, libc::IPPROTO_TCP, libc::TCP_INFO, room);
        // Times and counters are in it.
        let shape = |(error, length, bytes): Given| (error, length, vec![bytes.len() as u8]);
        let no_room = || {
            // SAFETY: null pointers are what the kernel must refuse.
            let result = unsafe {
                libc::getsockopt(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, std::ptr::null_mut(), &mut 4)
            };
            ((result != 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or_default()), 0, Vec::new())
        };
        vec![
            ("SO_ERROR", get(&server, libc::SOL_SOCKET, libc::SO_ERROR, 4)),
            ("SO_ERROR with little room", get(&server, libc::SOL_SOCKET, libc::SO_ERROR, 1)),
            ("SO_ERROR without room", get(&server, libc::SOL_SOCKET, libc::SO_ERROR, 0)),
            ("SO_ERROR to nowhere", no_room()),
            ("SO_SNDBUF with 8 KiB", get(&server, libc::SOL_SOCKET, libc::SO_SNDBUF, 8192)),
            ("TCP_INFO", shape(info(104))),
            ("TCP_INFO with little room", shape(info(8))),
            ("TCP_INFO with 8 KiB", shape(info(8192))),
            ("TCP_CONGESTION", get(&server, libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16)),
            ("TCP_ZEROCOPY_RECEIVE", get(&server, libc::IPPROTO_TCP, ZEROCOPY_RECEIVE, 40)),
            ("no such option", get(&server, libc::IPPROTO_TCP, NO_OPTION, 64)),
            ("no such option with 8 KiB", get(&server, libc::SOL_SOCKET, NO_OPTION, 8192)),
            ("IP options", get(&server, libc::IPPROTO_IP, libc::IP_TTL, 4)),
            ("SO_ORIGINAL_DST untranslated", get(&server, libc::IPPROTO_IP, ORIGINAL_DST, 16)),
            ("SO_ORIGINAL_DST of IPv6", get(&server, libc::IPPROTO_IPV6, ORIGINAL_DST, 28)),
            ("SO_ORIGINAL_DST of UDP", get(&udp, libc::IPPROTO_IP, ORIGINAL_DST, 16)),
            ("SO_TYPE of UDP", get(&udp, libc::SOL_SOCKET, libc::SO_TYPE, 4)),
            ("SO_PEERCRED", get(&unix, libc::SOL_SOCKET, libc::SO_PEERCRED, 12)),
            ("SO_PEERCRED with little room", get(&unix, libc::SOL_SOCKET, libc::SO_PEERCRED, 3)),
            ("SO_PEERCRED of a listener", get(&unix_listener, libc::SOL_SOCKET, libc::SO_PEERCRED, 12)),
            ("SO_ORIGINAL_DST of AF_UNIX", get(&unix, libc::IPPROTO_IP, ORIGINAL_DST, 16)),
        ]
    };
    let before = all();
    let agent = Agent::start(&lab);
    let is_there = || agent.kernel.stats().programs.contains_key(PROGRAM);
    let sweeps = agent.kernel.stats().sweeps;
    assert!(until(|| agent.kernel.stats().sweeps > sweeps + 2));
    assert!(!is_there(), "nobody redirects");
    let _proxy = db.listen(at("0.0.0.0", 15006));
    assert!(until(is_there), "a proxy may listen");
    for ((what, without), (_, with)) in before.into_iter().zip(all()) {
        assert_eq!(without, with, "{what}");
    }
    agent.stop();
}

#[test]
fn where_redirects_are_off_no_proxy_brings_the_program_and_where_a_proxy_listened_before_it_is_there_at_once() {
    let Some(lab) = Pair::new() else { return };
    let db = lab.pod("db", Half::Right);
    let _proxy = db.listen(at("0.0.0.0", 15001));
    for redirects in [false, true] {
        let agent = Agent::with(&lab, |config| config.redirects = redirects);
        assert!(until(|| agent.kernel.stats().sweeps > 2));
        assert_eq!(agent.kernel.stats().programs.contains_key(PROGRAM), redirects);
        agent.stop();
    }
}

/// Runs a program of iptables in a pod's cgroup and network namespace.
fn iptables(lab: &Pair, pod: &SocketPod, program: &str, args: &[&str], input: &str) -> Output {
    let mut command = Command::new("sh");
    // The shell joins the cgroup and becomes the program.
    command.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#]).arg(&pod.path).arg(program).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    lab.netns(Half::Right).run(|| {
        let mut child = command.spawn().expect("a shell");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads its input");
        child.wait_with_output().expect("it ends")
    })
}

/// As [`iptables`], which must succeed.
#[track_caller]
fn iptables_done(lab: &Pair, pod: &SocketPod, program: &str, args: &[&str], input: &str) -> String {
    let output = iptables(lab, pod, program, args, input);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn iptables_reads_and_writes_a_hundred_rules_as_before_when_the_program_is_there() {
    let Some(lab) = Pair::new() else { return };
    let (node, db) = (lab.pod("node", Half::Right), lab.pod("db", Half::Right));
    // More than a page, which is all that such a program is given.
    let rules: String = (1..=100).map(|port| format!("-A OUTPUT -p tcp --dport {port} -j RETURN\n")).collect();
    let rules = format!("*nat\n{rules}COMMIT\n");
    let all = || {
        let read = |program: &str, args: &[&str]| -> Vec<String> {
            let text = iptables_done(&lab, &node, program, args, "");
            // Comments tell the time, brackets count packets.
            text.lines().filter(|line| !line.starts_with(['#', ':'])).map(str::to_owned).collect()
        };
        iptables_done(&lab, &node, "iptables-legacy-restore", &[], &rules);
        // One that fails.
        let unknown = iptables(&lab, &node, "iptables-legacy", &["-t", "nat", "-S", "NOBODY"], "");
        (
            read("iptables-legacy-save", &[]),
            read("iptables-legacy", &["-t", "nat", "-S"]),
            (unknown.status.code(), String::from_utf8_lossy(&unknown.stderr).into_owned()),
        )
    };
    let before = all();
    assert_eq!((before.0.len(), before.1.len(), before.2.0), (102, 104, Some(1)), "{before:?}");
    let agent = Agent::start(&lab);
    let _proxy = db.listen(at("0.0.0.0", 15006));
    assert!(until(|| agent.kernel.stats().programs.contains_key(PROGRAM)), "a proxy may listen");
    assert_eq!(all(), before);
    agent.stop();
}

/// Connects to where a proxy takes it, has the proxy ask so many times what was dialled, and talks.
fn redirected(web: &SocketPod, to: SocketAddr, proxy: &TcpListener, questions: usize) {
    let mut client = web.connect(to).expect("connected");
    let (mut taken, _): (TcpStream, SocketAddr) = proxy.accept().expect("accepted");
    for _ in 0..questions {
        let (level, room) =
            if to.ip().to_canonical().is_ipv4() { (libc::IPPROTO_IP, 16) } else { (libc::IPPROTO_IPV6, 28) };
        let (error, _, answer) = get(&taken, level, ORIGINAL_DST, room);
        assert_eq!((error, u16::from_be_bytes([answer[2], answer[3]])), (None, to.port()));
    }
    client.write_all(b"question").expect("asked");
    client.shutdown(Shutdown::Write).expect("shut down");
    let mut question = Vec::new();
    taken.read_to_end(&mut question).expect("read");
    taken.write_all(b"answer").expect("answered");
    drop(taken);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).expect("read");
    assert_eq!((&question[..], &answer[..]), (&b"question"[..], &b"answer"[..]));
}

#[test]
fn what_a_redirected_connection_dialled_is_told_once_with_the_proxys_port_and_its_end_belongs_there() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
        let rules = "*nat\n-A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 15006\nCOMMIT\n";
        iptables_done(&lab, &db, program, &[], rules);
    }
    let agent = Agent::start(&lab);
    let proxy = db.listen(at("::", 15006));
    assert!(until(|| agent.kernel.stats().programs.contains_key(PROGRAM)), "a proxy may listen");
    // However often it asks, and of sockets of both kinds; one that it does not ask about; and one
    // that dialled the proxy's own port.
    redirected(&web, at(RIGHT, 8080), &proxy, 1);
    redirected(&web, mapped(RIGHT, 8080), &proxy, 3);
    redirected(&web, at(RIGHT_V6, 8080), &proxy, 2);
    redirected(&web, at(RIGHT, 8080), &proxy, 0);
    redirected(&web, at(RIGHT, 15006), &proxy, 1);
    let counts = |opened, sent, received| FlowCounts {
        opened,
        closed: opened,
        bytes_sent: sent,
        bytes_received: received,
        ..FlowCounts::default()
    };
    let told = |key: Key| Key { local_port: Some(15006), ..key };
    agent.finish(&[
        (client(&web, Tcp, LEFT, RIGHT, 8080), counts(3, 24, 18)),
        (client(&web, Tcp, LEFT_V6, RIGHT_V6, 8080), counts(1, 8, 6)),
        (client(&web, Tcp, LEFT, RIGHT, 15006), counts(1, 8, 6)),
        // At the proxy's port all are counted, with the bytes of those alone that were not told of.
        (server(&db, Tcp, RIGHT, LEFT, 15006), counts(4, 6, 8)),
        (server(&db, Tcp, RIGHT_V6, LEFT_V6, 15006), counts(1, 0, 0)),
        (told(server(&db, Tcp, RIGHT, LEFT, 8080)), counts(2, 12, 16)),
        (told(server(&db, Tcp, RIGHT_V6, LEFT_V6, 8080)), counts(1, 6, 8)),
        (told(server(&db, Tcp, RIGHT, LEFT, 15006)), counts(1, 6, 8)),
    ]);
}
