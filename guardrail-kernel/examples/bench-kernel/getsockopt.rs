//! What the program at `cgroup/getsockopt` costs: once a proxy listens on the node, every such call
//! passes it, and only `SO_ORIGINAL_DST` concerns it.
//!
//! By the clock: a call without it, with an empty program and with guardrail's, in turn (`clock.rs`
//! says why). By the kernel's statistics: the time of one run.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use guardrail_kernel::Kernel;

use super::{
    LIMIT, Result, clock, fresh,
    net::Net,
    programs::{Empty, ORIGINAL_DST_PROGRAM, with_ours},
    settle,
};

/// `SO_ORIGINAL_DST` (`include/uapi/linux/netfilter_ipv4.h`).
const ORIGINAL_DST: libc::c_int = 80;
/// Calls that are timed together: reading the clock takes as long as a short one.
const TOGETHER: u32 = 20;
/// Times of a round.
const SAMPLES: usize = 500;
/// Connections of a round, where each is asked once. Both ends are of this process, whose number of
/// open files is bounded.
const CONNECTIONS: usize = 200;
/// Time between two sweeps of the agent's reader, which tells when its program is attached.
const SWEEP: Duration = Duration::from_millis(20);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// `SO_TYPE`.
    Type,
    /// `TCP_INFO`.
    Info,
    /// `SO_ORIGINAL_DST` of a connection that was asked about before.
    Again,
    /// The first `SO_ORIGINAL_DST` of a connection, as a proxy asks it.
    First,
}

impl Question {
    const ALL: [(&'static str, Self); 4] = [
        ("SO_TYPE", Self::Type),
        ("TCP_INFO", Self::Info),
        ("SO_ORIGINAL_DST, asked before", Self::Again),
        ("SO_ORIGINAL_DST, first of a connection", Self::First),
    ];

    fn ask(self, socket: &TcpStream) -> std::io::Result<()> {
        let (level, option, room) = match self {
            Self::Type => (libc::SOL_SOCKET, libc::SO_TYPE, 4),
            Self::Info => (libc::IPPROTO_TCP, libc::TCP_INFO, 104),
            Self::Again | Self::First => (libc::IPPROTO_IP, ORIGINAL_DST, size_of::<libc::sockaddr_in>()),
        };
        let mut bytes = [0u8; 128];
        let mut length = room as libc::socklen_t;
        // SAFETY: the kernel writes no more than `length` bytes.
        let asked =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, bytes.as_mut_ptr().cast(), &raw mut length) };
        if asked == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }
}

/// Calls `ask` on redirected connections: with so many calls for each of the times it gives.
fn asked<T: Send>(
    net: &Net,
    proxy: &TcpListener,
    question: Question,
    work: impl FnOnce(&mut dyn FnMut() -> std::io::Result<()>, u32, usize) -> Result<T> + Send,
) -> Result<T> {
    net.redirected(proxy, |open| {
        if question == Question::First {
            let all: Vec<_> = (0..CONNECTIONS).map(|_| open()).collect::<std::io::Result<_>>()?;
            let mut each = all.iter();
            let mut ask = || each.next().map_or(Ok(()), |(_, server)| question.ask(server));
            return work(&mut ask, 1, CONNECTIONS);
        }
        let (_client, server) = open()?;
        question.ask(&server)?;
        work(&mut || question.ask(&server), TOGETHER, SAMPLES)
    })
}

/// Nanoseconds of an undisturbed call.
fn quick(net: &Net, proxy: &TcpListener, question: Question) -> Result<f64> {
    asked(net, proxy, question, |ask, together, samples| {
        let mut took = Vec::with_capacity(samples);
        for _ in 0..samples {
            let begin = Instant::now();
            for _ in 0..together {
                ask()?;
            }
            took.push(begin.elapsed());
        }
        let (_, at, _) = took.select_nth_unstable(samples / 10);
        Ok(at.as_nanos() as f64 / f64::from(together))
    })
}

/// Runs `work` while guardrail's program is attached: it comes when the proxy's listener is seen.
fn attached<T>(work: impl FnOnce(&Kernel) -> Result<T>) -> Result<T> {
    with_ours(false, Some(SWEEP), |kernel| {
        let deadline = Instant::now() + LIMIT;
        while !kernel.stats().programs.contains_key(ORIGINAL_DST_PROGRAM) {
            if Instant::now() > deadline {
                return Err("the program at getsockopt was not attached".into());
            }
            thread::sleep(SWEEP);
        }
        work(kernel)
    })
}

/// Measures by the clock, and prints.
pub(crate) fn by_clock(net: &Net, rounds: usize) -> Result<()> {
    println!(
        "ns per getsockopt by the clock; what comes on top with an empty program and with guardrail's: median (and quartiles) of {rounds} rounds; millions of calls per second without, with empty, with guardrail's\n"
    );
    println!("{:<42}{:>10}{:>26}{:>26}{:>22}", "call", "without", "empty", "guardrail", "calls");
    let proxy = net.proxy()?;
    for (name, question) in Question::ALL {
        let [without, empty, ours] = clock::alternate(rounds, |which| match which {
            0 => quick(net, &proxy, question),
            1 => {
                let _attached = Empty::getsockopt()?;
                quick(net, &proxy, question)
            }
            _ => attached(|_| quick(net, &proxy, question)),
        })?;
        let base = without[1];
        let calls = [base, base + empty[1], base + ours[1]].map(|ns| format!("{:.2}", 1e3 / ns)).join(", ");
        println!("{name:<42}{base:>10.0}{:>26}{:>26}{calls:>22}", clock::cell(empty), clock::cell(ours));
    }
    println!();
    Ok(())
}

/// Nanoseconds of one run of a program, whoever called: the least of some samples.
fn run_ns(
    net: &Net,
    proxy: &TcpListener,
    question: Question,
    reading: &(dyn Fn() -> Result<(u64, u64)> + Sync),
) -> Result<f64> {
    asked(net, proxy, question, |ask, together, samples| {
        settle();
        let before = reading()?;
        for _ in 0..samples * together as usize {
            ask()?;
        }
        let after = reading()?;
        let (ns, runs) = (after.0 - before.0, after.1 - before.1);
        if runs == 0 {
            return Err("the program did not run".into());
        }
        Ok(ns as f64 / runs as f64)
    })
}

/// Measures by the kernel's statistics, which are on, and prints.
pub(crate) fn by_statistics(net: &Net, rounds: usize) -> Result<()> {
    println!("ns per run at getsockopt by the kernel's statistics; least of {rounds} rounds\n");
    println!("{:<42}{:>16}{:>16}{:>9}", "call", "guardrail", "empty", "above");
    let proxy = net.proxy()?;
    for (name, question) in Question::ALL {
        let (mut ours, mut none) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..rounds {
            let empty = Empty::getsockopt()?;
            none = none.min(run_ns(net, &proxy, question, &|| empty.reading())?);
            drop(empty);
            let own = |kernel: &Kernel| run_ns(net, &proxy, question, &|| fresh(kernel, Some(ORIGINAL_DST_PROGRAM)));
            ours = ours.min(attached(own)?);
        }
        println!("{name:<42}{ours:>16.0}{none:>16.0}{:>9.0}", ours - none);
    }
    Ok(())
}
