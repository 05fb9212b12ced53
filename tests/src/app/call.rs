//! Clients: every pattern of [`How`], each exchange logged with its real outcome.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    dns,
    log::{Log, Outcome, Record, Side},
    measured::Stopwatch,
    random::Random,
    scenario::{AddressRange, Call, Family, How, Scenario},
    serve::{MPTCP, Served, read_frame, write_frame},
};

/// Makes the calls of one process.
#[derive(Debug)]
pub struct Caller {
    log: Arc<Log>,
    served: Arc<Served>,
    resolver: Option<SocketAddr>,
    seed: u64,
    next_id: AtomicU64,
    held: Mutex<Vec<TcpStream>>,
    /// Of the exchanges that are measured.
    pub stopwatch: Stopwatch,
    enough: AtomicBool,
}

/// What one exchange came to.
struct Exchange {
    outcome: Outcome,
    local: Option<SocketAddr>,
    sent: u64,
    received: u64,
}

/// Where an exchange goes, from which address if not from the process's own, and how long it waits.
#[derive(Clone, Copy)]
struct Route {
    to: SocketAddr,
    source: Option<IpAddr>,
    timeout: Duration,
}

/// A question to the resolver.
#[derive(Clone, Copy)]
struct Question<'a> {
    name: &'a str,
    timeout: Duration,
    /// Asked before the agent starts.
    before: bool,
}

/// What one exchange is in the log.
struct Entry<'a> {
    protocol: &'static str,
    remote: SocketAddr,
    target: &'a str,
    id: Option<String>,
    before: bool,
}

impl Exchange {
    fn failed(error: &std::io::Error, local: Option<SocketAddr>) -> Self {
        use std::io::ErrorKind as E;
        let outcome = match error.kind() {
            E::ConnectionRefused => Outcome::Refused,
            E::TimedOut | E::WouldBlock => Outcome::Unanswered,
            E::HostUnreachable | E::NetworkUnreachable => Outcome::Unreachable,
            _ => Outcome::Broken,
        };
        Self { outcome, local, sent: 0, received: 0 }
    }
}

impl Caller {
    /// For the process of this scenario.
    #[must_use]
    pub fn new(scenario: &Scenario, log: Arc<Log>, served: Arc<Served>) -> Self {
        let Scenario { resolver, seed, .. } = scenario;
        Self {
            log,
            served,
            resolver: *resolver,
            seed: *seed,
            next_id: AtomicU64::new(0),
            held: Mutex::default(),
            stopwatch: Stopwatch::default(),
            enough: AtomicBool::new(false),
        }
    }

    /// Runs one call to its end. `index` makes its random sequence its own; `before` is copied into
    /// the records.
    pub fn run(&self, call: &Call, index: u64, before: bool) {
        let mut random = Random::new(self.seed ^ (index << 32));
        for round in 0..call.times {
            if self.enough.load(Ordering::Relaxed) {
                return;
            }
            if round > 0 {
                thread::sleep(Duration::from_millis(random.between(call.pause_ms).into()));
            }
            self.once(call, round, &mut random, before);
        }
    }

    /// Ends every repeated call after its current round.
    pub fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// One request on every connection that is held open.
    ///
    /// # Panics
    /// A held connection is broken: nothing in the lab may end it.
    pub fn use_held(&self) {
        for stream in self.held.lock().expect("no holder panics").iter_mut() {
            write_frame(stream, b"still here")
                .and_then(|()| read_frame(stream))
                .expect("a held connection works to the end");
        }
    }

    fn once(&self, call: &Call, round: u32, random: &mut Random, before: bool) {
        let timeout = Duration::from_millis(call.timeout_ms.into());
        match call.how {
            How::DnsMusl => return self.ask_like_musl(Question { name: &call.to, timeout, before }, random),
            How::DnsTcp => return self.ask_over_tcp(Question { name: &call.to, timeout, before }, random),
            _ => {}
        }
        let Some(to) = self.resolve(Question { name: &call.to, timeout, before }, call.family, random) else {
            panic!("{}: {} does not resolve", self.log.process(), call.to);
        };
        let to = if call.spread == 0 {
            to
        } else {
            let range = AddressRange { first: to.ip(), count: call.spread };
            SocketAddr::new(nth_address(range, round), to.port())
        };
        if let How::Measured(what) = call.how {
            return self.stopwatch.exchange(what, to, call.payload_bytes.0 as usize);
        }
        let id = format!("{}#{}", self.log.process(), self.next_id.fetch_add(1, Ordering::Relaxed));
        let payload = payload(&id, random.between(call.payload_bytes) as usize);
        let route = Route { to, source: call.sources.map(|range| nth_address(range, round)), timeout };
        let exchange = match call.how {
            How::Tcp | How::Held | How::HeldMptcp => self.over_tcp(call.how, route, &id, &payload),
            How::UdpConnected => over_udp(route, &payload, true),
            How::UdpUnconnected => over_udp(route, &payload, false),
            How::UdpMapped => over_udp(Route { to: mapped(to), source: None, timeout }, &payload, false),
            How::UdpFromServed => self.send_from_served(to, &payload),
            How::Multicast => multicast(to, &payload),
            How::DnsMusl | How::DnsTcp | How::Measured(_) => unreachable!("handled above"),
        };
        let protocol = if matches!(call.how, How::Tcp | How::Held | How::HeldMptcp) { "TCP" } else { "UDP" };
        self.note(Entry { protocol, remote: to, target: &call.to, id: Some(id), before }, &exchange);
    }

    fn note(&self, entry: Entry<'_>, exchange: &Exchange) {
        let Entry { protocol, remote, target, id, before } = entry;
        // Whoever called before its server was there would be taken for a client whose failure the
        // agent missed.
        assert!(
            !before || matches!(exchange.outcome, Outcome::Established | Outcome::Sent),
            "{}: {remote} must work before this is ready, but was {:?}",
            self.log.process(),
            exchange.outcome
        );
        self.log.write(Record {
            at_ns: 0,
            process: String::new(),
            side: Side::Client,
            protocol: protocol.into(),
            local: exchange.local,
            remote,
            target: Some(target.to_owned()),
            id,
            outcome: exchange.outcome,
            sent: exchange.sent,
            received: exchange.received,
            before,
        });
    }

    fn over_tcp(&self, how: How, route: Route, id: &str, payload: &[u8]) -> Exchange {
        let Route { to, source, timeout } = route;
        let mut stream = match connect(to, source, timeout, how == How::HeldMptcp) {
            Ok(stream) => stream,
            Err(error) => return Exchange::failed(&error, None),
        };
        let local = stream.local_addr().ok();
        let exchanged = stream.set_read_timeout(Some(timeout)).and_then(|()| {
            write_frame(&mut stream, id.as_bytes())?;
            let answer = read_frame(&mut stream)?;
            write_frame(&mut stream, payload)?;
            Ok(answer.len() + read_frame(&mut stream)?.len())
        });
        match exchanged {
            Ok(received) => {
                if how != How::Tcp {
                    self.held.lock().expect("no holder panics").push(stream);
                }
                Exchange {
                    outcome: Outcome::Established,
                    local,
                    sent: (id.len() + payload.len()) as u64,
                    received: received as u64,
                }
            }
            // Connected but not served: never what a scenario intends.
            Err(_) => Exchange { outcome: Outcome::Broken, local, sent: 0, received: 0 },
        }
    }

    fn send_from_served(&self, to: SocketAddr, payload: &[u8]) -> Exchange {
        let socket = self.served.udp(to.port()).expect("the scenario serves the port it gossips from");
        let to = if socket.local_addr().is_ok_and(|a| a.is_ipv6()) { mapped(to) } else { to };
        match socket.send_to(payload, to) {
            Ok(sent) => {
                Exchange { outcome: Outcome::Sent, local: socket.local_addr().ok(), sent: sent as u64, received: 0 }
            }
            Err(error) => Exchange::failed(&error, socket.local_addr().ok()),
        }
    }

    /// Resolves `host:port`; names the way glibc does it: a connected socket, A and AAAA.
    fn resolve(&self, question: Question<'_>, family: Family, random: &mut Random) -> Option<SocketAddr> {
        let to = question.name;
        if let Ok(address) = to.parse() {
            return Some(address);
        }
        let (host, port) = to.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let resolver = self.resolver?;
        let socket = udp_socket(resolver).ok()?;
        socket.connect(resolver).ok()?;
        let found = self.ask(&socket, resolver, Question { name: host, ..question }, random);
        let wanted: Vec<_> = found.into_iter().filter(|a| a.is_ipv6() == (family == Family::V6)).collect();
        let index = usize::try_from(random.next() % (wanted.len().max(1) as u64)).ok()?;
        Some(SocketAddr::new(*wanted.get(index)?, port))
    }

    fn ask_like_musl(&self, question: Question<'_>, random: &mut Random) {
        let resolver = self.resolver.expect("the scenario has a resolver");
        let socket = udp_socket(resolver).expect("a UDP socket");
        let any: SocketAddr =
            if resolver.is_ipv6() { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
        Socket::from(socket.try_clone().expect("a second handle"))
            .bind(&any.into())
            .expect("port 0 can always be bound");
        self.ask(&socket, resolver, question, random);
    }

    /// Asks for A and AAAA with one socket, connected or not, as resolvers of C libraries do.
    fn ask(
        &self,
        socket: &UdpSocket,
        resolver: SocketAddr,
        question: Question<'_>,
        random: &mut Random,
    ) -> Vec<IpAddr> {
        let Question { name, timeout, before } = question;
        let is_connected = socket.peer_addr().is_ok();
        let deadline = Instant::now() + timeout;
        let first = u16::try_from(random.next() & 0x7fff).unwrap_or(0);
        let ids = [first, first + 1];
        let mut answers: [Option<Vec<IpAddr>>; 2] = [None, None];
        let mut exchange = Exchange { outcome: Outcome::Unanswered, local: None, sent: 0, received: 0 };
        for (id, v6) in ids.into_iter().zip([false, true]) {
            let question = dns::question(id, name, v6);
            let sent = if is_connected { socket.send(&question) } else { socket.send_to(&question, resolver) };
            exchange.sent += sent.unwrap_or(0) as u64;
        }
        exchange.local = socket.local_addr().ok();
        let mut buffer = [0; 4096];
        while answers.iter().any(Option::is_none) && Instant::now() < deadline {
            let _ = socket.set_read_timeout(Some((deadline - Instant::now()).max(Duration::from_millis(1))));
            let Ok((length, _)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            exchange.received += length as u64;
            for (id, answer) in ids.into_iter().zip(&mut answers) {
                if let Some(found) = dns::addresses(&buffer[..length], id) {
                    *answer = Some(found);
                }
            }
        }
        if answers.iter().all(Option::is_some) {
            exchange.outcome = Outcome::Established;
        }
        self.note(Entry { protocol: "UDP", remote: resolver, target: name, id: None, before }, &exchange);
        answers.into_iter().flatten().flatten().collect()
    }

    fn ask_over_tcp(&self, question: Question<'_>, random: &mut Random) {
        let Question { name, timeout, before } = question;
        let resolver = self.resolver.expect("the scenario has a resolver");
        let id = u16::try_from(random.next() & 0xffff).unwrap_or(0);
        let question = dns::with_length(&dns::question(id, name, false));
        let mut local = None;
        let exchanged = connect(resolver, None, timeout, false).and_then(|mut stream| {
            local = stream.local_addr().ok();
            stream.set_read_timeout(Some(timeout))?;
            stream.write_all(&question)?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        });
        let exchange = match exchanged {
            Ok(answer) => {
                let outcome =
                    if dns::addresses(&answer, id).is_some() { Outcome::Established } else { Outcome::Broken };
                Exchange { outcome, local, sent: question.len() as u64, received: answer.len() as u64 }
            }
            Err(error) => Exchange::failed(&error, local),
        };
        self.note(Entry { protocol: "TCP", remote: resolver, target: name, id: None, before }, &exchange);
    }
}

/// `id`, a blank and filler up to `length` bytes.
fn payload(id: &str, length: usize) -> Vec<u8> {
    let mut bytes = format!("{id} ").into_bytes();
    bytes.resize(bytes.len().max(length), b'.');
    bytes
}

fn nth_address(AddressRange { first, count }: AddressRange, n: u32) -> IpAddr {
    let n = n % count.max(1);
    match first {
        IpAddr::V4(a) => Ipv4Addr::from(u32::from(a).wrapping_add(n)).into(),
        IpAddr::V6(a) => Ipv6Addr::from(u128::from(a).wrapping_add(n.into())).into(),
    }
}

fn mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(a) => SocketAddr::new(a.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    }
}

fn udp_socket(to: SocketAddr) -> std::io::Result<UdpSocket> {
    Ok(Socket::new(Domain::for_address(to), Type::DGRAM, None)?.into())
}

fn connect(to: SocketAddr, source: Option<IpAddr>, timeout: Duration, mptcp: bool) -> std::io::Result<TcpStream> {
    let protocol = mptcp.then(|| Protocol::from(MPTCP));
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, protocol)?;
    if let Some(source) = source {
        bind_foreign(&socket, source)?;
    }
    socket.connect_timeout(&to.into(), timeout)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Binds an address that no interface has.
fn bind_foreign(socket: &Socket, source: IpAddr) -> std::io::Result<()> {
    if source.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&SocketAddr::new(source, 0).into())
}

fn over_udp(route: Route, payload: &[u8], connected: bool) -> Exchange {
    let Route { to, source, timeout } = route;
    let mut local = None;
    let exchanged = (|| {
        let socket = udp_socket(to)?;
        if let Some(source) = source {
            bind_foreign(&Socket::from(socket.try_clone()?), source)?;
        }
        socket.set_read_timeout(Some(timeout))?;
        let sent = if connected {
            socket.connect(to)?;
            socket.send(payload)?
        } else {
            socket.send_to(payload, to)?
        };
        local = socket.local_addr().ok();
        let mut buffer = vec![0; 65536];
        Ok((sent, socket.recv(&mut buffer)?))
    })();
    match exchanged {
        Ok((sent, received)) => {
            Exchange { outcome: Outcome::Established, local, sent: sent as u64, received: received as u64 }
        }
        Err(error) => Exchange::failed(&error, local),
    }
}

fn multicast(to: SocketAddr, payload: &[u8]) -> Exchange {
    let sent = udp_socket(to).and_then(|socket| Ok((socket.send_to(payload, to)?, socket.local_addr().ok())));
    match sent {
        Ok((sent, local)) => Exchange { outcome: Outcome::Sent, local, sent: sent as u64, received: 0 },
        Err(error) => Exchange::failed(&error, None),
    }
}
