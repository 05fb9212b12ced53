//! Processes of the lab: born in their cgroup and network namespace, dead when we are.

use std::{
    fs::OpenOptions,
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    netns::{self, Netns},
    wait_until,
};

type Job = Box<dyn FnOnce() + Send>;

/// The kernel ends a child when the *thread* that forked it ends (`PR_SET_PDEATHSIG`), so one
/// thread that lives as long as we do forks them all.
fn on_spawner<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || jobs.iter().for_each(|job| job()));
        sender
    });
    let (sender, receiver) = mpsc::sync_channel(1);
    let job = Box::new(move || {
        let _ = sender.send(work());
    });
    spawner.send(job).expect("the spawner lives as long as we do");
    receiver.recv().expect("the spawner answers")
}

/// Starts `command` in a cgroup and a network namespace; both are entered before exec, so every
/// socket is born there.
///
/// # Errors
/// The cgroup cannot be joined or the program not started.
pub fn spawn(command: Command, netns: &Netns, cgroup: &Path) -> Result<Child> {
    spawn_then(command, netns, cgroup, || Ok(()))
}

/// As [`spawn`]; `last` runs when both are entered, right before exec: system calls only.
///
/// # Errors
/// As [`spawn`], and those of `last`.
pub fn spawn_then(
    mut command: Command,
    netns: &Netns,
    cgroup: &Path,
    mut last: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) -> Result<Child> {
    let procs = OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.procs"))
        .with_context(|| format!("cannot open {}/cgroup.procs", cgroup.display()))?;
    let netns = netns.as_fd().try_clone_to_owned()?;
    let program = format!("{command:?}");
    let enter = move || {
        // SAFETY: write(2) and prctl(2) are async-signal-safe; the buffer is static and the
        // descriptor open.
        let joined = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1)
        };
        if joined != 1 {
            return Err(std::io::Error::last_os_error());
        }
        netns::enter(netns.as_fd())?;
        last()
    };
    // SAFETY: the closure only makes async-signal-safe system calls and allocates nothing.
    unsafe { command.pre_exec(enter) };
    on_spawner(move || command.spawn()).with_context(|| format!("cannot start {program}"))
}

/// Waits for a child to end by itself.
///
/// # Errors
/// It does not within `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    wait_until(limit, "the process exits", || child.try_wait().transpose())?.context("cannot wait for the process")
}

/// A running `guardrail-lab-app`.
#[derive(Debug)]
pub struct AppProcess {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    said: Arc<(Mutex<Said>, Condvar)>,
}

#[derive(Debug, Default)]
struct Said {
    words: Vec<String>,
    ended: bool,
}

impl AppProcess {
    /// Starts the application with a scenario file.
    ///
    /// # Errors
    /// As [`spawn`].
    pub fn start(name: &str, program: &Path, scenario: &Path, netns: &Netns, cgroup: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(scenario).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn(command, netns, cgroup)?;
        let said = Arc::new((Mutex::new(Said::default()), Condvar::new()));
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let listener = said.clone();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                listener.0.lock().expect("no listener panics").words.push(line);
                listener.1.notify_all();
            }
            listener.0.lock().expect("no listener panics").ended = true;
            listener.1.notify_all();
        });
        Ok(Self { name: name.to_owned(), stdin: child.stdin.take(), child, said })
    }

    /// Name of the process, as in its log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last line it said that begins with `word` and a blank: what follows.
    ///
    /// # Panics
    /// Whoever listens to it panicked.
    #[must_use]
    pub fn said(&self, word: &str) -> Option<String> {
        let said = self.said.0.lock().expect("no listener panics");
        said.words.iter().rev().find_map(|w| Some(w.strip_prefix(word)?.strip_prefix(' ')?.to_owned()))
    }

    /// Waits until it said `word` (`ready`, `done`).
    ///
    /// # Errors
    /// It ends before, or the deadline passes.
    pub fn wait_for(&self, word: &str, deadline: Instant) -> Result<()> {
        self.wait_for_nth(word, 1, deadline)
    }

    /// Waits until it said `word` for the `n`th time.
    ///
    /// # Errors
    /// It ends before, or the deadline passes.
    pub fn wait_for_nth(&self, word: &str, n: usize, deadline: Instant) -> Result<()> {
        let (lock, changed) = &*self.said;
        let mut said = lock.lock().expect("no listener panics");
        loop {
            if said.words.iter().filter(|w| *w == word).count() >= n {
                return Ok(());
            }
            if said.ended {
                bail!("{} ended before it was {word}", self.name);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} was not {word} in time", self.name);
            }
            said = changed.wait_timeout(said, left).expect("no listener panics").0;
        }
    }

    /// Tells it to begin the calls of `after`.
    ///
    /// # Errors
    /// It is gone.
    pub fn go(&mut self) -> Result<()> {
        self.tell("go")
    }

    /// Tells it to end repeated calls after their current round.
    ///
    /// # Errors
    /// It is gone.
    pub fn enough(&mut self) -> Result<()> {
        self.tell("enough")
    }

    fn tell(&mut self, word: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("{} was stopped", self.name))?;
        writeln!(stdin, "{word}").with_context(|| format!("{} is gone", self.name))
    }

    /// Ends it in an orderly way.
    ///
    /// # Errors
    /// It does not end within ten seconds, or with a failure.
    pub fn stop(&mut self) -> Result<()> {
        drop(self.stdin.take());
        let status =
            wait(&mut self.child, Duration::from_secs(10)).with_context(|| format!("{} does not stop", self.name))?;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }
}

impl Drop for AppProcess {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
