//! What happens at the bounds: a ring far too small, a map far too small, a cgroup over its budget.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs::File,
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd as _, RawFd},
    path::PathBuf,
    time::Duration,
};

use guardrail_graph::{
    observe::{FlowCounts, LossReason, Observation, Remote},
    peer::Protocol::{Tcp, Udp},
};

use self::kernel::{Agent, Forked, Half, Key, LEFT, Pair, RIGHT, SocketPod, at, cgroup_of, client, server, until};

/// An hour: what is observed is what the end finds.
const NEVER: Duration = Duration::from_secs(3600);

/// One of 65,536 addresses where nobody answers.
fn nobody(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 98, high, low)
}

#[test]
fn a_ring_of_one_page_and_20_000_new_keys_lose_no_flow_only_hints_and_count_those() {
    const KEYS: u16 = 20_000;
    let Some(lab) = Pair::new() else { return };
    let web = lab.pod("web", Half::Left);
    let mut agent = Agent::held(&lab, |config| {
        config.ring_bytes = 4096;
        config.flow_entries = 65_536;
        config.new_keys_per_cgroup = 65_536;
        // While nobody receives, the reader waits with two batches in hand: the ring must run over.
        config.channel_batches = 1;
    });
    let socket = web.udp(at("10.98.0.0", 0));
    for number in 0..KEYS {
        let to = SocketAddr::new(nobody(number).into(), 1000 + number % 7);
        socket.send_to(&[0; 8], to).expect("sent");
    }
    agent.receive();
    agent.wait("every key", |seen| seen.flows().len() == usize::from(KEYS));
    let (seen, stats) = agent.stop();
    let expected: BTreeMap<Key, FlowCounts> = (0..KEYS)
        .map(|number| {
            let key = client(&web, Udp, LEFT, &nobody(number).to_string(), 1000 + number % 7);
            (key, FlowCounts { opened: 1, bytes_sent: 8, ..FlowCounts::default() })
        })
        .collect();
    assert!(seen.flows() == expected, "the flows are these and no others");
    let hints_lost = stats.losses[&LossReason::RingFull];
    assert!(hints_lost > 0, "the ring ran over");
    assert_eq!(
        hints_lost + stats.events["flow_hint"],
        u64::from(KEYS),
        "each new key is a hint, read or counted as lost"
    );
    assert_eq!(seen.losses(), BTreeMap::from([((LossReason::RingFull, None), hints_lost)]), "nothing else is lost");
    assert_eq!(stats.losses.values().sum::<u64>(), hints_lost);
}

#[test]
fn a_map_of_256_entries_names_the_cgroups_whose_remotes_it_could_not_keep() {
    let Some(lab) = Pair::new() else { return };
    let (early, many, late) = (lab.pod("early", Half::Left), lab.pod("many", Half::Left), lab.pod("late", Half::Left));
    let agent = Agent::with(&lab, |config| {
        config.flow_entries = 256;
        config.sweep_interval = NEVER;
    });
    let send = |pod: &SocketPod, to: Ipv4Addr, port: u16| {
        let socket = pod.udp(at("10.98.0.0", 0));
        socket.send_to(&[0; 4], SocketAddr::new(to.into(), port)).expect("sent");
    };
    send(&early, nobody(0), 900);
    // Ninety per cent are 230 entries; then one coarse key for all.
    for number in 0..400 {
        send(&many, nobody(number), 901);
    }
    // A coarse key for each port, while there is room (256 entries), then none.
    for port in 0..60 {
        send(&late, nobody(0), 1000 + port);
    }
    let (seen, stats) = agent.stop();
    let flows = seen.flows();
    let once = FlowCounts { opened: 1, bytes_sent: 4, ..FlowCounts::default() };
    assert_eq!(flows[&client(&early, Udp, LEFT, "10.98.0.0", 900)], once);
    let of = |pod: &SocketPod, coarse: bool| -> Vec<u64> {
        flows
            .iter()
            .filter(|(key, _)| key.cgroup == cgroup_of(pod) && (key.remote == Remote::Many) == coarse)
            .map(|(_, counts)| counts.opened)
            .collect()
    };
    assert_eq!(of(&many, false), vec![1; 229]);
    assert_eq!(of(&many, true), [400 - 229], "what has no entry of its own is in the coarse one");
    assert_eq!(of(&late, false), [0; 0]);
    assert_eq!(of(&late, true), vec![1; 256 - 231]);
    assert_eq!(
        seen.losses(),
        BTreeMap::from([
            ((LossReason::CoarseClient, Some(cgroup_of(&many))), 400 - 229),
            ((LossReason::CoarseClient, Some(cgroup_of(&late))), 256 - 231),
            ((LossReason::MapFull, Some(cgroup_of(&late))), 60 - (256 - 231)),
        ])
    );
    assert_eq!(stats.map_capacity, 256);
}

#[test]
fn a_full_map_is_room_again_after_two_sweeps_without_traffic() {
    let Some(lab) = Pair::new() else { return };
    let web = lab.pod("web", Half::Left);
    let agent = Agent::with(&lab, |config| config.flow_entries = 256);
    let socket = web.udp(at("10.98.0.0", 0));
    for number in 0..300 {
        socket.send_to(&[0; 4], SocketAddr::new(nobody(number).into(), 950)).expect("sent");
    }
    // Entries go until the map is half empty.
    assert!(until(|| agent.kernel.stats().map_entries <= 128 && agent.kernel.stats().sweeps > 1));
    socket.send_to(&[0; 4], at("10.98.200.1", 951)).expect("sent");
    let key = client(&web, Udp, LEFT, "10.98.200.1", 951);
    agent.wait("the new remote by its address", |seen| seen.flows().contains_key(&key));
    let (seen, _) = agent.stop();
    let opened: u64 = seen.flows().values().map(|counts| counts.opened).sum();
    assert_eq!(opened, 301, "what went out of the map was reported before");
}

#[test]
fn a_server_over_its_budget_keeps_all_its_clients_in_one_flow_without_loss() {
    const BUDGET: u32 = 16;
    const CLIENTS: u8 = 60;
    let (Some(lab), Some(elsewhere)) = (Pair::new(), Pair::new()) else { return };
    // The clients' cgroup is not observed: their own budgets are not at stake.
    let db = lab.pod("db", Half::Right);
    pod_of_two(&elsewhere, &lab, |clients| {
        let agent = Agent::with(&lab, |config| config.new_keys_per_cgroup = BUDGET);
        let (listener, served) = (db.listen(at(RIGHT, 9001)), db.udp_at(at(RIGHT, 9002)));
        for number in 0..CLIENTS {
            let from = SocketAddr::new(Ipv4Addr::new(10, 76, 0, number).into(), 0);
            let connection = clients.connect_from(Some(from), at(RIGHT, 9001)).expect("connected");
            drop((listener.accept().expect("accepted"), connection));
        }
        for number in 0..CLIENTS {
            let socket = clients.udp_at(SocketAddr::new(Ipv4Addr::new(10, 76, 1, number).into(), 0));
            socket.send_to(&[1; 6], at(RIGHT, 9002)).expect("sent");
            let mut buffer = [0; 10];
            let (_, peer) = served.recv_from(&mut buffer).expect("received");
            served.send_to(&[2; 9], peer).expect("sent");
            socket.recv_from(&mut buffer).expect("received");
        }
        let mut expected = Vec::new();
        let (budget, clients) = (u64::from(BUDGET), u64::from(CLIENTS));
        let whole = |n| FlowCounts { opened: n, closed: n, ..FlowCounts::default() };
        let udp = |n| FlowCounts { opened: n, bytes_sent: 9 * n, bytes_received: 6 * n, ..FlowCounts::default() };
        for number in 0..BUDGET {
            expected.push((server(&db, Tcp, RIGHT, &format!("10.76.0.{number}"), 9001), whole(1)));
        }
        let many = |key: Key| Key { remote: Remote::Many, ..key };
        expected.push((many(server(&db, Tcp, RIGHT, LEFT, 9001)), whole(clients - budget)));
        expected.push((many(server(&db, Udp, RIGHT, LEFT, 9002)), udp(clients)));
        let seen = agent.finish(&expected);
        assert!(!seen.0.iter().any(|o| matches!(o, Observation::Lost { .. })));
    });
}

/// While a program runs, an interrupt on the same CPU may bring an event of the same hook, for
/// which the kernel does not run the program again.
#[test]
fn no_event_is_lost_that_finds_its_program_running() {
    const PORT: u16 = 9100;
    const CLIENTS: u64 = 4;
    const CONNECTIONS: u64 = 1_000;
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    steer_to_the_other_cpu(&lab, Half::Left, "left");
    steer_to_the_other_cpu(&lab, Half::Right, "right");
    let agent = Agent::start(&lab);
    let under_init = UnderInit::watch(PORT);
    let listener = db.listen_with(at(RIGHT, PORT), 1024, 0);
    let (mut done, report) = io::pipe().expect("a pipe");
    let accepting = Forked::fork(&db.path, None, listener.as_raw_fd(), || accept_and_close(listener.as_raw_fd()));
    let clients: Vec<Forked> = (0..CLIENTS)
        .map(|_| {
            Forked::fork(&web.path, Some(lab.netns(Half::Left)), report.as_raw_fd(), || {
                connect_and_reset(PORT, CONNECTIONS, report.as_raw_fd());
            })
        })
        .collect();
    drop((listener, report));
    let mut failed = Vec::new();
    done.read_to_end(&mut failed).expect("the clients end");
    assert_eq!(failed, vec![0; clients.len()], "every connection was made");
    const ALL: u64 = CLIENTS * CONNECTIONS;
    let ends = [client(&web, Tcp, LEFT, RIGHT, PORT), server(&db, Tcp, RIGHT, LEFT, PORT)];
    let sweeps = agent.kernel.stats().sweeps;
    assert!(until(|| agent.kernel.stats().sweeps > sweeps + 1), "the last resets are seen");
    let (seen, stats) = agent.stop();
    drop((accepting, clients));
    let flows = seen.flows();
    assert_eq!(flows.keys().collect::<Vec<_>>(), ends.iter().collect::<Vec<_>>());
    let lost = seen.losses().get(&(LossReason::Recursion, None)).copied().unwrap_or(0);
    let missed = stats.programs["tcp_state"].recursion_misses;
    let under_init = under_init.events();
    println!("missed by tcp_state: {missed}, of them lost: {lost}; not run at all: {under_init}; {flows:?}");
    let counts: Vec<u64> = flows.values().flat_map(|counts| [counts.opened, counts.closed]).collect();
    assert!(counts.iter().all(|count| *count <= ALL), "nothing counts twice: {flows:?}");
    assert!(counts.iter().map(|count| ALL - count).sum::<u64>() <= under_init, "{under_init} not run, but: {flows:?}");
    assert_eq!(lost, 0, "of {missed}");
}

/// Lets every CPU handle what the other one receives from a device (RPS): it is interrupted for
/// each packet, at any moment.
fn steer_to_the_other_cpu(lab: &Pair, side: Half, device: &str) {
    lab.netns(side).run(|| {
        mount(c"sysfs", c"/sys").expect("sysfs of this namespace");
        let path = format!("/sys/class/net/{device}/queues/rx-0/rps_cpus");
        std::fs::write(&path, "3").unwrap_or_else(|error| panic!("{path}: {error}"));
    });
}

/// Mounts a file system for the calling thread alone.
fn mount(kind: &CStr, at: &CStr) -> io::Result<()> {
    let (none, private) = (std::ptr::null::<libc::c_void>(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: strings that end in 0.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(std::ptr::null(), c"/".as_ptr(), std::ptr::null(), private, none) == 0
            && libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, none) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's own trace of TCP events that interrupt threads of process 1: on one kind of virtual
/// machine (a PVM guest) no BPF tracing program runs meanwhile, and the kernel does not count that
/// as missed.
struct UnderInit {
    /// The trace's directory, if there is one.
    directory: Option<PathBuf>,
    _mount: Option<File>,
    /// Threads of process 1 at the beginning.
    threads: BTreeSet<String>,
}

fn threads_of_init() -> BTreeSet<String> {
    let threads = std::fs::read_dir("/proc/1/task").expect("process 1");
    threads.flatten().map(|thread| thread.file_name().display().to_string()).collect()
}

impl UnderInit {
    fn watch(port: u16) -> Self {
        let mounted = std::thread::spawn(|| {
            mount(c"tracefs", c"/sys/kernel/tracing").and_then(|()| File::open("/sys/kernel/tracing"))
        });
        let Ok(mount) = mounted.join().expect("the thread that mounts") else {
            return Self { directory: None, _mount: None, threads: BTreeSet::new() };
        };
        let directory = PathBuf::from(format!(
            "/proc/self/fd/{}/instances/guardrail-test-{}",
            mount.as_raw_fd(),
            std::process::id()
        ));
        std::fs::create_dir(&directory).expect("an instance of the trace");
        let event = directory.join("events/sock/inet_sock_set_state");
        // Room for all of them: which threads are process 1's is known at the end.
        std::fs::write(directory.join("buffer_size_kb"), "16384").expect("a buffer");
        std::fs::write(event.join("filter"), format!("sport=={port}||dport=={port}")).expect("a filter");
        std::fs::write(event.join("enable"), "1").expect("enabled");
        Self { directory: Some(directory), _mount: Some(mount), threads: threads_of_init() }
    }

    /// Events since then.
    fn events(&self) -> u64 {
        let Some(directory) = &self.directory else { return 0 };
        let trace = std::fs::read_to_string(directory.join("trace")).expect("the trace");
        let threads: BTreeSet<String> = self.threads.union(&threads_of_init()).cloned().collect();
        // "task-PID   [CPU] flags time: event: …"
        let thread = |line: &str| Some(line.split_once(" [")?.0.trim_end().rsplit_once('-')?.1.to_owned());
        let of_init = |line: &&str| thread(line).is_some_and(|thread| threads.contains(&thread));
        trace.lines().filter(|line| line.contains("inet_sock_set_state:")).filter(of_init).count() as u64
    }
}

impl Drop for UnderInit {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Accepts and closes, for ever. System calls only.
fn accept_and_close(listener: RawFd) {
    loop {
        // SAFETY: descriptors of this process; no address is asked for.
        unsafe {
            let connection = libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC);
            libc::close(connection);
        }
    }
}

/// Connects `count` times, waits for the server's end each time, and resets, so that no port is
/// held. Says in one byte whether any failed. System calls only.
fn connect_and_reset(port: u16, count: u64, report: RawFd) {
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(RIGHT.parse::<Ipv4Addr>().map_or([0; 4], |a| a.octets())),
        },
        sin_zero: [0; 8],
    };
    let reset = libc::linger { l_onoff: 1, l_linger: 0 };
    let mut failed = 0u8;
    for _ in 0..count {
        // SAFETY: descriptors and structures of this process.
        unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            let (size, linger) = (size_of_val(&to) as libc::socklen_t, size_of_val(&reset) as libc::socklen_t);
            libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const reset).cast(), linger);
            let connected = libc::connect(socket, (&raw const to).cast(), size) == 0;
            let mut nothing = 0u8;
            if !connected || libc::read(socket, (&raw mut nothing).cast(), 1) != 0 {
                failed = 1;
            }
            libc::close(socket);
        }
    }
    // SAFETY: one byte of ours.
    unsafe { libc::write(report, (&raw const failed).cast(), 1) };
}

/// A pod in the cgroup of one lab and the left namespace of another.
fn pod_of_two(lab: &Pair, netns_of: &Pair, work: impl FnOnce(&SocketPod)) {
    let path = lab.cgroup().join("clients");
    std::fs::create_dir(&path).expect("made");
    work(&SocketPod::new(&path, netns_of.netns(Half::Left)));
}
