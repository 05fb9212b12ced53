//! Two ends in namespaces of their own, and what is done between them.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use super::Result;

const BYTES: usize = 64;
/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

const SERVER: &str = "10.213.7.2";
const TCP: u16 = 7001;
const UDP: u16 = 7002;
/// What is called here arrives at the proxy's port.
const REDIRECTED: u16 = 7003;
/// A port at which the agent takes a listener for a proxy.
const PROXY: u16 = 15006;

/// Three namespaces, removed with everything in them.
pub(crate) struct Net {
    names: [String; 3],
}

impl Net {
    pub(crate) fn new() -> Result<Self> {
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

    /// The servers, in their namespace, to the end of the process.
    pub(crate) fn serve(&self) -> Result<()> {
        let (ready, is_ready) = mpsc::channel();
        let name = self.names[2].clone();
        thread::spawn(move || match bind(&name) {
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
        });
        is_ready.recv_timeout(LIMIT)?
    }

    /// Calls `repeat` in the client's namespace with one operation of this kind.
    pub(crate) fn client<T: Send>(
        &self,
        work: Work,
        repeat: impl FnOnce(&mut dyn FnMut() -> std::io::Result<()>) -> Result<T> + Send,
    ) -> Result<T> {
        self.inside(1, || {
            share_a_cpu()?;
            match work {
                Work::Reset => repeat(&mut || reset(&connect(TCP)?)),
                Work::Connection => repeat(&mut || ask(&mut connect(TCP)?)),
                Work::TcpRequest => {
                    let mut stream = connect(TCP)?;
                    repeat(&mut || ask(&mut stream))
                }
                Work::UdpRequest => {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect((SERVER, UDP))?;
                    socket.set_read_timeout(Some(LIMIT))?;
                    let mut buffer = [7; BYTES];
                    repeat(&mut || {
                        socket.send(&buffer)?;
                        socket.recv(&mut buffer).map(drop)
                    })
                }
            }
        })
    }

    /// The socket of a proxy beside the server, to which connections are redirected.
    pub(crate) fn proxy(&self) -> Result<TcpListener> {
        self.inside(2, || {
            let rule = format!("-t nat -A PREROUTING -p tcp --dport {REDIRECTED} -j REDIRECT --to-ports {PROXY}");
            let output = Command::new("iptables").args(rule.split(' ')).output()?;
            if !output.status.success() {
                return Err(format!("iptables {rule}: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
            }
            Ok(TcpListener::bind(("0.0.0.0", PROXY))?)
        })
    }

    /// Calls `work` in the client's namespace with what opens a connection that arrives at the
    /// proxy, and gives its two ends. They leave nothing behind.
    pub(crate) fn redirected<T: Send>(
        &self,
        proxy: &TcpListener,
        work: impl FnOnce(&mut dyn FnMut() -> std::io::Result<(TcpStream, TcpStream)>) -> Result<T> + Send,
    ) -> Result<T> {
        self.inside(1, || {
            share_a_cpu()?;
            work(&mut || {
                let client = connect(REDIRECTED)?;
                reset(&client)?;
                Ok((client, proxy.accept()?.0))
            })
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

/// Moves this thread, and those it will start, to the first CPU: client and server in turn on one
/// never wait for a CPU to wake up, which takes longer than all that is measured, and never the
/// same time.
fn share_a_cpu() -> Result<()> {
    // SAFETY: a set of CPUs is plain data, and the call reads no more than its size.
    let moved = unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus)
    };
    if moved != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Connect and reset.
    Reset,
    /// Connect, request, answer, close.
    Connection,
    /// Request and answer on a connection that is open.
    TcpRequest,
    /// Datagram and answer.
    UdpRequest,
}

fn bind(name: &str) -> Result<(TcpListener, UdpSocket)> {
    enter(name)?;
    share_a_cpu()?;
    let tcp = TcpListener::bind((SERVER, TCP))?;
    // A client that only resets may be far ahead of the server. Listening once more changes the
    // backlog (listen(2)). SAFETY: a descriptor that is open.
    if unsafe { libc::listen(tcp.as_raw_fd(), 4096) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok((tcp, UdpSocket::bind((SERVER, UDP))?))
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

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(([10, 213, 7, 2], port)), LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Has the connection end with a reset when it is dropped.
fn reset(stream: &TcpStream) -> std::io::Result<()> {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is this structure (socket(7)).
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const at_once).cast(),
            size_of_val(&at_once) as libc::socklen_t,
        )
    };
    if set != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [7; BYTES];
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer)
}
