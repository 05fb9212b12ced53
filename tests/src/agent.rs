//! Runs `guardrail-agent` on a node of the lab, as a user would: command line, HTTP, files,
//! signals, exit code.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    apiserver::Forward,
    bins,
    container::Container,
    lab::{Lab, netns, process, wait_until},
};

/// Where every agent of the lab listens, in its node's namespace.
pub const LISTEN: &str = "127.0.0.1:9464";
/// Where port-forwards lead, as in deploy/base.
pub const LOCAL_LISTEN: &str = "127.0.0.1:9465";
/// How long readiness may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where an agent writes.
#[derive(Clone, Debug)]
pub struct Directories {
    /// Its `--export-dir`.
    pub export: PathBuf,
    /// Its `--state-dir`.
    pub state: PathBuf,
}

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    netns: OwnedFd,
    /// Its standard error.
    pub stderr: PathBuf,
    /// Its `--export-dir`.
    pub export_dir: PathBuf,
    /// Its `--state-dir`.
    pub state_dir: PathBuf,
}

impl Agent {
    /// Starts the agent of a node with `extra` arguments and waits until it is ready. Export and
    /// state directories are the node's own in the lab's directory; the export is renewed every
    /// second unless `extra` says otherwise.
    ///
    /// # Errors
    /// It ends, or is not ready in time; the message has its standard error.
    pub fn start(lab: &Lab, node: usize, extra: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(lab, node, extra)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// The same after `prepare` has changed how the process is started: its environment, its
    /// limits, what is mounted.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_prepared(
        lab: &Lab,
        node: usize,
        extra: &[&str],
        prepare: impl FnOnce(&mut Command, &Directories) -> Result<()>,
    ) -> Result<Self> {
        let mut agent = Self::spawn_prepared(lab, node, extra, prepare)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts the agent without waiting.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn(lab: &Lab, node: usize, extra: &[&str]) -> Result<Self> {
        Self::spawn_prepared(lab, node, extra, |_, _| Ok(()))
    }

    /// Starts the agent without waiting, after `prepare` has changed how the process is started.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn_prepared(
        lab: &Lab,
        node: usize,
        extra: &[&str],
        prepare: impl FnOnce(&mut Command, &Directories) -> Result<()>,
    ) -> Result<Self> {
        let name = &lab.nodes[node].name;
        let stderr = lab.directory.join(format!("agent-{name}.stderr"));
        let directories = Directories {
            export: lab.directory.join(format!("policies-{name}")),
            state: lab.directory.join(format!("state-{name}")),
        };
        let mut command = Command::new(bins::find("guardrail-agent"));
        if !extra.contains(&"--inventory") {
            command.arg("--inventory").arg(lab.inventory());
        }
        command
            .args(["--node", name, "--listen", LISTEN, "--local-listen", LOCAL_LISTEN])
            .arg("--cgroup-root")
            .arg(&lab.nodes[node].cgroup)
            .arg("--export-dir")
            .arg(&directories.export)
            .arg("--state-dir")
            .arg(&directories.state)
            .args(if extra.contains(&"--export-interval") { &[][..] } else { &["--export-interval", "1"] })
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&stderr)?);
        prepare(&mut command, &directories)?;
        let child = lab.spawn_on_node(node, "guardrail-agent", command)?;
        let netns = lab.nodes[node].netns.as_fd().try_clone_to_owned()?;
        let Directories { export: export_dir, state: state_dir } = directories;
        Ok(Self { child, netns, stderr, export_dir, state_dir })
    }

    /// Starts a command that runs the agent inside a container on a node, listening at [`LISTEN`].
    /// `state_dir` is where its state lies outside.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn_contained(
        lab: &Lab,
        node: usize,
        mut command: Command,
        container: &Container,
        state_dir: PathBuf,
    ) -> Result<Self> {
        let stderr = lab.directory.join(format!("agent-{}.stderr", lab.nodes[node].name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&stderr)?);
        let child = lab.spawn_contained(node, "guardrail-agent", command, container)?;
        let netns = lab.nodes[node].netns.as_fd().try_clone_to_owned()?;
        Ok(Self { child, netns, stderr, export_dir: PathBuf::new(), state_dir })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time; the message has its standard error.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = wait_until(PATIENCE, "the agent says that it is ready", || {
            match self.child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return Some(Err(format!("it ended with {status}"))),
                Err(error) => return Some(Err(error.to_string())),
            }
            matches!(self.get("/readyz"), Ok((200, _))).then_some(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => bail!("the agent did not become ready: {why}\n{}", self.said()),
            Err(error) => bail!("{error}\n{}", self.said()),
        }
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// GET from the agent: status and body.
    ///
    /// # Errors
    /// No connection, or no HTTP.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        get(&self.netns, LISTEN.parse()?, path)
    }

    /// Where a port-forward to this agent's pod leads: to the loopback of its node's namespace.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn forward(&self) -> Result<Forward> {
        let netns = self.netns.try_clone()?;
        let connect = move |port| {
            let inside = || netns::enter(netns.as_fd()).and_then(|()| TcpStream::connect(("127.0.0.1", port)));
            thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
        };
        Ok(Forward::To(Box::new(connect)))
    }

    /// The graph of everything that the agent keeps, as commands ask for it.
    ///
    /// # Errors
    /// As [`Agent::get`], or no JSON.
    pub fn snapshot(&self) -> Result<Value> {
        let (status, body) = self.get("/v1/graph?since=1970-01-01")?;
        if status != 200 {
            bail!("/v1/graph answers {status}: {body}");
        }
        serde_json::from_str(&body).context("/v1/graph is not JSON")
    }

    /// The value of one series in `/metrics`: the first line that starts with `series` and a blank.
    ///
    /// # Errors
    /// As [`Agent::get`], or there is no such series.
    pub fn metric(&self, series: &str) -> Result<f64> {
        let (_, page) = self.get("/metrics")?;
        let line = page
            .lines()
            .find_map(|l| l.strip_prefix(series)?.strip_prefix(' '))
            .with_context(|| format!("no series {series} in /metrics"))?;
        line.trim().parse().with_context(|| format!("{series} is no number: {line}"))
    }

    /// Ids of the BPF programs and links that the process holds, from `/proc/PID/fdinfo`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn bpf_ids(&self) -> Result<BpfIds> {
        let mut ids = BpfIds::default();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid()))?.flatten() {
            let info = fs::read_to_string(entry.path()).unwrap_or_default();
            let number = |key: &str| info.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u32>().ok());
            ids.links.extend(number("link_id:"));
            ids.programs.extend(number("prog_id:"));
        }
        Ok(ids)
    }

    /// Kernel memory of the BPF maps that the process holds, bytes, from `/proc/PID/fdinfo`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn map_bytes(&self) -> Result<u64> {
        let mut maps = std::collections::BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid()))?.flatten() {
            let info = fs::read_to_string(entry.path()).unwrap_or_default();
            let number = |key: &str| info.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok());
            // Iterators show a map's id too, but not its size.
            maps.extend(number("map_id:").zip(number("memlock:")));
        }
        Ok(maps.into_values().sum())
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Errors
    /// It does not end within ten seconds.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        // SAFETY: our own child, not yet waited for, so the number is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        process::wait(&mut self.child, Duration::from_secs(10))
            .with_context(|| format!("the agent does not end on SIGTERM\n{}", self.said()))
    }

    /// Waits until it ends by itself, or at somebody else's hand.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn wait_ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        process::wait(&mut self.child, limit).with_context(|| format!("the agent runs on\n{}", self.said()))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: our own child, not yet waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(self.pid().cast_signed(), signal) }, 0, "the agent is there");
    }

    /// Waits until it refuses to start: exit code 2 and one sentence, which is given.
    ///
    /// # Errors
    /// It runs on, ends otherwise, or says more.
    pub fn refused(mut self) -> Result<String> {
        let status = process::wait(&mut self.child, PATIENCE)
            .with_context(|| format!("the agent does not refuse to start\n{}", self.said()))?;
        let said = self.said();
        if status.code() != Some(2) || said.lines().count() != 1 {
            bail!("the agent ended with {status} and said:\n{said}");
        }
        Ok(said)
    }

    /// Time on a CPU since its start, in user and kernel mode, from `/proc/PID/stat` (proc(5):
    /// `utime` and `stime`).
    ///
    /// # Errors
    /// The process is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The second field, the name, may hold blanks and parentheses.
        let after = stat.rsplit_once(')').context("no name in stat")?.1;
        let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        // SAFETY: no pointers.
        let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
        Ok(Duration::from_millis(ticks * 1000 / per_second.max(1)))
    }

    /// A figure in KiB from `/proc/PID/status`: `VmRSS`, `VmHWM`.
    ///
    /// # Errors
    /// The process is gone, or there is no such line.
    pub fn memory_kib(&self, name: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|l| l.split_whitespace().next()).context("no such line in status")?;
        Ok(number.parse()?)
    }

    /// A path as the agent sees it: in its own mount namespace.
    #[must_use]
    pub fn seen_by_agent(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix("/").unwrap_or(path);
        Path::new("/proc").join(self.pid().to_string()).join("root").join(below)
    }

    /// Runs a command in the agent's mount namespace.
    ///
    /// # Errors
    /// It fails; the message has its standard error.
    pub fn in_mount_namespace(&self, command: &[&str]) -> Result<()> {
        let output = Command::new("nsenter").args(["-t", &self.pid().to_string(), "-m"]).args(command).output()?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Kills it at once (a crash).
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn crash(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the agent said:\n{}", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// BPF objects by id. The kernel gives ids out in rising order, so one that is gone does not soon
/// come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfIds {
    /// Program ids.
    pub programs: BTreeSet<u32>,
    /// Link ids.
    pub links: BTreeSet<u32>,
}

impl BpfIds {
    /// Which of these the kernel still has.
    ///
    /// # Errors
    /// `bpftool` fails.
    pub fn still_there(&self) -> Result<Self> {
        let of = |kind: &str| -> Result<BTreeSet<u32>> {
            let output = Command::new("bpftool").args(["-j", kind, "show"]).output().context("cannot run bpftool")?;
            let list: Value = serde_json::from_slice(&output.stdout).context("bpftool prints JSON")?;
            let list = list.as_array().cloned().unwrap_or_default();
            Ok(list.iter().filter_map(|o| u32::try_from(o["id"].as_u64()?).ok()).collect())
        };
        let (programs, links) = (of("prog")?, of("link")?);
        Ok(Self {
            programs: self.programs.intersection(&programs).copied().collect(),
            links: self.links.intersection(&links).copied().collect(),
        })
    }
}

/// HTTP GET from inside a network namespace: status and body.
///
/// # Errors
/// No connection within five seconds, or no HTTP.
pub fn get(netns: &OwnedFd, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let exchange = || -> Result<String> {
        netns::enter(netns.as_fd())?;
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        // HTTP/1.0: the answer is not chunked and ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: lab\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = thread::scope(|scope| scope.spawn(exchange).join()).expect("the request does not panic")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("not HTTP")?;
    Ok((status, body.to_owned()))
}

/// Runs `guardrail` with these arguments to its end.
///
/// # Errors
/// It cannot be started.
pub fn guardrail<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Output> {
    Command::new(bins::find("guardrail")).args(args).stdin(Stdio::null()).output().context("cannot run guardrail")
}

/// Merges snapshots with `guardrail merge`.
///
/// # Errors
/// The command fails.
pub fn merge(files: &[PathBuf], into: &Path) -> Result<Value> {
    let mut args: Vec<std::ffi::OsString> = vec!["merge".into()];
    args.extend(files.iter().map(Into::into));
    args.extend(["--output".into(), into.into()]);
    let output = guardrail(args)?;
    if !output.status.success() {
        bail!("guardrail merge: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_str(&fs::read_to_string(into)?).context("a merged snapshot is JSON")
}
