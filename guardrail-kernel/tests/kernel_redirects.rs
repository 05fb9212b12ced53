//! The program that sees what redirected connections dialled stands in the way of every getsockopt:
//! it comes only when a proxy listens, and no call tells that it is there.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    io::{self, Write as _},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use self::kernel::{Agent, Half, Pair, RIGHT, SocketPod, at, until};

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
