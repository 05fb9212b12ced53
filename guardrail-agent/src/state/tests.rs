//! What is found of a state after any end of the agent that wrote it.

use guardrail_graph::{
    epoch::End,
    inventory::{Change, read},
    observe::{CgroupId, FlowCounts, FlowDelta, OpenFlow, Remote, Role},
    peer::Protocol,
    snapshot::merge,
};

use super::*;

const NODE: &str = "node-a";
const WEB: &str = "kind: Pod\nmetadata: {name: web, namespace: shop, uid: web-00000000-0001, labels: {app: web}}\n\
    spec: {nodeName: node-a, containers: [{name: c}]}\nstatus: {phase: Running, podIP: 10.244.1.2}\n";

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_unix_seconds(1_700_000_000 + seconds)
}

/// The pod's cgroup is there.
pub(crate) fn starts(observer: &mut Observer, at: Timestamp, now: Timestamp) {
    let path = "/kubepods/burstable/podweb-00000000-0001/0123456789abcdef".to_owned();
    observer.observe(Observation::CgroupCreated { id: CgroupId(1), path, at }, now);
}

/// The API server's word of the pod comes.
pub(crate) fn is_told(observer: &mut Observer, now: Timestamp) {
    for object in read::objects(WEB, "test").unwrap().objects {
        observer.apply(Change::Apply(object), now);
    }
}

fn know(observer: &mut Observer, now: Timestamp) {
    starts(observer, t(0), now);
    is_told(observer, now);
}

/// A connection of the pod that was opened then.
pub(crate) fn flow(port: u16, at: Timestamp) -> FlowDelta {
    FlowDelta {
        cgroup: CgroupId(1),
        netns: None,
        local: [10, 244, 1, 2].into(),
        remote: Remote::Addr([203, 0, 113, 9].into()),
        protocol: Protocol::Tcp,
        role: Role::Client,
        server_port: port,
        local_port: None,
        bind_seen: true,
        first_open: Some(at),
        last_open: Some(at),
        counts: FlowCounts { opened: 1, ..FlowCounts::default() },
    }
}

fn config(started: Timestamp) -> ObserverConfig {
    ObserverConfig::new(NODE, format!("instance-{}", started.as_unix_ns()), started)
}

/// An agent's first day, written in the evening; what it saw then; the end of the day.
struct Day {
    observer: Observer,
    ended: Arc<Ended>,
    now: Timestamp,
}

/// With pins, or as if; gives the epoch's file, if one ended.
fn store(
    state: &mut StateFile,
    observer: &mut Observer,
    ended: Option<&Arc<Ended>>,
    now: Timestamp,
) -> Result<Option<Kept>, FileError> {
    let job = state.begin(observer, Some(&Checkpoint::default()), ended.cloned(), now);
    let done = job.run();
    state.done(done.is_ok().then(|| job.number()));
    done
}

fn a_day(state: &mut StateFile) -> Day {
    let mut observer = Observer::new(config(t(0)));
    know(&mut observer, t(1));
    observer.observe(Observation::Flow(flow(443, t(100))), t(100));
    store(state, &mut observer, None, t(1_000)).unwrap();
    observer.observe(Observation::Flow(flow(80, t(1_001))), t(1_001));
    let now = t(2_000);
    let open = OpenFlow { flow: flow(443, t(100)), open: 1 };
    let document = Arc::new(observer.turn(&[open], now));
    Day { observer, ended: Ended::of(document, End::Day).unwrap().into(), now }
}

/// `port: opened open` of everything that the next agent finds, and what is stored of the
/// kernel's counters.
fn found(dir: &Path) -> (Vec<String>, usize, bool) {
    let state = StateFile::open(dir).unwrap();
    let epochs = Epochs::open(dir, NODE);
    let Stored { snapshot, checkpoint, .. } = state.load(&epochs, t(9_000)).unwrap();
    let all = epochs.kept().iter().map(|kept| kept.unpacked().unwrap().1).chain(snapshot).collect();
    let edges = merge(all).body.edges;
    let text = |e: &guardrail_graph::snapshot::EdgeRecord| format!("{}: {} {}", e.port, e.counts.opened, e.counts.open);
    (edges.iter().map(text).collect(), epochs.kept().len(), checkpoint.is_some())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_epoch_s_end_leaves_its_file_and_the_next_one_s_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = StateFile::open(dir.path()).unwrap();
    let mut day = a_day(&mut state);
    let kept = store(&mut state, &mut day.observer, Some(&day.ended), day.now).unwrap().unwrap();
    let bytes = kept.read().unwrap();
    assert_eq!(names(dir.path()), ["epochs", "state-2.base"]);
    drop(state);
    assert_eq!(found(dir.path()), (vec!["80: 1 0".to_owned(), "443: 1 1".to_owned()], 1, true));
    let mut state = StateFile::open(dir.path()).unwrap();
    day.observer.observe(Observation::Flow(flow(80, t(2_500))), t(2_500));
    store(&mut state, &mut day.observer, None, t(3_000)).unwrap();
    drop(state);
    assert_eq!(found(dir.path()).0, ["80: 2 0", "443: 1 1"]);
    assert_eq!(kept.read().unwrap(), bytes, "a closed epoch's file never changes");
}

/// Where writing ends in the middle, what is found is the state before or the one after, each
/// with its checkpoint: never both, never less.
#[test]
fn an_agent_that_dies_around_an_epoch_s_end_loses_nothing_and_counts_nothing_twice() {
    let before = (vec!["443: 1 0".to_owned()], 0, true);
    let after = (vec!["80: 1 0".to_owned(), "443: 1 1".to_owned()], 1, true);
    // Each step fails in turn: the state of the next epoch, the file of the closed one, the
    // state in its place.
    for (blocked, expected) in [("state-2.next", &before), ("epochs", &before), ("state-2.base", &after)] {
        let dir = tempfile::tempdir().unwrap();
        let mut state = StateFile::open(dir.path()).unwrap();
        let mut day = a_day(&mut state);
        let blocked = dir.path().join(blocked);
        if blocked.ends_with("epochs") {
            fs::write(&blocked, "no directory").unwrap();
        } else {
            fs::create_dir(&blocked).unwrap();
            fs::write(blocked.join("x"), "").unwrap();
        }
        store(&mut state, &mut day.observer, Some(&day.ended), day.now).unwrap_err();
        drop(state);
        if blocked.is_dir() { fs::remove_dir_all(&blocked) } else { fs::remove_file(&blocked) }.unwrap();
        assert_eq!(found(dir.path()), *expected, "{}", blocked.display());
        // The agent that goes on after a disk that was full for a while.
        let mut state = StateFile::open(dir.path()).unwrap();
        store(&mut state, &mut day.observer, Some(&day.ended), t(2_600)).unwrap();
        drop(state);
        assert_eq!(found(dir.path()), after, "{}", blocked.display());
    }
}

#[test]
fn without_the_state_of_the_next_epoch_the_closed_one_is_not_counted_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = StateFile::open(dir.path()).unwrap();
    let day = a_day(&mut state);
    Epochs::write(dir.path(), &day.ended).unwrap();
    drop(state);
    assert_eq!(found(dir.path()), (vec!["80: 1 0".to_owned(), "443: 1 0".to_owned()], 1, false));
    assert!(!dir.path().join("state-1.base").exists(), "set aside");
}

/// A base with one connection to each of two ports, and a log with a second one to each.
fn a_log(dir: &Path) -> (StateFile, Observer) {
    let mut state = StateFile::open(dir).unwrap();
    let mut observer = Observer::new(config(t(0)));
    know(&mut observer, t(1));
    for (at, port) in [(100, 443), (200, 80), (300, 80), (400, 443)] {
        observer.observe(Observation::Flow(flow(port, t(at))), t(at));
        if at >= 200 {
            store(&mut state, &mut observer, None, t(at)).unwrap();
        }
    }
    (state, observer)
}

/// `port: opened` of what the next agent finds, and until when that holds.
fn edges(dir: &Path) -> Option<(Vec<String>, Timestamp)> {
    let state = StateFile::open(dir).unwrap();
    let snapshot = state.load(&Epochs::open(dir, NODE), t(9_000)).unwrap().snapshot?;
    let until = snapshot.body.window.to.unwrap();
    let edges = merge(vec![snapshot]).body.edges;
    Some((edges.iter().map(|e| format!("{}: {}", e.port, e.counts.opened)).collect(), until))
}

fn two(first: u64, second: u64) -> Vec<String> {
    vec![format!("80: {first}"), format!("443: {second}")]
}

#[test]
fn a_log_that_ends_anywhere_says_what_its_last_whole_group_does() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = a_log(dir.path());
    drop(state);
    let log = dir.path().join("state-1.log");
    let whole = fs::read(&log).unwrap();
    let (mut seen, mut base) = (std::collections::BTreeSet::new(), dir.path().join("state-1.base"));
    for length in 0..=whole.len() {
        fs::write(&log, &whole[..length]).unwrap();
        let (edges, until) = edges(dir.path()).unwrap();
        // The touch was of what came last: an agent that died while it wrote had not touched.
        assert_eq!(until, t(400), "{length}");
        seen.insert(edges);
        assert_eq!(names(dir.path()).len(), 2, "{length}: nothing is set aside");
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [two(1, 1), two(2, 1), two(2, 2)]);
    assert_eq!(edges(dir.path()), Some((two(2, 2), t(400))));
    base.set_extension("log");
    fs::remove_file(base).unwrap();
    assert_eq!(edges(dir.path()).unwrap().0, two(1, 1), "a base alone is a state");
}

#[test]
fn of_a_log_with_a_changed_byte_what_stands_before_it_is_used_told_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = a_log(dir.path());
    drop(state);
    let log = dir.path().join("state-1.log");
    let whole = fs::read(&log).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        fs::write(&log, &changed).unwrap();
        let (edges, until) = edges(dir.path()).unwrap();
        assert!([(two(1, 1), t(200)), (two(2, 1), t(300))].contains(&(edges, until)), "{at}");
        let copies: Vec<_> = names(dir.path()).into_iter().filter(|name| name.contains("unusable")).collect();
        let [copy] = &copies[..] else { panic!("{at}: {copies:?}") };
        assert_eq!(fs::read(dir.path().join(copy)).unwrap(), changed, "{at}");
        fs::remove_file(dir.path().join(copy)).unwrap();
    }
    // With pins what was lost of it may be lost to the kernel, too: that is said.
    fs::write(&log, &whole[..whole.len() - 1]).unwrap();
    let restored = |dir: &Path| {
        let state = StateFile::open(dir).unwrap();
        let stored = state.load(&Epochs::open(dir, NODE), t(9_000)).unwrap();
        state.restore(stored, config(t(500)), true).snapshot(t(600)).body.coverage.losses
    };
    assert_eq!(restored(dir.path()), []);
    let mut changed = whole;
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&log, changed).unwrap();
    let losses = restored(dir.path());
    assert_eq!(losses.iter().map(|loss| loss.reason.as_str()).collect::<Vec<_>>(), ["journal_full"]);
}

#[test]
fn a_base_that_is_cut_or_changed_is_set_aside_with_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = a_log(dir.path());
    drop(state);
    let (base, log) = (dir.path().join("state-1.base"), dir.path().join("state-1.log"));
    let (whole, grown) = (fs::read(&base).unwrap(), fs::read(&log).unwrap());
    let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
    let changed = (0..whole.len()).map(|at| {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        changed
    });
    for bytes in cut.chain(changed) {
        fs::write(&base, &bytes).unwrap();
        fs::write(&log, &grown).unwrap();
        assert_eq!(edges(dir.path()), None);
        let names = names(dir.path());
        let kept: Vec<_> = names.iter().map(|name| fs::read(dir.path().join(name)).unwrap()).collect();
        assert_eq!(kept, [bytes, grown.clone()], "{names:?}");
        names.iter().for_each(|name| fs::remove_file(dir.path().join(name)).unwrap());
    }
}

/// A new base is there beside the old one and its log for a moment, and before it is whole.
#[test]
fn an_agent_that_dies_around_a_new_base_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, mut observer) = a_log(dir.path());
    let old = ["state-1.base", "state-1.log"].map(|name| (name, fs::read(dir.path().join(name)).unwrap()));
    // As after any write that failed.
    state.done(None);
    observer.observe(Observation::Flow(flow(80, t(500))), t(500));
    store(&mut state, &mut observer, None, t(500)).unwrap();
    assert_eq!(names(dir.path()), ["state-2.base"]);
    drop(state);
    assert_eq!(edges(dir.path()), Some((two(3, 2), t(500))));
    for (name, bytes) in &old {
        fs::write(dir.path().join(name), bytes).unwrap();
        assert_eq!(edges(dir.path()), Some((two(3, 2), t(500))), "the newest, with what is left of the old");
    }
    fs::rename(dir.path().join("state-2.base"), dir.path().join(".guardrail-x")).unwrap();
    assert_eq!(edges(dir.path()).unwrap().0, two(2, 2), "begun and not renamed");
    fs::write(dir.path().join("state-2.base"), "cut").unwrap();
    assert_eq!(edges(dir.path()).unwrap().0, two(2, 2), "the one before stands");
}

#[test]
fn while_nothing_changes_no_byte_is_written_and_the_window_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, mut observer) = a_log(dir.path());
    let bytes = || names(dir.path()).into_iter().map(|name| fs::read(dir.path().join(name)).unwrap());
    let before: Vec<_> = bytes().collect();
    for minute in 1..=60 {
        let at = t(400 + minute * 60);
        observer.tick(at);
        assert!(matches!(
            state.begin(&mut observer, Some(&Checkpoint::default()), None, at),
            Job { write: Write::Nothing, .. }
        ));
        store(&mut state, &mut observer, None, at).unwrap();
    }
    assert!(bytes().eq(before));
    drop(state);
    assert_eq!(edges(dir.path()), Some((two(2, 2), t(4_000))));
    // Another change goes to the log still.
    let mut state = StateFile::open(dir.path()).unwrap();
    observer.observe(Observation::Flow(flow(80, t(4_100))), t(4_100));
    store(&mut state, &mut observer, None, t(4_100)).unwrap();
    drop(state);
    assert_eq!(edges(dir.path()), Some((two(3, 2), t(4_100))));
}

#[test]
fn a_log_is_folded_into_a_new_base_before_it_outgrows_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, mut observer) = a_log(dir.path());
    let mut bases = std::collections::BTreeSet::new();
    for i in 1..2_000 {
        observer.observe(Observation::Flow(flow(80, t(400 + i))), t(400 + i));
        store(&mut state, &mut observer, None, t(400 + i)).unwrap();
        let mut length = 0;
        for name in names(dir.path()) {
            length += fs::metadata(dir.path().join(&name)).unwrap().len();
            bases.extend(name.ends_with(".base").then_some(name));
        }
        assert!(length < 100_000, "{i}: {length}");
    }
    assert!(bases.len() > 1, "{bases:?}");
    assert!(names(dir.path()).len() <= 2);
    drop(state);
    assert_eq!(edges(dir.path()), Some((two(2_001, 2), t(2_399))));
}

#[test]
fn files_that_somebody_took_away_or_changed_are_written_anew() {
    for (name, bytes) in [("state-1.base", None), ("state-1.log", None), ("state-1.log", Some("longer"))] {
        let dir = tempfile::tempdir().unwrap();
        let (mut state, mut observer) = a_log(dir.path());
        let path = dir.path().join(name);
        match bytes {
            None => fs::remove_file(path).unwrap(),
            Some(bytes) => fs::write(path, bytes).unwrap(),
        }
        store(&mut state, &mut observer, None, t(500)).unwrap();
        drop(state);
        assert_eq!(edges(dir.path()), Some((two(2, 2), t(500))), "{name}");
        assert_eq!(names(dir.path()).len(), 1, "{name}");
    }
}

#[test]
fn a_state_of_the_former_kind_is_set_aside_and_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("state.json"), "{}").unwrap();
    fs::write(dir.path().join("state.progress-7"), "x").unwrap();
    assert_eq!(edges(dir.path()), None);
    let [name] = &names(dir.path())[..] else { panic!("{:?}", names(dir.path())) };
    assert!(name.starts_with("state.former-") && name.ends_with(".json"), "{name}");
}

#[test]
fn pods_that_went_and_flows_that_wait_are_part_of_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, mut observer) = a_log(dir.path());
    let mut waiting = flow(22, t(450));
    waiting.cgroup = CgroupId(2);
    let path = "/kubepods/burstable/podnew-00000000-0002/0123456789abcdef".to_owned();
    observer.observe(Observation::CgroupCreated { id: CgroupId(2), path, at: t(440) }, t(450));
    observer.observe(Observation::Flow(waiting.clone()), t(450));
    assert_eq!(observer.waiting(), [waiting.clone()]);
    let pods = observer.own_pods();
    assert_eq!(pods.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), ["web-00000000-0001"]);
    store(&mut state, &mut observer, None, t(500)).unwrap();
    drop(state);
    let state = StateFile::open(dir.path()).unwrap();
    let stored = state.load(&Epochs::open(dir.path(), NODE), t(9_000)).unwrap();
    let next = state.restore(stored, config(t(600)), true);
    assert_eq!((next.own_pods(), next.waiting()), (pods, vec![waiting]));
}

#[test]
fn a_broken_epoch_is_set_aside_and_another_node_s_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = StateFile::open(dir.path()).unwrap();
    let day = a_day(&mut state);
    let kept = Epochs::write(dir.path(), &day.ended).unwrap();
    assert!(Epochs::open(dir.path(), "node-b").kept().is_empty());
    let mut bytes = kept.read().unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let file = dir.path().join("epochs").join(format!("{}.epoch", kept.id));
    fs::write(&file, bytes).unwrap();
    assert!(Epochs::open(dir.path(), NODE).kept().is_empty());
    assert!(file.with_extension("unusable").exists() && !file.exists());
}
