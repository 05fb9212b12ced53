//! Pins: what one agent leaves in the kernel, the next one goes on with. Nothing is lost in
//! between, and nothing counted twice.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    net::{TcpListener, TcpStream},
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use guardrail_graph::{
    observe::{FlowCounts, LossReason, Observation},
    peer::Protocol::{Tcp, Udp},
};
use guardrail_kernel::{KernelConfig, KernelError, unpin};

use self::kernel::{
    Agent, Half, Key, LEFT, Observed, Pair, RIGHT, SocketPod, Stored, at, cgroup_of, client, server, until,
};

/// One test at a time. A process that another test starts has every descriptor of this one until it
/// runs its own program: the lock of the pins, and the links that keep programs attached which an
/// agent has just let go.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens `count` connections and closes them, client first.
fn talk(from: &SocketPod, listener: &TcpListener, port: u16, count: usize) {
    for _ in 0..count {
        let ends = hold(from, listener, port);
        drop(ends);
    }
}

fn hold(from: &SocketPod, listener: &TcpListener, port: u16) -> (TcpStream, TcpStream) {
    let ours = from.connect(at(RIGHT, port)).expect("connected");
    let theirs = listener.accept().expect("accepted").0;
    (ours, theirs)
}

fn counts(opened: u64, closed: u64) -> FlowCounts {
    FlowCounts { opened, closed, ..FlowCounts::default() }
}

/// What a graph holds that was stored, and then went on with what another agent saw.
fn sum(stored: &Stored, seen: &Observed) -> BTreeMap<Key, FlowCounts> {
    Observed(stored.seen.0.iter().chain(&seen.0).cloned().collect()).flows()
}

/// An agent that deletes what is idle almost at once, so that much of what it reported is in no map
/// any more.
fn forgetful(config: &mut KernelConfig) {
    config.sweep_interval = Duration::from_millis(50);
    config.idle = Duration::from_millis(100);
}

/// Stores in the middle of it, crashes, is away while there is traffic; then another agent, with
/// these settings, goes on.
fn crash_and_go_on(change: impl Fn(&mut KernelConfig)) {
    let _alone = alone();
    let Some(lab) = Pair::new() else { return };
    let bpf = lab.bpffs();
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listeners = [5001, 5002, 5003].map(|port| db.listen(at(RIGHT, port)));
    let [often, later, away] = &listeners;

    let agent = Agent::pinned(&lab, &bpf.pins(), None, forgetful);
    assert!(!agent.kernel.is_seamless(), "nothing was there before");
    talk(&web, often, 5001, 3);
    let held = hold(&web, often, 5001);
    let pair = |opened, closed, port| {
        [
            (client(&web, Tcp, LEFT, RIGHT, port), counts(opened, closed)),
            (server(&db, Tcp, RIGHT, LEFT, port), counts(opened, closed)),
        ]
    };
    agent.wait_flows(&pair(4, 3, 5001));
    let stored = agent.store();
    talk(&web, often, 5001, 2);
    talk(&web, later, 5002, 4);
    agent.wait_flows(&[pair(6, 5, 5001), pair(4, 4, 5002)].concat());
    // Only the connection that is held keeps its entries; the rest is in the journal, and in what
    // is about to be lost.
    assert!(until(|| agent.kernel.stats().map_entries == 2), "{:?}", agent.kernel.stats().map_entries);
    drop(agent.stop());

    talk(&web, often, 5001, 5);
    talk(&web, away, 5003, 1);
    let brief = lab.pod("brief", Half::Left);
    talk(&brief, away, 5003, 1);
    let (brief_id, brief_path) = (cgroup_of(&brief), brief.path.clone());
    drop(brief);
    assert!(until(|| fs::remove_dir(&brief_path).is_ok()), "its processes end");

    let agent = Agent::pinned(&lab, &bpf.pins(), Some(&stored), change);
    assert!(agent.kernel.is_seamless());
    assert_eq!(agent.kernel.warnings(), [] as [String; 0]);
    talk(&web, often, 5001, 1);
    drop(held);
    let mut expected: BTreeMap<Key, FlowCounts> = [pair(12, 12, 5001), pair(4, 4, 5002)].concat().into_iter().collect();
    expected.insert(client(&web, Tcp, LEFT, RIGHT, 5003), counts(1, 1));
    expected.insert(Key { cgroup: brief_id, ..client(&web, Tcp, LEFT, RIGHT, 5003) }, counts(1, 1));
    expected.insert(server(&db, Tcp, RIGHT, LEFT, 5003), counts(2, 2));
    agent.wait("everything, once", |seen| sum(&stored, seen) == expected);
    let (seen, _) = agent.stop();
    assert_eq!(sum(&stored, &seen), expected, "and nothing more at the end");
    assert_eq!(seen.losses(), BTreeMap::new());
    let lives: Vec<_> = seen
        .0
        .iter()
        .filter_map(|observation| match observation {
            Observation::CgroupCreated { id, path, at } if *id == brief_id => Some((path.clone(), *at)),
            Observation::CgroupRemoved { id, at } if *id == brief_id => Some((String::new(), *at)),
            _ => None,
        })
        .collect();
    assert!(
        matches!(&lives[..], [(path, made), (_, gone)] if *path == lab.path_of(&brief_path) && made < gone),
        "the life of a pod that nobody watched: {lives:?}"
    );
    drop(listeners);
    let sets = bpf.generations().len();
    assert_eq!(unpin(&bpf.pins()).expect("nobody holds it"), sets);
    assert!(!bpf.pins().exists());
}

#[test]
fn after_a_crash_the_next_agent_tells_what_no_stored_graph_holds_and_nothing_twice() {
    crash_and_go_on(forgetful);
}

#[test]
fn an_agent_with_other_settings_takes_what_the_earlier_maps_hold_into_its_own() {
    crash_and_go_on(|config| {
        forgetful(config);
        config.flow_entries = 1024;
        config.ring_bytes = 8192;
    });
}

#[test]
fn an_agent_without_udp_goes_on_with_the_tcp_of_one_that_had_it() {
    crash_and_go_on(|config| {
        forgetful(config);
        config.udp = false;
    });
}

#[test]
fn what_is_stored_is_struck_from_the_journal_and_what_had_no_room_there_is_counted() {
    let _alone = alone();
    let Some(lab) = Pair::new() else { return };
    let bpf = lab.bpffs();
    let web = lab.pod("web", Half::Left);
    let settings = |config: &mut KernelConfig| {
        forgetful(config);
        config.flow_entries = 64;
    };
    let agent = Agent::pinned(&lab, &bpf.pins(), None, settings);
    let socket = web.udp(at("10.98.0.0", 0));
    let send = |ports: std::ops::Range<u16>| {
        for port in ports.clone() {
            socket.send_to(&[0; 4], at("10.98.0.1", port)).expect("sent");
        }
        let all = ports.map(|port| client(&web, Udp, LEFT, "10.98.0.1", port));
        let all: Vec<_> = all.collect();
        agent.wait("these", |seen| all.iter().all(|key| seen.flows().contains_key(key)));
        let sweeps = agent.kernel.stats().sweeps;
        let swept = || agent.kernel.stats().sweeps > sweeps + 1 && agent.kernel.stats().map_entries == 0;
        assert!(until(swept), "idle entries go");
    };
    send(1000..1040);
    let stored = agent.store();
    agent.kernel.stored(stored.mark);
    // As many notes as there is room for, and ten more.
    send(2000..2040);
    send(3000..3034);
    drop(agent.stop());
    let agent = Agent::pinned(&lab, &bpf.pins(), Some(&stored), settings);
    agent.wait("the journal's notes", |seen| seen.flows().len() == 64);
    let (seen, _) = agent.stop();
    assert_eq!(seen.losses(), BTreeMap::from([((LossReason::JournalFull, None), 10)]));
}

/// Replaces a generation's manifest by one of zeros, as if another version had made it.
fn of_another_version(generation: &Path) {
    const MAP_CREATE: libc::c_long = 0;
    const OBJ_PIN: libc::c_long = 6;
    let path = generation.join("manifest");
    fs::remove_file(&path).expect("it has a manifest");
    let mut array = [2u32, 4, 16, 1, 0];
    // SAFETY: as long as said, no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, array.as_mut_ptr(), size_of_val(&array)) };
    assert!(fd >= 0);
    let name = CString::new(path.as_os_str().as_bytes()).expect("a path");
    let mut pin = [name.as_ptr() as u64, fd.cast_unsigned() as u64];
    // SAFETY: as long as said, a terminated path.
    let pinned = unsafe { libc::syscall(libc::SYS_bpf, OBJ_PIN, pin.as_mut_ptr(), size_of_val(&pin)) };
    // SAFETY: our own descriptor.
    unsafe { libc::close(fd as libc::c_int) };
    assert_eq!(pinned, 0);
}

#[test]
fn maps_of_another_version_are_replaced_with_a_warning_and_a_gap() {
    let _alone = alone();
    let Some(lab) = Pair::new() else { return };
    let bpf = lab.bpffs();
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 5001));
    let agent = Agent::pinned(&lab, &bpf.pins(), None, |_| ());
    talk(&web, &listener, 5001, 2);
    agent.wait("them", |seen| seen.flows().len() == 2);
    let stored = agent.store();
    drop(agent.stop());
    let [before] = &bpf.generations()[..] else { panic!("one set of maps") };
    of_another_version(before);
    // What an agent left half made goes as well.
    let half = bpf.pins().join("00000000000000ff");
    fs::create_dir_all(half.join("maps")).expect("made");
    let agent = Agent::pinned(&lab, &bpf.pins(), Some(&stored), |_| ());
    assert!(!agent.kernel.is_seamless());
    assert!(agent.kernel.warnings().iter().any(|w| w.contains("another version")), "{:?}", agent.kernel.warnings());
    assert!(!half.exists() && !before.exists() && bpf.generations().len() == 1);
    talk(&web, &listener, 5001, 1);
    agent.wait_flows(&[
        (client(&web, Tcp, LEFT, RIGHT, 5001), counts(1, 1)),
        (server(&db, Tcp, RIGHT, LEFT, 5001), counts(1, 1)),
    ]);
    drop(agent.stop());
}

#[test]
fn pins_are_one_agents_at_a_time_and_unpin_waits_for_nobody() {
    let _alone = alone();
    let Some(lab) = Pair::new() else { return };
    let bpf = lab.bpffs();
    let agent = Agent::pinned(&lab, &bpf.pins(), None, |_| ());
    let error = unpin(&bpf.pins()).expect_err("an agent holds it");
    assert!(matches!(error, KernelError::PinsHeld { .. }), "{error}");
    assert!(error.to_string().contains("another agent"), "{error}");
    drop(agent.stop());
    assert_eq!(attached(lab.cgroup()), 1, "the programs stay attached without an agent");
    assert_eq!(unpin(&bpf.pins()).expect("nobody holds it"), 1);
    assert!(until(|| attached(lab.cgroup()) == 0), "and go with their names");
    assert_eq!(unpin(&bpf.pins()).expect("nothing is there"), 0);
}

/// Programs attached to a cgroup's egress.
fn attached(cgroup: &Path) -> u32 {
    const PROG_QUERY: libc::c_long = 16;
    const INET_EGRESS: u32 = 1;
    /// `bpf_attr.query`.
    #[repr(C)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
    }
    let directory = fs::File::open(cgroup).expect("it is there");
    let target_fd = directory.as_raw_fd().cast_unsigned();
    let mut query = Query { target_fd, attach_type: INET_EGRESS, flags: 0, attach_flags: 0, ids: 0, count: 0, pad: 0 };
    // SAFETY: as long as said; no room for ids is offered, so only their number is reported.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    query.count
}

#[test]
fn what_was_drained_stays_until_it_is_stored_and_is_told_again_if_it_never_was() {
    let _alone = alone();
    let Some(lab) = Pair::new() else { return };
    let bpf = lab.bpffs();
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 5001));
    let agent = Agent::pinned(&lab, &bpf.pins(), None, |_| ());
    talk(&web, &listener, 5001, 2);
    let held = hold(&web, &listener, 5001);
    let pair = |opened, closed| {
        [
            (client(&web, Tcp, LEFT, RIGHT, 5001), counts(opened, closed)),
            (server(&db, Tcp, RIGHT, LEFT, 5001), counts(opened, closed)),
        ]
    };
    agent.wait_flows(&pair(3, 2));
    drop(agent.stop());
    // Nothing was ever stored: each of these drains the first one's maps, and crashes.
    let other = |config: &mut KernelConfig| config.ring_bytes = 8192;
    for _ in 0..2 {
        let agent = Agent::pinned(&lab, &bpf.pins(), None, other);
        agent.wait_flows(&pair(3, 2));
        drop(agent.stop());
        assert_eq!(bpf.generations().len(), 2);
    }
    drop(held);
    let agent = Agent::pinned(&lab, &bpf.pins(), None, other);
    agent.wait_flows(&pair(3, 3));
    let stored = agent.store();
    agent.kernel.stored(stored.mark);
    assert!(until(|| bpf.generations().len() == 1), "what is stored need not be kept");
    drop(agent.stop());
    let agent = Agent::pinned(&lab, &bpf.pins(), Some(&stored), other);
    talk(&web, &listener, 5001, 1);
    agent.wait("one more", |seen| sum(&stored, seen) == pair(4, 4).into_iter().collect());
    drop(agent.stop());
}
