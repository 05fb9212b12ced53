//! What the kernel programs cost: `cargo xtask bench kernel` (root).
//!
//! Two network namespaces over a bridge in a third; client and server are threads of this process. The kernel's own statistics (`BPF_ENABLE_STATS`) give the time
//! of every run; both ends run on this machine, so a figure is both ends together. Beside them, in the same run and in turn: empty programs on the same hooks,
//! because the statistics' own clock reads already cost tens of nanoseconds a run. The least of many samples is shown: whatever else happens on the
//! machine runs through the same hooks and only adds.

use std::{
    error::Error,
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr},
    sys::{Stats, enable_stats},
};
use guardrail_agent::kernel::{Kernel, KernelConfig, OBJECT, find_cgroup2_root};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Samples of a round, with the programs attached once.
const SAMPLES: usize = 6;
/// Operations of a sample.
const OPERATIONS: u32 = 1000;
const BYTES: usize = 64;
const LIMIT: Duration = Duration::from_secs(10);

const SERVER: &str = "10.213.7.2";
const TCP: u16 = 7001;
const UDP: u16 = 7002;

/// Three namespaces, removed with everything in them.
struct Net {
    names: [String; 3],
}

impl Net {
    fn new() -> Result<Self> {
        let id = std::process::id();
        let net = Self { names: ["bridge", "client", "server"].map(|role| format!("guardrail-bench-{id}-{role}")) };
        for name in &net.names {
            ip(&format!("netns add {name}"))?;
        }
        let [bridge, client, server] = &net.names;
        ip(&format!("-n {bridge} link add br0 type bridge"))?;
        ip(&format!("-n {bridge} link set br0 up"))?;
        for (port, name, address) in [("p1", client, "10.213.7.1/24"), ("p2", server, "10.213.7.2/24")] {
            ip(&format!("-n {bridge} link add {port} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {bridge} link set {port} master br0 up"))?;
            ip(&format!("-n {name} addr add {address} dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
        }
        // Every connection of the run comes from another port.
        net.inside(1, || -> Result<()> {
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")?;
            Ok(std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?)
        })?;
        Ok(net)
    }

    /// Runs `work` on a thread inside a namespace, to its end.
    fn inside<T: Send>(&self, which: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&self.names[which])?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err("a thread of the benchmark panicked".into()))
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = ip(&format!("netns delete {name}")) {
                eprintln!("{error}");
            }
        }
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Moves this thread into a named network namespace.
fn enter(name: &str) -> Result<()> {
    let file = File::open(format!("/run/netns/{name}"))?;
    // SAFETY: a descriptor of a network namespace; only this thread moves.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// What is done `OPERATIONS` times a sample.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Connection,
    TcpRequest,
    UdpRequest,
}

/// The servers, in their namespace, for as long as the channel lives.
fn serve(net: &Net) -> Result<()> {
    let (ready, is_ready) = mpsc::channel();
    let name = net.names[2].clone();
    thread::spawn(move || {
        let servers = || -> Result<(TcpListener, UdpSocket)> {
            enter(&name)?;
            Ok((TcpListener::bind((SERVER, TCP))?, UdpSocket::bind((SERVER, UDP))?))
        };
        match servers() {
            Ok((tcp, udp)) => {
                thread::spawn(move || {
                    let mut buffer = [0; BYTES];
                    while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                        let _ = udp.send_to(&buffer, from);
                    }
                });
                let _ = ready.send(Ok(()));
                for stream in tcp.incoming().flatten() {
                    let _ = answer(stream);
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
    is_ready.recv_timeout(LIMIT)?
}

/// Answers every request until the client closes.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; BYTES];
    while stream.read_exact(&mut buffer).is_ok() {
        stream.write_all(&buffer)?;
    }
    Ok(())
}

fn connect() -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(([10, 213, 7, 2], TCP)), LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [7; BYTES];
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer)
}

/// Prepares and works, with a reading before and after each sample; gives nanoseconds and runs per operation of the least.
fn measure(net: &Net, work: Work, reading: &(dyn Fn() -> Result<(u64, u64)> + Sync)) -> Result<(f64, f64)> {
    net.inside(1, || match work {
        Work::Connection => samples(reading, || Ok(ask(&mut connect()?)?)),
        Work::TcpRequest => {
            let mut stream = connect()?;
            samples(reading, || Ok(ask(&mut stream)?))
        }
        Work::UdpRequest => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((SERVER, UDP))?;
            socket.set_read_timeout(Some(LIMIT))?;
            let mut buffer = [7; BYTES];
            samples(reading, || {
                socket.send(&buffer)?;
                socket.recv(&mut buffer)?;
                Ok(())
            })
        }
    })
}

fn samples(
    reading: &(dyn Fn() -> Result<(u64, u64)> + Sync),
    mut operation: impl FnMut() -> Result<()>,
) -> Result<(f64, f64)> {
    operation()?;
    let mut result = (f64::INFINITY, 0.0);
    for _ in 0..SAMPLES {
        settle();
        let before = reading()?;
        for _ in 0..OPERATIONS {
            operation()?;
        }
        settle();
        let after = reading()?;
        let per = |a: u64, b: u64| b.saturating_sub(a) as f64 / f64::from(OPERATIONS);
        result = least(result, (per(before.0, after.0), per(before.1, after.1)));
    }
    Ok(result)
}

/// Late FINs and acknowledgements of what went before still run through the hooks.
fn settle() {
    thread::sleep(Duration::from_millis(20));
}

/// The empty programs, attached until dropped.
struct Empty(Ebpf);

impl Empty {
    fn attach(udp: bool) -> Result<Self> {
        let btf = Btf::from_sys_fs()?;
        let mut ebpf = EbpfLoader::new().map_max_entries("FLOWS", 1).load(OBJECT)?;
        let root = File::open(find_cgroup2_root()?)?;
        let missing = "the object lacks an empty program";
        for name in ["empty_tp", "empty_second_tp"] {
            let program: &mut BtfTracePoint = ebpf.program_mut(name).ok_or(missing)?.try_into()?;
            program.load("inet_sock_set_state", &btf)?;
            program.attach()?;
        }
        if udp {
            for (name, direction) in
                [("empty_egress", CgroupSkbAttachType::Egress), ("empty_ingress", CgroupSkbAttachType::Ingress)]
            {
                let program: &mut CgroupSkb = ebpf.program_mut(name).ok_or(missing)?.try_into()?;
                program.load()?;
                program.attach(&root, direction, CgroupAttachMode::Single)?;
            }
            let program: &mut CgroupSockAddr = ebpf.program_mut("empty_sendmsg4").ok_or(missing)?.try_into()?;
            program.load()?;
            program.attach(&root, CgroupAttachMode::Single)?;
        }
        Ok(Self(ebpf))
    }

    fn reading(&self) -> Result<(u64, u64)> {
        let mut sum = (0, 0);
        for (_, program) in self.0.programs() {
            if program.fd().is_ok() {
                let info = program.info()?;
                sum.0 += u64::try_from(info.run_time().as_nanos())?;
                sum.1 += info.run_count();
            }
        }
        Ok(sum)
    }
}

/// The figures of the agent's programs, as of a sweep that began after now.
fn fresh(kernel: &Kernel) -> Result<(u64, u64)> {
    let now = kernel.stats().sweeps;
    let deadline = Instant::now() + LIMIT;
    loop {
        let stats = kernel.stats();
        if stats.sweeps >= now + 2 {
            return Ok(stats.programs.values().fold((0, 0), |sum, p| (sum.0 + p.run_ns, sum.1 + p.runs)));
        }
        if Instant::now() > deadline {
            return Err("the agent's reader does not sweep".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn one_round(net: &Net, work: Work, udp: bool, empty: bool) -> Result<(f64, f64)> {
    if empty {
        let empty = Empty::attach(udp)?;
        return measure(net, work, &|| empty.reading());
    }
    let mut config = KernelConfig::new(find_cgroup2_root()?);
    config.udp = udp;
    config.sweep_interval = Duration::from_millis(20);
    let (kernel, mut observations) = Kernel::start(config, None)?;
    let drain = thread::spawn(move || while observations.blocking_recv().is_some() {});
    let result = measure(net, work, &|| fresh(&kernel));
    let _ = kernel.shutdown();
    drain.join().map_err(|_| "the receiving thread panicked")?;
    result
}

fn least(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    if b.0 < a.0 { b } else { a }
}

/// Measures the cost of guardrail's kernel programs.
#[derive(Debug, clap::Parser)]
#[command(name = "bench-kernel")]
struct Args {
    /// Rounds of which the least counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only the rows with the UDP programs off or on.
    #[arg(long, value_name = "off|on")]
    udp: Option<Udp>,
}

/// Whether the UDP programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Udp {
    Off,
    On,
}

fn main() -> Result<()> {
    let args = <Args as clap::Parser>::parse();
    let _stats: OwnedFd = enable_stats(Stats::RunTime)?;
    let net = Net::new()?;
    serve(&net)?;
    println!(
        "ns per operation in kernel programs, both ends together; least of {} rounds of {SAMPLES} samples of {OPERATIONS}; runs per operation in brackets\n",
        args.rounds
    );
    println!("{:<42}{:>5}{:>16}{:>16}{:>9}{:>8}  aim", "operation", "udp", "guardrail", "empty", "above", "ratio");
    let rows = [
        ("TCP connect, request, response, close", Work::Connection, false, "above <= 200"),
        ("TCP request, response", Work::TcpRequest, false, "0"),
        ("TCP connect, request, response, close", Work::Connection, true, ""),
        ("TCP request, response", Work::TcpRequest, true, "ratio <= 1.15"),
        ("UDP request, response", Work::UdpRequest, true, "above <= 150"),
    ];
    for (name, work, udp, aim) in rows.into_iter().filter(|row| args.udp.is_none_or(|udp| (udp == Udp::On) == row.2)) {
        let start = (f64::INFINITY, 0.0);
        let (mut ours, mut empty) = (start, start);
        for _ in 0..args.rounds {
            empty = least(empty, one_round(&net, work, udp, true)?);
            ours = least(ours, one_round(&net, work, udp, false)?);
        }
        let cell = |(ns, runs): (f64, f64)| format!("{ns:.0} ({runs:.1})");
        let ratio = if empty.0 > 0.0 { format!("{:.2}", ours.0 / empty.0) } else { "-".to_owned() };
        println!(
            "{name:<42}{:>5}{:>16}{:>16}{:>9.0}{ratio:>8}  {aim}",
            if udp { "on" } else { "off" },
            cell(ours),
            cell(empty),
            ours.0 - empty.0
        );
    }
    Ok(())
}
