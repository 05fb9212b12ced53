//! The thread that reads the kernel's maps dies under a daemon, or hangs: the daemon ends, and what
//! the thread had in hand is counted as lost, or is in the pinned maps.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use clap::Parser as _;
use guardrail_agent::{
    config::Config,
    daemon::{self, RunError},
};
use guardrail_graph::{Snapshot, observe::LossClass};
use tracing::{Event, Metadata, Subscriber, span};

use guardrail_tests::{
    lab::{
        pair::{Half, LEFT, Pair, RIGHT, SocketPod},
        socket::at,
        until,
    },
    small,
};

/// Takes messages, and makes the reading thread panic or wait at its next one when asked: at the
/// end of a sweep, with all that it found in hand.
struct Mortal;

static DIES: AtomicBool = AtomicBool::new(false);
static HANGS: AtomicBool = AtomicBool::new(false);
/// The readers of two tests are not told apart.
static ALONE: Mutex<()> = Mutex::new(());

impl Subscriber for Mortal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("guardrail_kernel::reader")
    }

    fn event(&self, event: &Event<'_>) {
        let is_reader = thread::current().name() == Some("kernel-reader");
        assert!(
            !(is_reader && DIES.swap(false, Ordering::SeqCst)),
            "the test kills this thread at {}",
            event.metadata().name()
        );
        while is_reader && HANGS.load(Ordering::SeqCst) {
            thread::park_timeout(Duration::from_millis(10));
        }
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
fn run(lab: &Pair, dir: &Path, extra: &[&str]) -> JoinHandle<Result<(), RunError>> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::subscriber::set_global_default(Mortal).expect("the first");
        // SAFETY: sets no handler. The lab's own, which ends the process, would run before the
        // daemon's.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
    });
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
    let (inventory, cgroup, state) = (path(&inventory), path(lab.cgroup()), path(&dir.join("state")));
    let args = ["guardrail-agent", "--inventory", &inventory, "--cgroup-root", &cgroup, "--state-dir", &state];
    let args = [&args, &["--node", "node-a", "--state-interval", "1"][..], extra].concat();
    let config = Config::try_parse_from(args).expect("a command line");
    thread::spawn(move || daemon::run(config))
}

/// The stored graph, once there is one.
fn stored(dir: &Path) -> Option<Snapshot> {
    small::stored(&dir.join("state")).ok()
}

/// Connections of each edge in the stored graph.
fn opened(dir: &Path) -> Vec<u64> {
    stored(dir).map_or(Vec::new(), |state| state.body.edges.iter().map(|edge| edge.counts.opened).collect())
}

fn talk(from: &SocketPod, listener: &TcpListener, count: usize) {
    for _ in 0..count {
        let ours = from.connect(at(RIGHT, 5001)).expect("connected");
        drop((listener.accept().expect("accepted"), ours));
    }
}

/// An address of its own for a daemon.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.77:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

/// What `/healthz` answers; nothing while nobody listens.
fn healthz(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Stores three connections, then tells the thread its fate while four more are there for it.
fn live_until(fate: &AtomicBool, lab: &Pair, dir: &Path, extra: &[&str]) -> JoinHandle<Result<(), RunError>> {
    let pod = |name, side| lab.pod(&format!("kubepods/pod{}/0123456789abcdef", uid(name)), side);
    let (web, db) = (pod("web", Half::Left), pod("db", Half::Right));
    let listener = db.listen(at(RIGHT, 5001));
    let daemon = run(lab, dir, extra);
    assert!(until(|| stored(dir).is_some() || daemon.is_finished()), "it starts");
    talk(&web, &listener, 3);
    assert!(until(|| opened(dir) == [3]), "{}", stored(dir).map_or_else(String::new, |state| state.to_json()));
    talk(&web, &listener, 4);
    fate.store(true, Ordering::SeqCst);
    daemon
}

fn live_and_die(lab: &Pair, dir: &Path, extra: &[&str]) -> RunError {
    let daemon = live_until(&DIES, lab, dir, &[&["--listen", "127.0.0.1:0"], extra].concat());
    assert!(until(|| daemon.is_finished()), "the daemon outlives its reader");
    assert!(!DIES.load(Ordering::SeqCst), "the reader died");
    daemon.join().expect("the daemon does not panic").expect_err("its reader died")
}

/// The losses in a stored graph, and that it is incomplete.
fn assert_unread(dir: &Path) {
    let coverage = stored(dir).expect("a state").body.coverage;
    let losses: Vec<_> = coverage.losses.iter().map(|loss| (&*loss.reason, loss.class, loss.count)).collect();
    assert_eq!(losses, [("unread", LossClass::Edge, 1)]);
    assert!(!coverage.complete);
}

#[test]
fn a_daemon_whose_reader_dies_ends_with_an_error_and_its_graph_says_that_it_is_incomplete() {
    let Some(lab) = Pair::new() else { return };
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().expect("a directory");
    let error = live_and_die(&lab, dir.path(), &[]);
    assert!(matches!(error, RunError::Ended("the kernel reader")), "{error}");
    assert_unread(dir.path());
}

#[test]
fn a_daemon_whose_reader_hangs_says_so_to_its_probe_and_still_ends_when_it_is_told_to() {
    let Some(lab) = Pair::new() else { return };
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().expect("a directory");
    let address = free_address();
    let daemon = live_until(&HANGS, &lab, dir.path(), &["--listen", &address.to_string()]);
    let hung = guardrail_kernel::clock::now();
    let says = |text: &str| healthz(address).is_some_and(|answer| answer.contains(text));
    assert!(says("200 OK"), "{:?}", healthz(address));
    assert!(until(|| says("503 ")), "{:?}", healthz(address));
    assert!(says("the kernel's table of flows was last read "), "{:?}", healthz(address));
    // SAFETY: the daemon has taken SIGTERM over for this process, and there is no other.
    assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGTERM) }, 0);
    let ends = until(|| daemon.is_finished());
    HANGS.store(false, Ordering::SeqCst);
    assert!(ends, "a reader that hangs keeps the daemon");
    let error = daemon.join().expect("the daemon does not panic").expect_err("its reader hung");
    assert!(matches!(error, RunError::Hangs("the kernel reader")), "{error}");
    assert_eq!(opened(dir.path()), [3]);
    assert_unread(dir.path());
    // What came since then was in no reading.
    let losses = stored(dir.path()).expect("a state").body.coverage.losses;
    let since = losses[0].times.as_ref().expect("times")[0].time.from;
    assert!(since <= hung, "{since} {hung}");
}

#[test]
fn with_pins_the_death_of_a_reader_loses_nothing_and_nothing_is_counted_twice() {
    let Some(lab) = Pair::new() else { return };
    let _alone = ALONE.lock();
    let (dir, bpf) = (tempfile::tempdir().expect("a directory"), lab.bpffs());
    let pins = bpf.pins();
    let pins = ["--pin", pins.to_str().expect("a path")];
    let error = live_and_die(&lab, dir.path(), &pins);
    assert!(matches!(error, RunError::Ended("the kernel reader")), "{error}");
    let next = run(&lab, dir.path(), &[&pins[..], &["--listen", "127.0.0.1:0", "--duration", "1"]].concat());
    next.join().expect("no panic").expect("it ends when it is over");
    let state = stored(dir.path()).expect("a state");
    assert_eq!(opened(dir.path()), [7], "{}", state.to_json());
    assert_eq!((&state.body.coverage.losses[..], state.body.coverage.complete), (&[][..], true));
    assert_eq!(state.body.window.nodes["node-a"].len(), 1, "the hooks were there all the time");
}
