//! The application of the lab: serves and calls as its scenario file says, and logs each connection
//! that it really made.

pub mod call;
pub mod dns;
pub mod log;
pub mod measured;
pub mod proxy;
pub mod random;
pub mod scenario;
pub mod serve;

use std::{
    io::{BufRead as _, Write as _},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};

use self::{
    call::Caller,
    log::Log,
    scenario::{How, Scenario},
    serve::Served,
};

/// Runs the scenario in the file at `path` to its end; see [`Scenario`] for the order of things.
///
/// # Errors
/// The scenario cannot be read, or a served address cannot be bound.
pub fn run(path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read scenario {}", path.display()))?;
    let scenario: Scenario = serde_json::from_str(&text).with_context(|| format!("bad scenario {}", path.display()))?;
    if let Some(cpu) = scenario.cpu {
        pin_to_cpu(cpu)?;
    }
    let log = Arc::new(
        Log::create(&scenario.log, &scenario.process)
            .with_context(|| format!("cannot create {}", scenario.log.display()))?,
    );
    let served = Arc::new(Served::start(&scenario.serve, &log)?);
    let caller = Arc::new(Caller::new(&scenario, log, served));
    for (index, call) in scenario.before.iter().enumerate() {
        caller.run(call, index as u64, true);
    }
    if scenario.spin {
        thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    say("ready");
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "go" => {
                let (caller, scenario) = (caller.clone(), scenario.clone());
                thread::spawn(move || {
                    // Whoever waits for the end learns at once that it does not come.
                    if thread::spawn(move || run_after(&caller, &scenario)).join().is_err() {
                        std::process::exit(101);
                    }
                });
            }
            "enough" => caller.enough(),
            "stop" => break,
            _ => {}
        }
    }
    std::process::exit(0)
}

fn run_after(caller: &Arc<Caller>, scenario: &Scenario) {
    caller.use_held();
    thread::scope(|scope| {
        for (index, call) in scenario.after.iter().enumerate() {
            scope.spawn(move || caller.run(call, 1000 + index as u64, false));
        }
    });
    if let Some([decile, median, p99]) = caller.stopwatch.take() {
        say(&format!("took-ns {decile} {median} {p99}"));
    }
    if scenario.exit_when_done && !scenario.after.iter().any(|c| matches!(c.how, How::Held | How::HeldMptcp)) {
        say("done");
        std::process::exit(0);
    }
    say("done");
}

fn say(word: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever started us may be gone; then the end of standard input ends us as well.
    let _ = writeln!(out, "{word}").and_then(|()| out.flush());
}

fn pin_to_cpu(cpu: usize) -> Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set; CPU_SET writes within it for any index below
    // CPU_SETSIZE (checked by libc's bounds).
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if done == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error()).with_context(|| format!("cannot stay on CPU {cpu}"))
    }
}
