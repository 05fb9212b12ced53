//! Sockets that were open before the agent: found at the start with their role, and their end is
//! not a second find.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
};

use guardrail_graph::{
    observe::{CgroupId, FlowCounts, Observation, Role},
    peer::Protocol::{Tcp, Udp},
};

use self::kernel::{
    Agent, Half, Key, LEFT, LEFT_V6, Pair, RIGHT, RIGHT_V6, SocketPod, at, cgroup_of, client, connect, is_linux_before,
    mapped, server, set_option,
};

/// A connection, both ends.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(from: &SocketPod, to: SocketAddr, listener: &TcpListener) -> Self {
        let client = from.connect(to).expect("connected");
        Self { client, server: listener.accept().expect("accepted").0 }
    }

    /// `asked` bytes one way, `answered` the other.
    fn talk(&mut self, asked: usize, answered: usize) {
        let exchange = |from: &mut TcpStream, to: &mut TcpStream, size: usize| {
            from.write_all(&vec![1; size]).expect("written");
            to.read_exact(&mut vec![0; size]).expect("read");
        };
        exchange(&mut self.client, &mut self.server, asked);
        exchange(&mut self.server, &mut self.client, answered);
    }

    /// Both ends close in order, the client first.
    fn close(self) {
        let Self { mut client, mut server } = self;
        client.shutdown(Shutdown::Write).expect("shut down");
        assert_eq!(server.read(&mut [0; 1]).expect("the end"), 0);
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).expect("the end"), 0);
    }
}

fn found(n: u64) -> FlowCounts {
    FlowCounts { found: n, ..FlowCounts::default() }
}

fn ended(found: u64, bytes_sent: u64, bytes_received: u64) -> FlowCounts {
    FlowCounts { found, closed: found, bytes_sent, bytes_received, ..FlowCounts::default() }
}

#[test]
fn a_pool_opened_before_the_agent_is_found_at_both_ends_and_its_end_is_no_second_find() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let (v4, v6) = (db.listen(at(RIGHT, 5432)), db.listen(at("::", 5433)));
    let mut pool: Vec<Connection> = (0..3).map(|_| Connection::open(&web, at(RIGHT, 5432), &v4)).collect();
    pool.push(Connection::open(&web, at(RIGHT_V6, 5433), &v6));
    pool.push(Connection::open(&web, mapped(RIGHT, 5433), &v6));
    for pair in &mut pool {
        pair.talk(10, 20);
    }
    // As after a fork: one socket behind two descriptors.
    let shared = pool[0].client.try_clone().expect("duplicated");
    let flows = |of: fn(u64) -> (FlowCounts, FlowCounts)| {
        let mut flows = Vec::new();
        for (local, remote, port, n) in [(LEFT, RIGHT, 5432, 3), (LEFT_V6, RIGHT_V6, 5433, 1), (LEFT, RIGHT, 5433, 1)] {
            let (here, there) = of(n);
            flows.push((client(&web, Tcp, local, remote, port), here));
            flows.push((server(&db, Tcp, remote, local, port), there));
        }
        flows
    };
    let agent = Agent::start(&lab);
    agent.wait_flows(&flows(|n| (found(n), found(n))));
    drop(shared);
    for mut pair in pool {
        pair.talk(1, 2);
        pair.close();
    }
    agent.wait_flows(&flows(|n| (ended(n, 11 * n, 22 * n), ended(n, 22 * n, 11 * n))));
    // A new connection of a known pool is an open, not a find.
    Connection::open(&web, at(RIGHT, 5432), &v4).close();
    let mut expected = flows(|n| (ended(n, 11 * n, 22 * n), ended(n, 22 * n, 11 * n)));
    for (_, counts) in &mut expected[..2] {
        counts.opened += 1;
        counts.closed += 1;
    }
    let seen = agent.finish(&expected);
    let listening: BTreeSet<(CgroupId, IpAddr, u16)> = seen
        .0
        .iter()
        .filter_map(|o| match o {
            Observation::Listening { cgroup, address, port, listening: true, .. } => Some((*cgroup, *address, *port)),
            _ => None,
        })
        .collect();
    let ip = |text: &str| text.parse().expect("an address");
    assert_eq!(listening, BTreeSet::from([(cgroup_of(&db), ip(RIGHT), 5432), (cgroup_of(&db), ip("::"), 5433)]));
}

#[test]
fn a_server_that_listens_without_backlog_is_found_as_a_server() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen_with(at("0.0.0.0", 5500), 0, 0);
    let mut pair = Connection::open(&web, at(RIGHT, 5500), &listener);
    pair.talk(3, 4);
    let agent = Agent::start(&lab);
    pair.close();
    agent.finish(&[
        (client(&web, Tcp, LEFT, RIGHT, 5500), ended(1, 3, 4)),
        (server(&db, Tcp, RIGHT, LEFT, 5500), ended(1, 4, 3)),
    ]);
}

#[test]
fn a_server_over_mptcp_is_found_as_a_server_for_clients_with_and_without_mptcp() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    match web.socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) {
        Ok(_) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::ENOPROTOOPT)) => {
            eprintln!("NOT RUN: this kernel has no MPTCP ({error})");
            return;
        }
        Err(error) => panic!("a socket: {error}"),
    }
    let listener = db.listen_with(at(RIGHT, 5600), 128, libc::IPPROTO_MPTCP);
    let plain = Connection::open(&web, at(RIGHT, 5600), &listener);
    let fd = web.socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).expect("a socket");
    connect(&fd, at(RIGHT, 5600)).expect("connected");
    let multi = Connection { client: fd.into(), server: listener.accept().expect("accepted").0 };
    let port = multi.client.local_addr().expect("it has one").port();
    let agent = Agent::start(&lab);
    // What an MPTCP client's own state is, does not tell its role: the observer finds out from what
    // it knows of the remote port.
    let undecided = Key { role: Role::Undecided, local_port: Some(port), ..client(&web, Tcp, LEFT, RIGHT, 5600) };
    agent.wait_flows(&[
        (client(&web, Tcp, LEFT, RIGHT, 5600), found(1)),
        (undecided, found(1)),
        (server(&db, Tcp, RIGHT, LEFT, 5600), found(2)),
    ]);
    plain.close();
    multi.close();
    agent.finish(&[
        (client(&web, Tcp, LEFT, RIGHT, 5600), ended(1, 0, 0)),
        (undecided, ended(1, 0, 0)),
        (server(&db, Tcp, RIGHT, LEFT, 5600), ended(2, 0, 0)),
    ]);
}

#[test]
fn how_a_client_got_its_port_tells_its_role_or_leaves_it_open_and_its_end_is_counted_where_it_was_found() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 5700));
    let open = |from: SocketAddr| {
        let client = web.connect_from(Some(from), at(RIGHT, 5700)).expect("connected");
        Connection { client, server: listener.accept().expect("accepted").0 }
    };
    // A port of its own choice: it does not listen there, so it has connected. A port that bind()
    // chose: nothing tells.
    let (fixed, chosen) = (open(at(LEFT, 41_000)), open(at(LEFT, 0)));
    let port = chosen.client.local_addr().expect("it has one").port();
    let agent = Agent::start(&lab);
    let undecided = Key { role: Role::Undecided, local_port: Some(port), ..client(&web, Tcp, LEFT, RIGHT, 5700) };
    agent.wait_flows(&[
        (client(&web, Tcp, LEFT, RIGHT, 5700), found(1)),
        (undecided, found(1)),
        (server(&db, Tcp, RIGHT, LEFT, 5700), found(2)),
    ]);
    fixed.close();
    chosen.close();
    agent.finish(&[
        (client(&web, Tcp, LEFT, RIGHT, 5700), ended(1, 0, 0)),
        (undecided, ended(1, 0, 0)),
        (server(&db, Tcp, RIGHT, LEFT, 5700), ended(2, 0, 0)),
    ]);
}

#[test]
fn connections_that_end_while_the_agent_starts_are_found_once() {
    const EACH: u64 = 40;
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    // Without backlog, and with one.
    let ports = [5750, 5751].map(|port| (port, db.listen_with(at(RIGHT, port), i32::from(port == 5751) * 128, 0)));
    let mut pairs = Vec::new();
    for _ in 0..EACH {
        for (port, listener) in &ports {
            let mut pair = Connection::open(&web, at(RIGHT, *port), listener);
            pair.talk(2, 3);
            pairs.push(pair);
        }
    }
    let agent = Agent::start(&lab);
    for pair in pairs {
        pair.close();
    }
    let mut expected = Vec::new();
    for (port, _) in &ports {
        expected.push((client(&web, Tcp, LEFT, RIGHT, *port), ended(EACH, 2 * EACH, 3 * EACH)));
        expected.push((server(&db, Tcp, RIGHT, LEFT, *port), ended(EACH, 3 * EACH, 2 * EACH)));
    }
    if !is_linux_before(5, 14) {
        agent.finish(&expected);
        return;
    }
    // There an entry is not looked up and deleted in one call. What ends between the two is not
    // counted as ended (docs/kernels.md); found it is, and once.
    let expected: BTreeMap<_, _> = expected.into_iter().collect();
    agent.wait("each connection once", |seen| {
        let flows = seen.flows();
        flows.keys().eq(expected.keys()) && flows.values().all(|counts| counts.found == EACH)
    });
    let (seen, _) = agent.stop();
    for (key, counts) in seen.flows() {
        assert!(counts.found == EACH && counts.opened == 0 && counts.closed <= EACH, "{key:?}: {counts:?}");
    }
}

#[test]
fn a_connection_that_is_half_closed_is_found_and_ends_once() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 5800));
    let mut pair = Connection::open(&web, at(RIGHT, 5800), &listener);
    pair.client.shutdown(Shutdown::Write).expect("shut down");
    assert_eq!(pair.server.read(&mut [0; 1]).expect("the end"), 0);
    let agent = Agent::start(&lab);
    let keys = [client(&web, Tcp, LEFT, RIGHT, 5800), server(&db, Tcp, RIGHT, LEFT, 5800)];
    agent.wait_flows(&keys.map(|key| (key, found(1))));
    pair.server.write_all(&[1; 9]).expect("written");
    pair.client.read_exact(&mut [0; 9]).expect("read");
    drop(pair.server);
    assert_eq!(pair.client.read(&mut [0; 1]).expect("the end"), 0);
    agent.finish(&[(keys[0], ended(1, 0, 9)), (keys[1], ended(1, 9, 0))]);
}

#[test]
fn a_connection_that_no_process_has_open_any_more_is_found_at_its_end() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 5900));
    // Less than a client's send buffer holds, however slow the machine: the accepted socket
    // inherits it.
    set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, 4096);
    let client_end = web.connect_from(Some(at(LEFT, 41_500)), at(RIGHT, 5900)).expect("connected");
    let (mut server_end, _) = listener.accept().expect("accepted");
    // More than the other side takes, so that the kernel keeps the connection after the process has
    // closed it.
    client_end.set_nonblocking(true).expect("set");
    let mut sent = 0;
    while let Ok(more) = (&client_end).write(&[1; 65_536]) {
        sent += more as u64;
    }
    drop(client_end);
    let agent = Agent::start(&lab);
    let keys = [client(&web, Tcp, LEFT, RIGHT, 5900), server(&db, Tcp, RIGHT, LEFT, 5900)];
    agent.wait_flows(&[(keys[1], found(1))]);
    let mut received = Vec::new();
    server_end.read_to_end(&mut received).expect("read");
    assert_eq!(received.len() as u64, sent);
    drop(server_end);
    agent.finish(&[(keys[0], ended(1, sent, 0)), (keys[1], ended(1, 0, sent))]);
}

#[test]
fn a_udp_port_bound_before_the_agent_is_a_served_one_whose_past_is_not_known() {
    let Some(lab) = Pair::new() else { return };
    let (web, dns) = (lab.pod("web", Half::Left), lab.pod("dns", Half::Right));
    let (served, fixed, chosen) = (dns.udp_at(at(RIGHT, 5353)), web.udp_at(at(LEFT, 4500)), web.udp_at(at(LEFT, 0)));
    let agent = Agent::start(&lab);
    let mut buffer = [0; 10];
    for socket in [&fixed, &chosen] {
        socket.send_to(&[1; 5], at(RIGHT, 5353)).expect("sent");
        let (_, peer) = served.recv_from(&mut buffer).expect("received");
        served.send_to(&[2; 7], peer).expect("sent");
        socket.recv_from(&mut buffer).expect("received");
    }
    let counts =
        |opened, bytes_sent, bytes_received| FlowCounts { opened, bytes_sent, bytes_received, ..FlowCounts::default() };
    let with_port = Key { local_port: Some(4500), ..client(&web, Udp, LEFT, RIGHT, 5353) };
    let seen = agent.finish(&[
        (with_port, counts(1, 5, 7)),
        (client(&web, Udp, LEFT, RIGHT, 5353), counts(1, 5, 7)),
        (server(&dns, Udp, RIGHT, LEFT, 5353), counts(2, 14, 10)),
    ]);
    assert!(seen.deltas().all(|(_, delta)| !delta.bind_seen), "no bind was seen");
}

/// As many descriptors as this process may have.
fn more_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is written, then read.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}

#[test]
fn a_connection_that_is_opened_before_the_found_ones_are_told_hides_none_of_them() {
    const LISTENING: u16 = 2_100;
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    more_descriptors();
    let listener = db.listen(at(RIGHT, 5900));
    let before = (web.connect(at(RIGHT, 5900)).expect("connected"), listener.accept().expect("accepted"));
    // Told first, and more than there is room for while nobody receives: the found connection waits
    // behind them.
    let others: Vec<_> = (0..LISTENING).map(|port| db.listen(at(RIGHT, 20_000 + port))).collect();
    let mut agent = Agent::held(&lab, |config| config.channel_batches = 1);
    let after = (web.connect(at(RIGHT, 5900)).expect("connected"), listener.accept().expect("accepted"));
    agent.receive();
    let both = FlowCounts { opened: 1, found: 1, ..FlowCounts::default() };
    agent.finish(&[(client(&web, Tcp, LEFT, RIGHT, 5900), both), (server(&db, Tcp, RIGHT, LEFT, 5900), both)]);
    drop((before, after, others));
}
