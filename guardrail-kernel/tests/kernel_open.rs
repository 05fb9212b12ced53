//! What is open as an epoch begins: FLOWS beside the sockets that are there.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use guardrail_graph::{observe::FlowCounts, peer::Protocol::Tcp};
use guardrail_kernel::bpf;

use self::kernel::{Agent, Half, Key, LEFT, Pair, RIGHT, SocketPod, Stored, at, client, server, until};

/// One test at a time: a process that another test starts has every descriptor of this one until it
/// runs its own program, and so holds its sockets open.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hold(from: &SocketPod, listener: &TcpListener, port: u16) -> (TcpStream, TcpStream) {
    let ours = from.connect(at(RIGHT, port)).expect("connected");
    let theirs = listener.accept().expect("accepted").0;
    (ours, theirs)
}

fn both(web: &SocketPod, db: &SocketPod, port: u16, open: u64) -> [(Key, u64); 2] {
    [(client(web, Tcp, LEFT, RIGHT, port), open), (server(db, Tcp, RIGHT, LEFT, port), open)]
}

fn opened(flows: &[(Key, u64)]) -> Vec<(Key, FlowCounts)> {
    flows.iter().map(|(key, opened)| (*key, FlowCounts { opened: *opened, ..FlowCounts::default() })).collect()
}

/// (connections closed for want of a socket, sockets added).
fn repaired(agent: &Agent) -> (u64, u64) {
    let repaired = agent.kernel.stats().open_repaired;
    (repaired["no_socket"], repaired["not_counted"])
}

/// Stops the agent, and takes its TCP programs off their tracepoint: what ends now is seen by
/// nobody.
fn stop_and_detach(agent: Agent, pins: &Path) -> Stored {
    let stored = agent.store();
    drop(agent.stop());
    let mut links = Vec::new();
    for generation in fs::read_dir(pins).expect("read").flatten() {
        for name in ["tcp_state", "tcp_missed"] {
            let path = generation.path().join("links").join(name);
            if let Ok(link) = bpf::pinned(&path) {
                links.push(bpf::link_id(link.as_fd()).expect("a link"));
                fs::remove_file(path).expect("removed");
            }
        }
    }
    assert_eq!(links.len(), 2);
    assert!(until(|| !links.iter().any(|link| bpf::link_exists(*link))), "they are detached");
    stored
}

#[test]
fn a_flow_whose_end_was_missed_is_open_in_no_epoch_after_two_lists_and_a_real_pool_in_each() {
    let _alone = alone();
    let Some(lab) = Pair::new() else { return };
    let bpf = lab.bpffs();
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listeners = [5001, 5002, 5003].map(|port| db.listen(at(RIGHT, port)));
    let [lost, pool, part] = &listeners;
    let agent = Agent::pinned(&lab, &bpf.pins(), None, |_| ());
    let gone = hold(&web, lost, 5001);
    let kept: Vec<_> = (0..3).map(|_| hold(&web, pool, 5002)).collect();
    let mut some: Vec<_> = (0..2).map(|_| hold(&web, part, 5003)).collect();
    let all = [both(&web, &db, 5001, 1), both(&web, &db, 5002, 3), both(&web, &db, 5003, 2)].concat();
    agent.wait_flows(&opened(&all));
    let stored = stop_and_detach(agent, &bpf.pins());
    drop(gone);
    drop(some.pop());

    let agent = Agent::pinned(&lab, &bpf.pins(), Some(&stored), |_| ());
    let all: BTreeMap<Key, u64> = all.into_iter().collect();
    assert_eq!((agent.turn(), repaired(&agent)), (all, (0, 0)), "missing once, it may be on its way");
    let rest: BTreeMap<Key, u64> = [both(&web, &db, 5002, 3), both(&web, &db, 5003, 2)].concat().into_iter().collect();
    assert_eq!((agent.turn(), repaired(&agent)), (rest.clone(), (2, 0)));
    for _ in 0..3 {
        assert_eq!((agent.turn(), repaired(&agent)), (rest.clone(), (2, 0)), "neither sweep nor list undoes it");
    }
    let lists = agent.kernel.stats().socket_lists;
    assert_eq!((lists[&true], lists[&false]), (5, 0));

    // Nor does the next agent, whichever state it goes on from.
    let last = agent.stored_last();
    drop(agent.stop());
    for stored in [last, stored] {
        let next = Agent::pinned(&lab, &bpf.pins(), Some(&stored), |_| ());
        assert_eq!((next.turn(), repaired(&next)), (rest.clone(), (0, 0)));
        drop(next.stop());
    }
    drop((kept, some));
}

#[test]
fn a_connection_that_nobody_has_accepted_yet_is_open() {
    let _alone = alone();
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 5100));
    let agent = Agent::start(&lab);
    let ours = web.connect(at(RIGHT, 5100)).expect("connected");
    let open = both(&web, &db, 5100, 1);
    agent.wait_flows(&opened(&open));
    for _ in 0..4 {
        assert_eq!((agent.turn(), repaired(&agent)), (BTreeMap::from(open), (0, 0)));
    }
    let theirs = listener.accept().expect("accepted").0;
    drop((ours, theirs));
    agent.finish(&open.map(|(key, _)| (key, FlowCounts { opened: 1, closed: 1, ..FlowCounts::default() })));
}

#[test]
fn a_socket_that_no_entry_has_counted_is_found_as_an_epoch_begins() {
    let _alone = alone();
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 5200));
    // No process has a descriptor of the server's end while the agent starts.
    let ours = web.connect(at(RIGHT, 5200)).expect("connected");
    let agent = Agent::start(&lab);
    let [(client, _), (server, _)] = both(&web, &db, 5200, 1);
    let found = FlowCounts { found: 1, ..FlowCounts::default() };
    agent.wait_flows(&[(client, found)]);
    let theirs = listener.accept().expect("accepted").0;
    let open = BTreeMap::from([(client, 1), (server, 1)]);
    assert_eq!((agent.turn(), repaired(&agent)), (open.clone(), (0, 1)));
    assert_eq!((agent.turn(), repaired(&agent)), (open, (0, 1)), "once");
    agent.wait_flows(&[(client, found), (server, found)]);
    drop((ours, theirs));
    let ended = FlowCounts { closed: 1, ..found };
    agent.finish(&[(client, ended), (server, ended)]);
}
