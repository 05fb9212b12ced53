//! TCP as the kernel side sees it: both roles with exact bytes, failed attempts, and whose socket
//! it was.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use guardrail_graph::{
    observe::{FlowCounts, Observation},
    peer::Protocol::Tcp,
};

use self::kernel::{
    Agent, Forked, Half, HoldCpus, LEFT, LEFT_V6, Pair, RIGHT, RIGHT_V6, SocketPod, at, cgroup_of, client, cpus,
    mapped, pin, server, set_deaf, set_option, until, wait_until,
};

/// Connects, accepts, and talks: `asked` bytes one way, `answered` the other; both ends read to the
/// end and close.
fn talk(from: &SocketPod, to: SocketAddr, listener: &TcpListener, asked: usize, answered: usize) {
    let client = from.connect(to).expect("connected");
    let (server, _) = listener.accept().expect("accepted");
    exchange(client, server, asked, answered);
}

fn exchange(mut client: TcpStream, mut server: TcpStream, asked: usize, answered: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&vec![b'q'; asked]).expect("asked");
            client.shutdown(Shutdown::Write).expect("shut down");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("read");
            assert_eq!(answer.len(), answered);
        });
        let mut question = Vec::new();
        server.read_to_end(&mut question).expect("read");
        assert_eq!(question.len(), asked);
        server.write_all(&vec![b'a'; answered]).expect("answered");
        server.shutdown(Shutdown::Write).expect("shut down");
    });
}

fn whole(opened: u64, bytes_sent: u64, bytes_received: u64) -> FlowCounts {
    FlowCounts { opened, closed: opened, bytes_sent, bytes_received, ..FlowCounts::default() }
}

#[test]
fn both_ends_of_a_connection_are_told_with_exact_bytes_over_v4_v6_and_mapped_sockets() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let agent = Agent::start(&lab);
    let v4 = db.listen(at(RIGHT, 5001));
    let v6 = db.listen(at(RIGHT_V6, 5002));
    // Both families arrive here; the third call goes from an IPv6 socket to a mapped address.
    let both = db.listen(at("::", 5003));
    talk(&web, at(RIGHT, 5001), &v4, 100, 70_000);
    talk(&web, at(RIGHT, 5001), &v4, 11, 0);
    talk(&web, at(RIGHT_V6, 5002), &v6, 0, 222);
    talk(&web, at(RIGHT, 5003), &both, 3, 33);
    talk(&web, mapped(RIGHT, 5003), &both, 4, 44);
    talk(&web, at(RIGHT_V6, 5003), &both, 5, 55);
    let seen = agent.finish(&[
        (client(&web, Tcp, LEFT, RIGHT, 5001), whole(2, 111, 70_000)),
        (server(&db, Tcp, RIGHT, LEFT, 5001), whole(2, 70_000, 111)),
        (client(&web, Tcp, LEFT_V6, RIGHT_V6, 5002), whole(1, 0, 222)),
        (server(&db, Tcp, RIGHT_V6, LEFT_V6, 5002), whole(1, 222, 0)),
        (client(&web, Tcp, LEFT, RIGHT, 5003), whole(2, 7, 77)),
        (server(&db, Tcp, RIGHT, LEFT, 5003), whole(2, 77, 7)),
        (client(&web, Tcp, LEFT_V6, RIGHT_V6, 5003), whole(1, 5, 55)),
        (server(&db, Tcp, RIGHT_V6, LEFT_V6, 5003), whole(1, 55, 5)),
    ]);
    for (key, delta) in seen.deltas() {
        assert!(delta.netns.is_some(), "{key:?}");
        assert_eq!(delta.last_open.is_some(), delta.counts.opened > 0, "{delta:?}");
    }
    for key in seen.flows().keys() {
        assert_eq!(seen.first_opens(key), 1, "{key:?}");
    }
}

#[test]
fn a_port_that_begins_and_ceases_to_listen_is_told() {
    let Some(lab) = Pair::new() else { return };
    let db = lab.pod("db", Half::Right);
    let agent = Agent::start(&lab);
    drop(db.listen(at(RIGHT, 6001)));
    drop(db.listen(at("::", 6002)));
    // Others cannot reach it.
    drop(db.listen(at("127.0.0.1", 6003)));
    drop(db.listen(at("0.0.0.0", 6004)));
    agent.wait("the end of each port", |seen| {
        seen.0.iter().filter(|o| matches!(o, Observation::Listening { listening: false, .. })).count() == 3
    });
    let (seen, _) = agent.stop();
    let mut reported: Vec<_> = seen
        .0
        .iter()
        .filter_map(|o| match o {
            Observation::Listening { cgroup, address, port, listening, .. } => {
                assert_eq!(*cgroup, cgroup_of(&db));
                Some((*port, address.to_string(), *listening))
            }
            _ => None,
        })
        .collect();
    // A process that another test forks at that instant holds a socket a moment longer: only the
    // order of one port is certain.
    reported.sort_by_key(|(port, ..)| *port);
    let expected: Vec<_> = [(6001, RIGHT), (6002, "::"), (6004, "0.0.0.0")]
        .into_iter()
        .flat_map(|(port, address)| [true, false].map(|listening| (port, address.to_owned(), listening)))
        .collect();
    assert_eq!(reported, expected);
}

/// From when before the instant at which the kernel gives up the CPUs are held, until it has.
const EARLY: Duration = Duration::from_millis(400);
/// When it has, however slow the machine is that is emulated here.
const LIMIT: Duration = Duration::from_secs(20);

fn sleep_until_nearly(then: Instant) {
    std::thread::sleep(then.saturating_duration_since(Instant::now()).saturating_sub(EARLY));
}

/// Begins a connection that nobody answers and of which the kernel sends one more SYN.
fn begin_to_connect_unanswered(from: &SocketPod) -> TcpStream {
    let socket = from.begin_to_connect(at("10.98.0.1", 7003));
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, 1);
    socket.into()
}

/// `enum` in include/net/tcp_states.h.
const TCP_CLOSE: u8 = 7;

/// The state of a connection, as `TCP_INFO` begins with it.
fn state_of(connection: &TcpStream) -> u8 {
    let (mut state, mut length) = (0_u8, 1);
    // SAFETY: the value is as long as said.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "getsockopt(2)");
    state
}

/// The number of the error that ends this connection within this time.
fn error_of(connection: &TcpStream, within: Duration) -> Option<i32> {
    // Whoever reads the error takes it away, also from a program that runs at that instant: first
    // the end, then the error.
    let ended = || (state_of(connection) == TCP_CLOSE).then_some(());
    wait_until(within, "the end of an attempt", ended).ok()?;
    connection.take_error().expect("getsockopt(2)")?.raw_os_error()
}

#[test]
fn failed_attempts_are_told_by_how_they_failed_and_are_never_opens() {
    let Some(lab) = Pair::new() else { return };
    let web = lab.pod("web", Half::Left);
    // How long the kernel tries differs between versions.
    let begun = Instant::now();
    assert_eq!(error_of(&begin_to_connect_unanswered(&web), Duration::from_secs(60)), Some(libc::ETIMEDOUT));
    let patience = begun.elapsed();
    let agent = Agent::start(&lab);
    let refused = web.connect(at(RIGHT, 7001)).expect_err("nobody listens");
    assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
    web.connect(at(RIGHT_V6, 7001)).expect_err("nobody listens");
    let unreachable = web.connect(at("10.99.0.1", 7002)).expect_err("there is no route");
    assert_eq!(unreachable.raw_os_error(), Some(libc::EHOSTUNREACH));
    let told = client(&web, Tcp, LEFT, "10.98.0.1", 7003);
    // The kernel gives up in a timer, in the time of whatever process runs there. A kernel may run
    // no programs in some process's time (process 1 of a virtual machine with a supervisor in it:
    // the tracepoint fires, no program runs): threads of this test hold the CPUs at that instant.
    let cpus = HoldCpus::wait();
    let begun = Instant::now();
    let unanswered = begin_to_connect_unanswered(&web);
    // Not for luck: no sooner may the CPUs be held, and no longer.
    sleep_until_nearly(begun + patience);
    let error = cpus.during(|| error_of(&unanswered, LIMIT));
    assert_eq!(error, Some(libc::ETIMEDOUT), "within {LIMIT:?} after {patience:?}");
    // Given up by the application.
    drop(web.begin_to_connect(at("10.98.0.2", 7004)));
    let seen = agent.finish(&[
        (client(&web, Tcp, LEFT, RIGHT, 7001), FlowCounts { refused: 1, ..FlowCounts::default() }),
        (client(&web, Tcp, LEFT_V6, RIGHT_V6, 7001), FlowCounts { refused: 1, ..FlowCounts::default() }),
        (client(&web, Tcp, LEFT, "10.99.0.1", 7002), FlowCounts { unreachable: 1, ..FlowCounts::default() }),
        (told, FlowCounts { unanswered: 1, ..FlowCounts::default() }),
        (client(&web, Tcp, LEFT, "10.98.0.2", 7004), FlowCounts { unanswered: 1, ..FlowCounts::default() }),
    ]);
    for (_, delta) in seen.deltas() {
        assert!(
            delta.first_open.is_none() && delta.last_open.is_some(),
            "a failure has a time, but opens nothing: {delta:?}"
        );
    }
}

/// Sends a byte on a connection that gives up after half a second without an answer.
fn say_something(connection: &TcpStream) {
    set_option(connection, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 500);
    (&*connection).write_all(b"?").expect("written");
}

#[test]
fn a_connection_that_nobody_answers_any_more_is_broken_and_one_that_is_reset_or_closed_is_not() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 7050));
    let connected = || {
        let connection = web.connect(at(RIGHT, 7050)).expect("connected");
        (connection, listener.accept().expect("accepted").0)
    };
    // As in the test above: how long the kernel tries, and whose time its timers take.
    let measured = connected();
    let patience = {
        set_deaf(&measured.1, true);
        let begun = Instant::now();
        say_something(&measured.0);
        assert_eq!(error_of(&measured.0, LIMIT), Some(libc::ETIMEDOUT));
        begun.elapsed()
    };
    drop(measured);
    let before = connected();
    let agent = Agent::start(&lab);
    let cut = connected();
    for end in [&before.1, &cut.1] {
        set_deaf(end, true);
    }
    let cpus = HoldCpus::wait();
    let begun = Instant::now();
    say_something(&before.0);
    say_something(&cut.0);
    sleep_until_nearly(begun + patience);
    let errors = cpus.during(|| [&before.0, &cut.0].map(|connection| error_of(connection, LIMIT)));
    assert_eq!(errors, [Some(libc::ETIMEDOUT); 2], "after {:?}", begun.elapsed());
    // The other ends say something, and hear that there is no such connection.
    for end in [&before.1, &cut.1] {
        set_deaf(end, false);
        (&*end).write_all(b"!").expect("written");
        assert_eq!(error_of(end, LIMIT), Some(libc::ECONNRESET));
    }
    talk(&web, at(RIGHT, 7050), &listener, 1, 2);
    let (asking, asked) = (client(&web, Tcp, LEFT, RIGHT, 7050), server(&db, Tcp, RIGHT, LEFT, 7050));
    let all = |broken, bytes_sent, bytes_received| FlowCounts {
        found: 1,
        opened: 2,
        closed: 3,
        broken,
        bytes_sent,
        bytes_received,
        ..FlowCounts::default()
    };
    let seen = agent.finish(&[(asking, all(2, 3, 2)), (asked, all(0, 4, 1))]);
    assert!(seen.deltas().all(|(_, delta)| delta.counts.broken <= delta.counts.closed));
}

#[test]
fn a_connection_to_the_own_address_or_to_loopback_is_no_flow() {
    let Some(lab) = Pair::new() else { return };
    let web = lab.pod("web", Half::Left);
    let agent = Agent::start(&lab);
    for address in ["127.0.0.1", "::1", LEFT, LEFT_V6] {
        let listener = web.listen(at(address, 7100));
        talk(&web, at(address, 7100), &listener, 1, 1);
    }
    // A sign that all of the above has passed.
    web.connect(at(RIGHT, 7101)).expect_err("nobody listens");
    agent.finish(&[(client(&web, Tcp, LEFT, RIGHT, 7101), FlowCounts { refused: 1, ..FlowCounts::default() })]);
}

#[test]
fn an_accepted_connection_belongs_to_its_listeners_cgroup_while_others_spin_on_every_cpu() {
    const CONNECTIONS: u64 = 200;
    let Some(lab) = Pair::new() else { return };
    let (web, db, noise) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right), lab.pod("noise", Half::Left));
    let agent = Agent::start(&lab);
    let usage = || std::fs::read_to_string(noise.path.join("cpu.stat")).expect("cpu.stat");
    let before = usage();
    let spinners: Vec<Forked> = (0..cpus())
        .map(|cpu| {
            Forked::fork(&noise.path, None, -1, || {
                pin(cpu);
                loop {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    assert!(until(|| usage() != before), "the others spin");
    let listener = db.listen(at(RIGHT, 7200));
    pin(0);
    for _ in 0..CONNECTIONS {
        talk(&web, at(RIGHT, 7200), &listener, 10, 20);
    }
    drop(spinners);
    agent.finish(&[
        (client(&web, Tcp, LEFT, RIGHT, 7200), whole(CONNECTIONS, 10 * CONNECTIONS, 20 * CONNECTIONS)),
        (server(&db, Tcp, RIGHT, LEFT, 7200), whole(CONNECTIONS, 20 * CONNECTIONS, 10 * CONNECTIONS)),
    ]);
}

#[test]
fn an_address_that_changed_owner_makes_the_next_connection_a_new_key_but_not_under_an_open_one() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    // Nothing goes for being idle.
    let agent = Agent::with(&lab, |config| {
        config.sweep_interval = Duration::from_secs(3600);
        config.idle = Duration::from_secs(36_000);
    });
    let (first, second) = (db.listen(at(RIGHT, 7300)), db.listen(at(RIGHT, 7301)));
    talk(&web, at(RIGHT, 7300), &first, 1, 2);
    let open = web.connect(at(RIGHT, 7301)).expect("connected");
    let (accepted, _) = second.accept().expect("accepted");
    let (closed, kept) = (client(&web, Tcp, LEFT, RIGHT, 7300), client(&web, Tcp, LEFT, RIGHT, 7301));
    agent.wait("both first connections", |seen| seen.first_opens(&closed) == 1 && seen.first_opens(&kept) == 1);
    // The kernel counts the end of the first connection after close() has returned.
    let evicted = || {
        agent.kernel.evict(vec![RIGHT.parse().expect("an address")]);
        agent.kernel.stats().map_entries == 3
    };
    assert!(until(evicted), "the entry without open connections goes: {:?}", agent.kernel.stats());
    talk(&web, at(RIGHT, 7300), &first, 1, 2);
    talk(&web, at(RIGHT, 7301), &second, 1, 2);
    exchange(open, accepted, 3, 4);
    agent.wait("the first key begins anew", |seen| seen.first_opens(&closed) == 2);
    let (seen, _) = agent.stop();
    assert_eq!((seen.first_opens(&closed), seen.first_opens(&kept)), (2, 1));
    let flows = seen.flows();
    assert_eq!((flows[&closed], flows[&kept]), (whole(2, 2, 4), whole(2, 4, 6)));
    // The times do not overlap.
    let opens: Vec<_> = seen.deltas().filter(|(key, _)| *key == closed).filter_map(|(_, d)| d.first_open).collect();
    assert!(opens[0] < opens[1], "{opens:?}");
}
