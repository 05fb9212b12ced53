//! One boot: qemu in, results out.
//!
//! The guest's first serial port (kernel messages) goes to a file, the second (the report that
//! `guest.sh` writes) to us, line by line. Every wait has an end: a guest that says nothing for
//! longer than a test may take is stopped, and what it did not report counts as failed.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{arch::Arch, suite::Suite};

/// How long one test may run under emulation.
pub(super) const TEST_LIMIT: Duration = Duration::from_secs(240);
/// How long the guest may take until its first line.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Beyond a test's own limit, for the guest to say so.
const GRACE: Duration = Duration::from_secs(60);

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed, and took so long.
    Passed(Duration),
    /// It failed with this exit code.
    Failed(i32, Duration),
    /// It was stopped at [`TEST_LIMIT`].
    TimedOut,
}

/// By program and source line.
pub(super) type Lines = BTreeMap<(String, String), u32>;

/// A place in the programs' source, without the path to it.
pub(super) fn source(place: &str) -> &str {
    place.rsplit_once("/guardrail-").map_or(place, |(_, rest)| rest)
}

/// What one guest reported.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// `uname -r`; empty if the guest did not come up.
    pub(super) release: String,
    /// From the start of qemu to the guest's first line.
    pub(super) boot: Duration,
    /// From the start of qemu to its end.
    pub(super) total: Duration,
    /// By index in the suite.
    pub(super) outcomes: BTreeMap<usize, Outcome>,
    /// Why a test that passed did not really run, by index in the suite.
    pub(super) not_run: BTreeMap<usize, String>,
    /// Output of failed tests, by index in the suite.
    pub(super) outputs: BTreeMap<usize, String>,
    /// The most instructions that the verifier walked, by program (first 15 characters of its
    /// name).
    pub(super) instructions: BTreeMap<String, u32>,
    /// How often each source line (`file:line:column`) is left of a program after the verifier has
    /// removed what it takes for dead.
    pub(super) lines: Lines,
    /// What is wrong with the guest itself.
    pub(super) broken: Vec<String>,
    /// The guest reached its end.
    pub(super) done: bool,
    /// The test that runs, while reading.
    pub(super) current: Option<usize>,
    /// Its output comes, while reading.
    pub(super) in_output: bool,
}

impl Report {
    /// A test's cell of the table.
    pub(super) fn cell(&self, number: usize) -> String {
        match (self.outcomes.get(&number), self.not_run.get(&number)) {
            (Some(Outcome::Passed(_)), Some(_)) => "NOT RUN".to_owned(),
            (Some(Outcome::Passed(took)), None) => format!("ok {:.1} s", took.as_secs_f64()),
            (Some(Outcome::Failed(code, took)), _) => format!("FAILED ({code}) {:.1} s", took.as_secs_f64()),
            (Some(Outcome::TimedOut), _) => "TIMED OUT".to_owned(),
            // The guest did not get to it.
            (None, _) => "NO RESULT".to_owned(),
        }
    }

    /// Takes one line of the guest's report; gives what to show of it.
    fn line(&mut self, line: &str, suite: &Suite) -> Option<String> {
        let Some(event) = line.strip_prefix("@@ ") else {
            if let (true, Some(current)) = (self.in_output, self.current) {
                let output = self.outputs.entry(current).or_default();
                output.push_str(line);
                output.push('\n');
            }
            return None;
        };
        let words: Vec<&str> = event.split(' ').collect();
        match words[..] {
            ["kernel", release] => {
                release.clone_into(&mut self.release);
                Some(format!("  {release} is up"))
            }
            ["start", number] => {
                self.current = number.parse().ok();
                None
            }
            ["output"] => {
                self.in_output = true;
                None
            }
            ["notrun", number, ..] => {
                let why = event.splitn(3, ' ').nth(2).unwrap_or_default();
                self.not_run.insert(number.parse().ok()?, why.to_owned());
                None
            }
            ["end", number, code, hundredths] => {
                self.in_output = false;
                self.current = None;
                let (number, code) = (number.parse().ok()?, code.parse().ok()?);
                let took = Duration::from_millis(hundredths.parse::<u64>().ok()? * 10);
                let outcome = match code {
                    0 => Outcome::Passed(took),
                    // busybox's timeout dies of, or reports, the signal it sent.
                    _ if took >= TEST_LIMIT => Outcome::TimedOut,
                    code => Outcome::Failed(code, took),
                };
                self.outcomes.insert(number, outcome);
                let test = suite.tests.get(number)?;
                let mut shown = format!("  {}::{} {}", test.target, test.name, self.cell(number));
                if let Some(output) = self.outputs.get(&number) {
                    shown.push('\n');
                    shown.push_str(output);
                }
                Some(shown)
            }
            ["verifier", program, count] => {
                let count: u32 = count.parse().ok()?;
                let most = self.instructions.entry(program.to_owned()).or_default();
                *most = count.max(*most);
                None
            }
            ["line", program, count, place] => {
                self.lines.insert((program.to_owned(), source(place).to_owned()), count.parse().ok()?);
                None
            }
            ["broken", ..] => {
                let what = event.trim_start_matches("broken ").to_owned();
                self.broken.push(what.clone());
                Some(format!("  guest: {what}"))
            }
            ["done"] => {
                self.done = true;
                None
            }
            _ => None,
        }
    }
}

/// Boots, runs the suite, waits for the end.
pub(super) fn boot(arch: Arch, kernel: &Path, initramfs: &Path, console: &Path, suite: &Suite) -> Result<Report> {
    let start = Instant::now();
    let mut qemu = Qemu::start(arch, kernel, initramfs, console)?;
    let stdout = qemu.0.stdout.take().context("qemu has no output")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    let mut report = Report::default();
    let mut limit = BOOT_LIMIT;
    loop {
        match lines.recv_timeout(limit) {
            Ok(line) => {
                if let Some(shown) = report.line(&line, suite) {
                    eprintln!("{shown}");
                }
                if !report.release.is_empty() && report.boot.is_zero() {
                    report.boot = start.elapsed();
                    limit = TEST_LIMIT + GRACE;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                report.broken.push(format!("said nothing for {} s and was stopped", limit.as_secs()));
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(qemu);
    reader.join().expect("the reader does not panic");
    report.total = start.elapsed();
    if !report.done {
        report.broken.push(format!("did not reach its end; the kernel's messages are in {}", console.display()));
    }
    Ok(report)
}

/// A running qemu that does not outlive this value, nor this process.
struct Qemu(Child);

impl Qemu {
    fn start(arch: Arch, kernel: &Path, initramfs: &Path, console: &Path) -> Result<Self> {
        let (messages, report) = arch.ports();
        let mut command = arch.qemu();
        command
            .args(["-accel", "tcg", "-smp", "2", "-m", "1G", "-no-reboot", "-nodefaults", "-display", "none"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            // A panic ends the guest, and with -no-reboot qemu. What the kernel does not know goes
            // to the first process as a variable.
            .arg("-append")
            .arg(format!("console={messages} panic=-1 loglevel=4 report=/dev/{report}"))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(arch.report_port())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // SAFETY: prctl(PR_SET_PDEATHSIG) is async-signal-safe and touches nothing but the child
        // itself.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let program = command.get_program().to_os_string();
        command.spawn().map(Self).with_context(|| format!("cannot run {}", program.display()))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself; both calls then say so, and there is nothing left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::suite::Test, *};

    fn read(lines: &str) -> Report {
        let test = |name: &str| Test { binary: "/t".into(), target: "kernel".to_owned(), name: name.to_owned() };
        let suite = Suite { tests: ["a", "b", "c"].map(test).into(), programs: BTreeSet::new() };
        let mut report = Report::default();
        for line in lines.lines() {
            report.line(line, &suite);
        }
        report
    }

    #[test]
    fn a_report_is_read_line_by_line() {
        let report = read(
            "@@ kernel 6.1.0\n@@ start 0\n@@ end 0 0 150\n@@ start 1\n@@ output\nwhy\n@@ end 1 101 5\n\
             @@ verifier tcp 5\n@@ verifier tcp 9\n@@ verifier tcp 7\n@@ done",
        );
        assert_eq!(report.release, "6.1.0");
        assert_eq!(report.outcomes[&0], Outcome::Passed(Duration::from_millis(1500)));
        assert_eq!(report.outcomes[&1], Outcome::Failed(101, Duration::from_millis(50)));
        assert_eq!(report.outputs[&1], "why\n");
        assert_eq!(report.instructions["tcp"], 9);
        assert!(report.done && report.broken.is_empty());
    }

    #[test]
    fn a_test_that_says_it_did_not_run_is_not_shown_as_passed() {
        let report = read("@@ start 0\n@@ notrun 0 this kernel has no MPTCP\n@@ end 0 0 1\n@@ start 1\n@@ end 1 0 1");
        assert_eq!((report.cell(0).as_str(), report.cell(1).as_str()), ("NOT RUN", "ok 0.0 s"));
        assert_eq!(report.not_run[&0], "this kernel has no MPTCP");
    }

    #[test]
    fn a_test_without_an_end_has_no_outcome() {
        let report = read("@@ kernel 6.1.0\n@@ start 0\n@@ end 0 0 1\n@@ start 1");
        assert_eq!(report.outcomes.len(), 1);
        assert!(!report.done);
    }

    #[test]
    fn a_test_that_was_stopped_at_its_limit_timed_out() {
        let hundredths = TEST_LIMIT.as_millis() / 10 + 2;
        let report = read(&format!("@@ start 2\n@@ output\n@@ end 2 137 {hundredths}"));
        assert_eq!(report.outcomes[&2], Outcome::TimedOut);
    }

    #[test]
    fn a_module_that_does_not_load_makes_the_guest_broken() {
        assert_eq!(read("@@ broken veth.ko does not load").broken, ["veth.ko does not load"]);
    }
}
