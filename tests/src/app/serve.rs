//! Servers: TCP echo, UDP echo or sink, DNS.
//!
//! TCP frames are a big-endian `u32` length and that many bytes; each is echoed. The first frame of
//! a connection is the client's identifier.

use std::{
    collections::{BTreeMap, HashSet},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    dns,
    log::{Log, Outcome, Record, Side},
    measured, proxy,
    scenario::Serve,
};

/// A frame is never longer than this.
const MAX_FRAME_BYTES: usize = 1 << 20;
/// `IPPROTO_MPTCP`.
pub const MPTCP: i32 = 262;

/// The served UDP sockets, by port, for those who send from them.
#[derive(Debug, Default)]
pub struct Served {
    udp: BTreeMap<u16, UdpSocket>,
}

impl Served {
    /// Binds everything, then serves it from threads of its own.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn start(all: &[Serve], log: &Arc<Log>) -> Result<Self> {
        let mut served = Self::default();
        for one in all {
            match one {
                Serve::Tcp { bind, backlog, mptcp, reuse_port, v6_only } => {
                    let listener = listen(*bind, *backlog, *mptcp, *reuse_port, *v6_only)
                        .with_context(|| format!("cannot listen on {bind}"))?;
                    let log = log.clone();
                    thread::spawn(move || accept_all(&listener, &log, echo));
                }
                Serve::Measured { bind } => {
                    let listener =
                        listen(*bind, 4096, false, false, false).with_context(|| format!("cannot listen on {bind}"))?;
                    thread::spawn(move || measured::serve(&listener));
                }
                Serve::Proxy { port, on } => {
                    let listener = proxy::listen(*port, on).with_context(|| format!("cannot listen on {port}"))?;
                    let on = on.clone();
                    thread::spawn(move || proxy::serve(&listener, &on));
                }
                Serve::Udp { bind, reply, ignore } => {
                    let socket = bind_udp(*bind).with_context(|| format!("cannot bind UDP {bind}"))?;
                    served.udp.insert(bind.port(), socket.try_clone()?);
                    if !ignore {
                        let (log, reply) = (log.clone(), *reply);
                        thread::spawn(move || echo_datagrams(&socket, reply, &log));
                    }
                }
                Serve::Dns { bind, records } => {
                    let records = Arc::new(records.clone());
                    let socket = bind_udp(*bind).with_context(|| format!("cannot bind UDP {bind}"))?;
                    let listener =
                        listen(*bind, 128, false, false, false).with_context(|| format!("cannot listen on {bind}"))?;
                    let (udp_log, udp_records) = (log.clone(), records.clone());
                    thread::spawn(move || answer_datagrams(&socket, &udp_records, &udp_log));
                    let log = log.clone();
                    thread::spawn(move || {
                        accept_all(&listener, &log, move |stream, peer, log| {
                            answer_stream(stream, peer, &records, log)
                        });
                    });
                }
            }
        }
        Ok(served)
    }

    /// The socket that serves this UDP port.
    #[must_use]
    pub fn udp(&self, port: u16) -> Option<&UdpSocket> {
        self.udp.get(&port)
    }
}

fn listen(
    bind: SocketAddr,
    backlog: i32,
    mptcp: bool,
    reuse_port: bool,
    v6_only: bool,
) -> std::io::Result<TcpListener> {
    let protocol = if mptcp { Protocol::from(MPTCP) } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(protocol))?;
    if bind.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&bind.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

fn bind_udp(bind: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, None)?;
    if bind.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&bind.into())?;
    Ok(socket.into())
}

fn accept_all<F>(listener: &TcpListener, log: &Arc<Log>, serve: F)
where
    F: Fn(TcpStream, SocketAddr, &Log) -> std::io::Result<()> + Clone + Send + 'static,
{
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                let (log, serve) = (log.clone(), serve.clone());
                // The client's log says how its connection ended; what a broken one means is
                // decided there.
                thread::spawn(move || drop(serve(stream, peer, &log)));
            }
            Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNABORTED | libc::EMFILE | libc::ENFILE)) => {}
            Err(e) => panic!("accept failed: {e}"),
        }
    }
}

fn echo(mut stream: TcpStream, peer: SocketAddr, log: &Log) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = true;
    loop {
        let frame = read_frame(&mut stream)?;
        if first {
            // Logged before the answer: a client that saw its answer finds the server's record.
            log.write(Record {
                at_ns: 0,
                process: String::new(),
                side: Side::Server,
                protocol: "TCP".into(),
                local: Some(stream.local_addr()?),
                remote: peer,
                target: None,
                id: Some(String::from_utf8_lossy(&frame).into_owned()),
                outcome: Outcome::Accepted,
                sent: 0,
                received: frame.len() as u64,
                before: false,
            });
            first = false;
        }
        write_frame(&mut stream, &frame)?;
    }
}

/// Reads one frame.
///
/// # Errors
/// The stream ended or the length is absurd.
pub fn read_frame(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// Writes one frame in one call.
///
/// # Errors
/// The stream is broken.
pub fn write_frame(stream: &mut impl Write, frame: &[u8]) -> std::io::Result<()> {
    let mut bytes = u32::try_from(frame.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?.to_be_bytes().to_vec();
    bytes.extend_from_slice(frame);
    stream.write_all(&bytes)
}

fn datagram_record(socket: &UdpSocket, peer: SocketAddr, id: Option<String>, received: usize) -> Record {
    Record {
        at_ns: 0,
        process: String::new(),
        side: Side::Server,
        protocol: "UDP".into(),
        local: socket.local_addr().ok(),
        remote: peer,
        target: None,
        id,
        outcome: Outcome::Accepted,
        sent: 0,
        received: received as u64,
        before: false,
    }
}

fn echo_datagrams(socket: &UdpSocket, reply: bool, log: &Log) {
    let mut buffer = vec![0; 65536];
    let mut seen = HashSet::new();
    loop {
        // An ICMP error of an earlier reply shows up here; the next datagram is not affected.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let id: String = buffer[..length]
            .split(|b| *b == b' ')
            .next()
            .map(|b| String::from_utf8_lossy(b).into_owned())
            .unwrap_or_default();
        if seen.insert(id.clone()) {
            log.write(datagram_record(socket, peer, Some(id), length));
        }
        if reply {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, records: &BTreeMap<String, Vec<std::net::IpAddr>>, log: &Log) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(answer) = dns::answer(&buffer[..length], records) else {
            continue;
        };
        log.write(datagram_record(socket, peer, None, length));
        let _ = socket.send_to(&answer, peer);
    }
}

fn answer_stream(
    mut stream: TcpStream,
    peer: SocketAddr,
    records: &BTreeMap<String, Vec<std::net::IpAddr>>,
    log: &Log,
) -> std::io::Result<()> {
    let local = stream.local_addr()?;
    let mut first = true;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        let Some(answer) = dns::answer(&question, records) else {
            return Ok(());
        };
        if std::mem::take(&mut first) {
            log.write(Record {
                at_ns: 0,
                process: String::new(),
                side: Side::Server,
                protocol: "TCP".into(),
                local: Some(local),
                remote: peer,
                target: None,
                id: None,
                outcome: Outcome::Accepted,
                sent: answer.len() as u64,
                received: question.len() as u64,
                before: false,
            });
        }
        stream.write_all(&dns::with_length(&answer))?;
    }
}
