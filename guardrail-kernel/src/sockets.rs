//! Sockets that were open before the programs: from the iterator's records to found connections and
//! listening ports.
//!
//! Listening sockets come first (TCP, and MPTCP's protocol 262, which Go servers use), so that an
//! established socket's local port can be looked up.

pub(crate) mod backing;
pub(crate) mod procfs;

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, Read},
    time::Instant,
};

use backing::{Backing, Ends};

use guardrail_common::{
    address::{Address, UNSPECIFIED, is_local_talk, is_loopback, is_v4},
    decode, encode,
    flow::{FlowKey, FlowRole, PROTOCOL_MPTCP, PROTOCOL_TCP},
    record::SocketRecord,
};

/// `SOCK_BINDPORT_LOCK` in `sk_userlocks`.
const SOCK_BINDPORT_LOCK: u8 = 8;
const TCP_ESTABLISHED: u8 = 1;
const TCP_FIN_WAIT1: u8 = 4;
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LISTEN: u8 = 10;
/// Room for the records of 100,000 descriptors, when sockets are listed again.
const MAX_BYTES: usize = 100_000 * size_of::<SocketRecord>();

/// What was open.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenSockets {
    /// Listening TCP and MPTCP sockets that others can reach.
    pub(crate) listening: Vec<SocketRecord>,
    /// Established connections by key: how many, and the network namespace.
    pub(crate) connections: BTreeMap<[u8; size_of::<FlowKey>()], FoundConnections>,
    /// Every TCP and MPTCP socket that has another end, in whatever state.
    connected: Vec<Ends>,
    /// Records that did not decode.
    pub(crate) broken: u64,
}

/// Connections of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundConnections {
    /// The key.
    pub(crate) key: FlowKey,
    /// Network namespace.
    pub(crate) netns: u32,
    /// How many.
    pub(crate) count: u64,
    /// The key that each of them has in FLOWS if it ends before this key stands there, and its own
    /// state does not tell its role.
    pub(crate) if_ended: Vec<FlowKey>,
    /// Whether some are MPTCP connections: their parts are sockets of their own, which no process
    /// has a descriptor of.
    pub(crate) is_mptcp: bool,
}

impl OpenSockets {
    /// All that may stand behind an entry of FLOWS.
    pub(crate) fn backing(&self) -> Backing {
        Backing::of(self.connected.clone())
    }
}

/// Reads the iterator to its end and classifies.
pub(crate) fn read(mut iterator: impl Read) -> io::Result<OpenSockets> {
    let mut bytes = Vec::new();
    iterator.read_to_end(&mut bytes)?;
    Ok(classify(&bytes))
}

/// The same, but not beyond this instant, and within bounds.
///
/// # Errors
/// The iterator's own, or it has not come to its end.
pub(crate) fn read_until(mut iterator: impl Read, until: Instant) -> io::Result<OpenSockets> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match iterator.read(&mut buffer) {
            Ok(0) => return Ok(classify(&bytes)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        bytes.extend(&buffer[..read]);
        if bytes.len() > MAX_BYTES || Instant::now() > until {
            return Err(io::Error::other("there are too many, or it takes too long"));
        }
    }
}

/// Classifies the records.
pub(crate) fn classify(bytes: &[u8]) -> OpenSockets {
    let mut open = OpenSockets::default();
    let mut seen = HashSet::new();
    let mut sockets = Vec::new();
    for record in bytes.chunks(size_of::<SocketRecord>()) {
        match decode::socket(record) {
            // Forked processes share sockets.
            Ok(record) => {
                if seen.insert(record.socket) {
                    sockets.push(record);
                }
            }
            Err(_) => open.broken += 1,
        }
    }
    let is_tcp = |s: &SocketRecord| s.protocol == u16::from(PROTOCOL_TCP) || s.protocol == PROTOCOL_MPTCP;
    let ports: HashSet<(u32, Address, u16)> = sockets
        .iter()
        .filter(|s| is_tcp(s) && s.state == TCP_LISTEN)
        .map(|s| (s.netns, any_as_one(s.local), s.local_port))
        .collect();
    for socket in sockets.iter().filter(|s| is_tcp(s)) {
        if socket.remote_port != 0 {
            open.connected.push(ends(socket));
        }
        match socket.state {
            TCP_LISTEN if !is_loopback(&socket.local) => open.listening.push(*socket),
            TCP_ESTABLISHED | TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSE_WAIT
                if !is_local_talk(&socket.local, &socket.remote) =>
            {
                let served = [socket.local, UNSPECIFIED]
                    .iter()
                    .any(|local| ports.contains(&(socket.netns, *local, socket.local_port)));
                let key = key(socket, role(socket, served));
                let found = open.connections.entry(encode::key(&key)).or_insert_with(|| FoundConnections {
                    key,
                    netns: socket.netns,
                    count: 0,
                    if_ended: Vec::new(),
                    is_mptcp: false,
                });
                found.count += 1;
                found.is_mptcp |= socket.protocol == PROTOCOL_MPTCP;
                if !key.is_undecided() {
                    found.if_ended.push(self::key(socket, FlowRole::Undecided));
                }
            }
            _ => {}
        }
    }
    open
}

fn ends(socket: &SocketRecord) -> Ends {
    let SocketRecord { cgroup_id, local, remote, local_port, remote_port, .. } = *socket;
    Ends { cgroup_id, local, remote, local_port, remote_port }
}

/// `0.0.0.0` listens as `::` does.
fn any_as_one(local: Address) -> Address {
    if is_v4(&local) && local[12..] == [0; 4] { UNSPECIFIED } else { local }
}

/// The role of an established socket that nobody saw being opened. Never from port numbers.
fn role(socket: &SocketRecord, served: bool) -> FlowRole {
    if served || socket.backlog > 0 {
        // An accepted child keeps its listener's backlog; but `listen(fd, 0)` and accepted MPTCP
        // sockets show 0, hence the set of ports.
        FlowRole::Server
    } else if socket.userlocks & SOCK_BINDPORT_LOCK != 0 {
        // The bit is cleared when a child is cloned: this socket bound its port itself, does not
        // listen, and so has connected.
        FlowRole::Client
    } else if socket.has_bucket != 0 && socket.fastreuse == -1 {
        // connect() chose the port, which no bind() may share.
        FlowRole::Client
    } else {
        FlowRole::Undecided
    }
}

fn key(socket: &SocketRecord, role: FlowRole) -> FlowKey {
    let (server_port, local_port) = match role {
        FlowRole::Server => (socket.local_port, 0),
        FlowRole::Client => (socket.remote_port, 0),
        FlowRole::Undecided => (socket.remote_port, socket.local_port),
    };
    FlowKey {
        cgroup_id: socket.cgroup_id,
        local: socket.local,
        remote: socket.remote,
        server_port,
        local_port,
        protocol: PROTOCOL_TCP,
        role: role as u8,
        pad: [0; 2],
    }
}

#[cfg(test)]
mod tests {
    use guardrail_common::record::RecordKind;

    use super::{super::fold::address, *};

    const BASE: SocketRecord = SocketRecord {
        kind: RecordKind::Socket as u8,
        state: TCP_ESTABLISHED,
        userlocks: 0,
        fastreuse: 0,
        protocol: PROTOCOL_TCP as u16,
        family: 2,
        local_port: 40_000,
        remote_port: 5432,
        netns: 1,
        backlog: 0,
        has_bucket: 1,
        socket: 0,
        cgroup_id: 7,
        local: [0; 16],
        remote: [0; 16],
    };

    fn socket(number: u64) -> SocketRecord {
        let ip = |s: &str| address(s.parse().expect("an address"));
        SocketRecord { socket: number, local: ip("10.0.0.1"), remote: ip("10.0.0.2"), ..BASE }
    }

    fn bytes(s: &SocketRecord) -> Vec<u8> {
        let mut out = vec![s.kind, s.state, s.userlocks, s.fastreuse.cast_unsigned()];
        for half in [s.protocol, s.family, s.local_port, s.remote_port] {
            out.extend(half.to_ne_bytes());
        }
        for word in [s.netns, s.backlog, s.has_bucket] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(s.socket.to_ne_bytes());
        out.extend(s.cgroup_id.to_ne_bytes());
        out.extend(s.local);
        out.extend(s.remote);
        out
    }

    fn roles(sockets: &[SocketRecord]) -> Vec<(FlowRole, u16, u16, u64)> {
        let sockets = classify(&sockets.iter().flat_map(bytes).collect::<Vec<_>>());
        assert_eq!(sockets.broken, 0);
        let mut roles: Vec<_> = sockets
            .connections
            .values()
            .map(|f| (FlowRole::try_from(f.key.role).expect("a role"), f.key.server_port, f.key.local_port, f.count))
            .collect();
        roles.sort_by_key(|r| (r.1, r.2));
        roles
    }

    #[test]
    fn a_port_that_connect_chose_makes_a_client() {
        assert_eq!(roles(&[SocketRecord { fastreuse: -1, ..socket(1) }]), [(FlowRole::Client, 5432, 0, 1)]);
    }

    #[test]
    fn a_socket_that_bound_its_port_and_does_not_listen_is_a_client() {
        assert_eq!(
            roles(&[SocketRecord { userlocks: SOCK_BINDPORT_LOCK, ..socket(1) }]),
            [(FlowRole::Client, 5432, 0, 1)]
        );
    }

    #[test]
    fn a_listening_port_makes_servers_even_with_backlog_zero_and_over_mptcp() {
        let any = address("0.0.0.0".parse().expect("ip"));
        let listener = SocketRecord {
            state: TCP_LISTEN,
            local_port: 8080,
            local: any,
            protocol: PROTOCOL_MPTCP,
            userlocks: SOCK_BINDPORT_LOCK,
            ..socket(1)
        };
        let child = SocketRecord {
            local_port: 8080,
            remote_port: 40_001,
            protocol: PROTOCOL_MPTCP,
            has_bucket: 0,
            ..socket(2)
        };
        assert_eq!(roles(&[child, listener]), [(FlowRole::Server, 8080, 0, 1)]);
        // In another namespace the listener proves nothing.
        let elsewhere = SocketRecord { netns: 2, ..child };
        assert_eq!(roles(&[elsewhere, listener]), [(FlowRole::Undecided, 40_001, 8080, 1)]);
    }

    #[test]
    fn a_backlog_alone_makes_a_server() {
        assert_eq!(
            roles(&[SocketRecord { backlog: 128, local_port: 80, ..socket(1) }]),
            [(FlowRole::Server, 80, 0, 1)]
        );
    }

    #[test]
    fn a_bound_port_that_says_nothing_stays_undecided_with_both_ports() {
        assert_eq!(roles(&[SocketRecord { local_port: 7000, ..socket(1) }]), [(FlowRole::Undecided, 5432, 7000, 1)]);
    }

    #[test]
    fn shared_descriptors_count_once_and_pools_count_each_connection() {
        let client = |n: u64, port: u16| SocketRecord { fastreuse: -1, local_port: port, ..socket(n) };
        assert_eq!(roles(&[client(1, 40_000), client(1, 40_000), client(2, 40_001)]), [(FlowRole::Client, 5432, 0, 2)]);
    }

    #[test]
    fn loopback_and_cut_records_are_left_out() {
        let here = address("127.0.0.1".parse().expect("ip"));
        let mut raw = bytes(&SocketRecord { local: here, remote: here, ..socket(1) });
        raw.extend(&bytes(&socket(2))[..30]);
        let sockets = classify(&raw);
        assert_eq!((sockets.connections.len(), sockets.listening.len(), sockets.broken), (0, 0, 1));
    }

    /// A list that goes on for ever.
    struct Endless;

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let record = bytes(&socket(1));
            buffer[..record.len()].copy_from_slice(&record);
            Ok(record.len())
        }
    }

    #[test]
    fn a_list_that_does_not_come_to_its_end_in_time_is_none() {
        let raw = bytes(&SocketRecord { fastreuse: -1, ..socket(1) });
        let later = Instant::now() + std::time::Duration::from_secs(600);
        assert_eq!(read_until(&raw[..], later).expect("it ends"), classify(&raw));
        assert!(read_until(Endless, Instant::now()).is_err());
        assert!(read_until(Endless, later).is_err(), "nor if it is endless");
    }
}
