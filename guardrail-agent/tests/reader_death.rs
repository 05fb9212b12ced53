//! The thread that reads the kernel's maps dies under a daemon: the daemon ends, and what the thread had in hand is counted as lost, or is in the pinned maps.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use clap::Parser as _;
use guardrail_agent::{
    config::Config,
    daemon::{self, RunError},
};
use guardrail_graph::{Snapshot, observe::LossClass};
use tracing::{Event, Metadata, Subscriber, span};

use self::kernel::{BpfFs, LEFT, Lab, Pod, RIGHT, Side, at, until};

/// Takes messages, and makes the reading thread panic at its next one when asked: at the end of a sweep, with all that it found in hand.
struct Mortal;

static DIES: AtomicBool = AtomicBool::new(false);
/// The readers of two tests are not told apart.
static ALONE: Mutex<()> = Mutex::new(());

impl Subscriber for Mortal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("guardrail_agent::kernel::reader")
    }

    fn event(&self, event: &Event<'_>) {
        let is_reader = thread::current().name() == Some("kernel-reader");
        assert!(
            !(is_reader && DIES.swap(false, Ordering::SeqCst)),
            "the test kills this thread at {}",
            event.metadata().name()
        );
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn uid(pod: &str) -> String {
    format!("{pod}-00000000-0000-0000")
}

/// A daemon in this process, with its state in `dir`.
fn run(lab: &Lab, dir: &Path, extra: &[&str]) -> JoinHandle<Result<(), RunError>> {
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| tracing::subscriber::set_global_default(Mortal).expect("the first"));
    let inventory = dir.join("inventory.yaml");
    let pod = |name: &str, address: &str| {
        format!(
            "---\nkind: Pod\nmetadata: {{name: {name}, namespace: lab, uid: {}}}\nspec: {{nodeName: node-a}}\nstatus: {{podIP: {address}}}\n",
            uid(name)
        )
    };
    let node = "kind: Node\nmetadata: {name: node-a}\nspec: {podCIDR: 10.77.0.0/24}\n";
    fs::write(&inventory, [node, &pod("web", LEFT), &pod("db", RIGHT)].concat()).expect("written");
    let path = |path: &Path| path.to_str().expect("a path").to_owned();
    let (inventory, cgroup, state) = (path(&inventory), path(&lab.cgroup), path(&dir.join("state")));
    let args = ["guardrail-agent", "--inventory", &inventory, "--cgroup-root", &cgroup, "--state-dir", &state];
    let args = [&args, &["--node", "node-a", "--listen", "127.0.0.1:0", "--state-interval", "1"][..], extra].concat();
    let config = Config::try_parse_from(args).expect("a command line");
    thread::spawn(move || daemon::run(config))
}

/// The stored graph, once there is one.
fn stored(dir: &Path) -> Option<Snapshot> {
    let text = fs::read_to_string(dir.join("state/state.json")).ok()?;
    Some(Snapshot::from_json(&text, "the state").expect("a state"))
}

/// Connections of each edge in the stored graph.
fn opened(dir: &Path) -> Vec<u64> {
    stored(dir).map_or(Vec::new(), |state| state.body.edges.iter().map(|edge| edge.counts.opened).collect())
}

fn talk(from: &Pod, listener: &TcpListener, count: usize) {
    for _ in 0..count {
        let ours = from.connect(at(RIGHT, 5001)).expect("connected");
        drop((listener.accept().expect("accepted"), ours));
    }
}

/// Stores three connections, then has the thread die while it holds four more.
fn live_and_die(lab: &Lab, dir: &Path, extra: &[&str]) -> RunError {
    let pod = |name, side| lab.pod(&format!("kubepods/pod{}/0123456789abcdef", uid(name)), side);
    let (web, db) = (pod("web", Side::Left), pod("db", Side::Right));
    let listener = db.listen(at(RIGHT, 5001));
    let daemon = run(lab, dir, extra);
    assert!(until(|| stored(dir).is_some() || daemon.is_finished()), "it starts");
    talk(&web, &listener, 3);
    assert!(until(|| opened(dir) == [3]), "{:?}", opened(dir));
    talk(&web, &listener, 4);
    DIES.store(true, Ordering::SeqCst);
    assert!(until(|| daemon.is_finished()), "the daemon outlives its reader");
    assert!(!DIES.load(Ordering::SeqCst), "the reader died");
    daemon.join().expect("the daemon does not panic").expect_err("its reader died")
}

#[test]
fn a_daemon_whose_reader_dies_ends_with_an_error_and_its_graph_says_that_it_is_incomplete() {
    let Some(lab) = Lab::new() else { return };
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().expect("a directory");
    let error = live_and_die(&lab, dir.path(), &[]);
    assert!(matches!(error, RunError::Ended("the kernel reader")), "{error}");
    let coverage = stored(dir.path()).expect("a state").body.coverage;
    let losses: Vec<_> = coverage.losses.iter().map(|loss| (&*loss.reason, loss.class, loss.count)).collect();
    assert_eq!(losses, [("unread", LossClass::Edge, 1)]);
    assert!(!coverage.complete);
}

#[test]
fn with_pins_the_death_of_a_reader_loses_nothing_and_nothing_is_counted_twice() {
    let Some(lab) = Lab::new() else { return };
    let _alone = ALONE.lock();
    let (dir, bpf) = (tempfile::tempdir().expect("a directory"), BpfFs::new());
    let pins = bpf.pins();
    let pins = ["--pin", pins.to_str().expect("a path")];
    let error = live_and_die(&lab, dir.path(), &pins);
    assert!(matches!(error, RunError::Ended("the kernel reader")), "{error}");
    let next = run(&lab, dir.path(), &[&pins[..], &["--duration", "1"]].concat());
    next.join().expect("no panic").expect("it ends when it is over");
    let state = stored(dir.path()).expect("a state");
    assert_eq!(opened(dir.path()), [7], "{}", state.to_json());
    assert_eq!((&state.body.coverage.losses[..], state.body.coverage.complete), (&[][..], true));
    assert_eq!(state.body.window.nodes["node-a"].len(), 1, "the hooks were there all the time");
}
