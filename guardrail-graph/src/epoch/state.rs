//! What is known of the open epoch, as entries of a base and a log ([`super::log`]): how each is
//! written, and what all of them together say.
//!
//! What lasts is stored as [`OPEN`] and ends when all of it was known to be so: on an idle node no
//! byte changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    bytes::{Bytes, put_bytes, put_int, put_numbers, put_signed, put_texts},
    log::{Cut, Entry, LogError, Recording, Replayed},
    nodes::NodeReader,
};
use crate::{
    peer::{Peer, Protocol},
    snapshot::{
        AddressEntry, Body, Counts, Coverage, Document, EdgePeer, EdgeRecord, Interval, InventoryState, LossEntry,
        NodeCoverage, PodPresence, RemoteFlow, Revision, ServiceEntry, ServiceFlow, Side, Snapshot, Source,
        SourceCounts, SourceRevision, UnresolvedEntry, UnresolvedFlow, Window, Witness, WorkloadCoverage,
        WorkloadEntry, facts::Seen,
    },
    time::Timestamp,
};

/// Until now, whenever that is.
pub(crate) const OPEN: Timestamp = Timestamp::MAX;

/// Sections of a state. Those from [`section::CALLER`] on are the caller's own.
pub mod section {
    pub(crate) const HEAD: u8 = 0;
    pub(crate) const LOSS: u8 = 1;
    pub(crate) const UNRESOLVED: u8 = 2;
    pub(crate) const UNRESOLVED_FLOW: u8 = 3;
    pub(crate) const INCOMPLETE: u8 = 4;
    pub(crate) const WORKLOAD: u8 = 5;
    pub(crate) const SERVICE: u8 = 6;
    pub(crate) const ADDRESS: u8 = 7;
    pub(crate) const PRESENCE: u8 = 8;
    pub(crate) const PEER: u8 = 9;
    pub(crate) const SERVICE_FLOW: u8 = 10;
    pub(crate) const REMOTE_FLOW: u8 = 11;
    pub(crate) const EDGE: u8 = 12;
    pub(crate) const OWN_POD: u8 = 13;
    pub(crate) const WAITING: u8 = 14;
    pub(crate) const LABEL_CHANGES: u8 = 15;
    pub(crate) const DOUBT: u8 = 17;
    pub(crate) const NODE_LABEL: u8 = 18;
    pub(crate) const NODE_WORD: u8 = 19;
    pub(crate) const NODE: u8 = 20;
    pub(crate) const NAMES: u8 = 21;
    /// The first that has no meaning here.
    pub const CALLER: u8 = 128;
}

/// What a state has once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) source: Source,
    /// When the node was observed.
    pub(crate) window: Vec<Interval>,
    /// As [`Window::steps`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<Interval>,
    pub(crate) expected: BTreeSet<String>,
    pub(crate) unobservable: BTreeMap<String, String>,
    pub(crate) inventory: Option<InventoryState>,
    /// As [`Body::own_pods_as_of`]: as of now.
    pub(crate) own_pods: bool,
    /// As [`Witness`]: `(tells, full)`.
    pub(crate) witness: Option<(bool, bool)>,
}

/// A flow that could not be named.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Unnamed {
    pub(crate) reason: String,
    #[serde(flatten)]
    pub(crate) flow: UnresolvedFlow,
}

/// JSON in memory: writing it does not fail.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Puts an entry whose value is JSON, and says what its key would.
pub(crate) fn put_json(recording: &mut Recording<'_>, section: u8, key: &impl Serialize, value: &impl Serialize) {
    recording.put_value(section, &json(key), &json(value));
}

const NAMED: u8 = 0;
const V4: u8 = 4;
const V6: u8 = 6;

/// A peer that is an address.
pub(crate) fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            out.push(V4);
            out.extend(address.octets());
        }
        IpAddr::V6(address) => {
            out.push(V6);
            out.extend(address.octets());
        }
    }
}

/// What follows the first byte of an address.
pub(super) fn address(family: u8, bytes: &mut Bytes<'_>) -> Option<IpAddr> {
    Some(match family {
        V4 => IpAddr::from(<[u8; 4]>::try_from(bytes.take(4)?).ok()?),
        V6 => IpAddr::from(<[u8; 16]>::try_from(bytes.take(16)?).ok()?),
        _ => return None,
    })
}

/// A peer by the number of its entry.
pub(crate) fn put_named(out: &mut Vec<u8>, id: u32) {
    out.push(NAMED);
    put_int(out, id.into());
}

/// Protocol and port.
pub(crate) fn put_port(out: &mut Vec<u8>, protocol: Protocol, port: u16) {
    out.push(if protocol == Protocol::Udp { 17 } else { 6 });
    put_int(out, port.into());
}

/// Which end it is; whether a proxy took it and nobody knows what it dialled, which its marks say,
/// too.
pub(crate) fn put_end(out: &mut Vec<u8>, side: Side, untold: bool) {
    out.push(u8::from(side == Side::Server) | u8::from(untold) << 1);
}

const PORT_NAME: u8 = 16;
const WORDS: u8 = 32;

/// What was counted of an edge or a flow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flow<'a> {
    /// At the client, at the server; whether connections are open that count until now.
    pub(crate) sides: [Option<(&'a Seen, bool)>; 2],
    pub(crate) port_name: Option<&'a str>,
    /// Marks, workloads on a node, names of the server.
    pub(crate) words: [Vec<&'a str>; 3],
}

impl Flow<'_> {
    /// Times are counted from `begun`.
    pub(crate) fn put(&self, out: &mut Vec<u8>, begun: Timestamp) {
        let mut flags = 0;
        for (i, side) in self.sides.iter().enumerate() {
            if let Some((_, is_open)) = side {
                flags |= (1 << i) | u8::from(*is_open) << (2 + i);
            }
        }
        flags |= if self.port_name.is_some() { PORT_NAME } else { 0 };
        let has_words = self.words.iter().any(|words| !words.is_empty());
        flags |= if has_words { WORDS } else { 0 };
        out.push(flags);
        for (seen, _) in self.sides.iter().flatten() {
            put_signed(out, seen.first.as_unix_ns().wrapping_sub(begun.as_unix_ns()));
            put_signed(out, seen.last.as_unix_ns().wrapping_sub(seen.first.as_unix_ns()));
            put_counts(out, &seen.counts);
        }
        if let Some(name) = self.port_name {
            put_bytes(out, name.as_bytes());
        }
        if has_words {
            self.words.iter().for_each(|words| put_texts(out, words.iter().copied()));
        }
    }
}

fn put_counts(out: &mut Vec<u8>, counts: &Counts) {
    let Counts { opened, found, open, refused, unanswered, unreachable, broken, bytes_sent, bytes_received } = *counts;
    let numbers = [
        opened,
        bytes_sent,
        bytes_received,
        found.into(),
        open.into(),
        refused,
        unanswered,
        unreachable.into(),
        broken.into(),
    ];
    put_numbers(out, numbers);
}

fn counts(bytes: &mut Bytes<'_>) -> Option<Counts> {
    let [opened, bytes_sent, bytes_received, found, open, refused, unanswered, unreachable, broken] =
        bytes.numbers()?;
    let (open, broken) = (u32::try_from(open).ok()?, u32::try_from(broken).ok()?);
    // An earlier release may have counted on.
    let [found, unreachable] = [found, unreachable].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    Some(Counts { opened, found, open, refused, unanswered, unreachable, broken, bytes_sent, bytes_received })
}

/// What [`Flow`] wrote.
struct Counted {
    sources: Vec<SourceCounts>,
    port_name: Option<String>,
    marks: BTreeSet<String>,
    node_workloads: BTreeSet<String>,
    names: BTreeSet<String>,
}

/// Reads the entries of one state.
struct Reader<'a> {
    replayed: &'a Replayed,
    source: Arc<Source>,
    begun: Timestamp,
    /// What is open ends here.
    end: Timestamp,
    peers: HashMap<u64, Arc<Peer>>,
    nodes: NodeReader,
}

impl Reader<'_> {
    fn flow(&self, mut bytes: Bytes<'_>) -> Option<Counted> {
        let flags = bytes.byte()?;
        let mut sources = Vec::new();
        for (i, side) in [Side::Client, Side::Server].into_iter().enumerate() {
            if flags >> i & 1 == 0 {
                continue;
            }
            let first = self.begun.as_unix_ns().wrapping_add(bytes.signed()?);
            let last = Timestamp::from_unix_ns(first.wrapping_add(bytes.signed()?));
            let is_open = flags >> (2 + i) & 1 == 1;
            sources.push(SourceCounts {
                source: Arc::clone(&self.source),
                side,
                counts: counts(&mut bytes)?,
                first_seen: Timestamp::from_unix_ns(first),
                last_seen: if is_open { last.max(self.end) } else { last },
                by_merge: false,
            });
        }
        let port_name = if flags & PORT_NAME == 0 { None } else { Some(bytes.text()?.to_owned()) };
        let mut words = || if flags & WORDS == 0 { Some(BTreeSet::new()) } else { bytes.texts() };
        let (marks, node_workloads, names) = (words()?, words()?, words()?);
        bytes.0.is_empty().then_some(Counted { sources, port_name, marks, node_workloads, names })
    }

    fn peer(&mut self, bytes: &mut Bytes<'_>) -> Option<Arc<Peer>> {
        let address = match bytes.byte()? {
            NAMED => {
                let id = bytes.int()?;
                if let Some(known) = self.peers.get(&id) {
                    return Some(Arc::clone(known));
                }
                let entry = self.replayed.entry(id, section::PEER)?;
                let peer = serde_json::from_slice(&entry.key).ok()?;
                return Some(Arc::clone(self.peers.entry(id).insert_entry(Arc::new(peer)).get()));
            }
            family => address(family, bytes)?,
        };
        Some(Arc::new(Peer::External { address: address.to_string() }))
    }

    fn edge(&mut self, Entry { key, value, .. }: &Entry) -> Option<EdgeRecord> {
        let mut key = Bytes(key);
        let (client, server) = (self.peer(&mut key)?, self.peer(&mut key)?);
        let (protocol, port) = port(&mut key)?;
        let Counted { sources, port_name, marks, node_workloads, names } = self.flow(Bytes(value))?;
        Some(EdgeRecord {
            client: EdgePeer { peer: client, names: BTreeSet::new() },
            server: EdgePeer { peer: server, names },
            protocol,
            port,
            port_name,
            via: BTreeSet::new(),
            seen_by: BTreeSet::new(),
            counts: Counts::default(),
            first_seen: Timestamp::default(),
            last_seen: Timestamp::default(),
            supported: false,
            marks,
            node_workloads,
            sources,
        })
    }

    fn service_flow(&mut self, Entry { key, value, .. }: &Entry) -> Option<ServiceFlow> {
        let mut key = Bytes(key);
        let (client, service) = (self.peer(&mut key)?, key.text()?.to_owned());
        let (protocol, port) = port(&mut key)?;
        let Counted { sources, marks, node_workloads, .. } = self.flow(Bytes(value))?;
        let client = Arc::unwrap_or_clone(client);
        let backend_unknown = None;
        Some(ServiceFlow { client, service, protocol, port, marks, node_workloads, backend_unknown, sources })
    }

    fn remote_flow(&mut self, Entry { key, value, .. }: &Entry) -> Option<RemoteFlow> {
        let mut key = Bytes(key);
        let local = Arc::unwrap_or_clone(self.peer(&mut key)?);
        let side = if key.byte()? & 1 == 0 { Side::Client } else { Side::Server };
        let Peer::External { address } = &*self.peer(&mut key)? else { return None };
        let (protocol, port) = port(&mut key)?;
        let Counted { sources, port_name, marks, node_workloads, .. } = self.flow(Bytes(value))?;
        let address = address.parse().ok()?;
        let may_be = None;
        Some(RemoteFlow { local, side, address, protocol, port, port_name, marks, node_workloads, may_be, sources })
    }

    /// Adds an entry to what they say together.
    fn add(&mut self, body: &mut Body, unnamed: &mut Vec<Unnamed>, entry: &Entry) -> Result<(), LogError> {
        let value = &entry.value;
        match entry.section {
            section::LOSS => body.coverage.losses.push(read::<LossEntry>(value, "losses")?),
            section::UNRESOLVED => body.coverage.unresolved.push(read::<UnresolvedEntry>(value, "unresolved flows")?),
            section::UNRESOLVED_FLOW => unnamed.push(read(value, "unresolved flows")?),
            section::INCOMPLETE => body.coverage.workloads.push(read::<WorkloadCoverage>(value, "coverage")?),
            section::WORKLOAD => {
                let mut workload: WorkloadEntry = read(value, "workloads")?;
                for at in workload.ran_on.values_mut().chain([&mut workload.as_of]) {
                    *at = self.time(*at);
                }
                body.workloads.push(workload);
            }
            section::NODE => {
                let node = self.nodes.read(self.replayed, entry, (self.begun, self.end));
                body.nodes.push(node.ok_or(LogError::Entry("nodes"))?);
            }
            section::LABEL_CHANGES => body.label_changes.push(read(value, "labels")?),
            section::SERVICE => {
                let mut service: ServiceEntry = read(value, "Services")?;
                service.as_of = self.time(service.as_of);
                body.services.push(service);
            }
            section::ADDRESS => body.addresses.push(read::<AddressEntry>(value, "addresses")?),
            section::PRESENCE => {
                let mut pod: PodPresence = read(value, "pods")?;
                pod.to = self.time(pod.to).max(pod.from);
                body.presence.push(pod);
            }
            section::SERVICE_FLOW => {
                body.service_flows.push(self.service_flow(entry).ok_or(LogError::Entry("uses of Services"))?);
            }
            section::REMOTE_FLOW => {
                body.remote_flows.push(self.remote_flow(entry).ok_or(LogError::Entry("flows"))?);
            }
            section::EDGE => body.edges.push(self.edge(entry).ok_or(LogError::Entry("edges"))?),
            _ => {}
        }
        Ok(())
    }

    fn time(&self, at: Timestamp) -> Timestamp {
        if at == OPEN { self.end } else { at }
    }
}

fn port(bytes: &mut Bytes<'_>) -> Option<(Protocol, u16)> {
    let protocol = match bytes.byte()? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let port = u16::try_from(bytes.int()?).ok()?;
    bytes.0.is_empty().then_some((protocol, port))
}

fn read<T: DeserializeOwned>(json: &[u8], what: &'static str) -> Result<T, LogError> {
    serde_json::from_slice(json).map_err(|_| LogError::Entry(what))
}

/// A state as it lies on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(Replayed);

impl State {
    /// Reads a base and the log behind it; an empty one: there is none.
    ///
    /// # Errors
    /// The base cannot be used.
    pub fn read(base: &[u8], log: &[u8]) -> Result<Self, LogError> {
        Replayed::read(base, log).map(Self)
    }

    /// When all of it was known to be so, by what was written last.
    #[must_use]
    pub const fn at(&self) -> Timestamp {
        self.0.at
    }

    /// That of what was written last: (run of the agent, number within it).
    #[must_use]
    pub const fn revision(&self) -> (u32, u32) {
        self.0.revision
    }

    /// What of the log does not count.
    #[must_use]
    pub const fn cut(&self) -> Option<Cut> {
        self.0.cut
    }

    /// Entries of a section, with their keys, in no order.
    pub fn entries(&self, section: u8) -> impl Iterator<Item = (&[u8], &[u8])> {
        let entries = self.0.entries.iter().flatten();
        entries.filter(move |entry| entry.section == section).map(|entry| (&*entry.key, &*entry.value))
    }

    /// Values of a section that are JSON.
    pub(crate) fn values<T: DeserializeOwned>(&self, section: u8, what: &'static str) -> Result<Vec<T>, LogError> {
        self.entries(section).map(|(_, value)| read(value, what)).collect()
    }

    /// The facts, which hold until `end`: nothing that follows from them.
    ///
    /// # Errors
    /// They make no sense.
    pub fn facts(&self, end: Timestamp) -> Result<Snapshot, LogError> {
        let head = self.entries(section::HEAD).next().ok_or(LogError::Entry("head"))?.1;
        let Head { source, mut window, steps, expected, unobservable, inventory, own_pods, witness } =
            read(head, "head")?;
        for interval in &mut window {
            if interval.to == OPEN {
                interval.to = end.max(interval.from);
            }
        }
        let (node, begun) = (source.node.clone(), source.start.unwrap_or_default());
        let (run, n) = self.0.revision;
        let revision = Revision { run, n };
        let mut body = Body {
            sources: BTreeSet::from([source.clone()]),
            window: Window {
                from: window.iter().map(|interval| interval.from).min(),
                to: window.iter().map(|interval| interval.to).max(),
                nodes: BTreeMap::from([(node.clone(), window)]),
                steps: Some((node.clone(), steps)).into_iter().filter(|(_, steps)| !steps.is_empty()).collect(),
            },
            revisions: (run > 0).then(|| SourceRevision { source: source.clone(), revision }).into_iter().collect(),
            coverage: Coverage {
                nodes: NodeCoverage { observed: BTreeSet::from([node.clone()]), expected, unobservable },
                inventory,
                ..Coverage::default()
            },
            own_pods_as_of: own_pods.then_some((node, end)).into_iter().collect(),
            witnesses: witness
                .map(|(tells, full)| Witness { source: source.clone(), tells, full })
                .into_iter()
                .collect(),
            ..Body::default()
        };
        let source = Arc::new(source);
        let (peers, nodes) = (HashMap::new(), NodeReader::default());
        let mut reader = Reader { replayed: &self.0, source, begun, end, peers, nodes };
        let mut unnamed = Vec::new();
        for entry in self.0.entries.iter().flatten() {
            reader.add(&mut body, &mut unnamed, entry)?;
        }
        for Unnamed { reason, flow } in unnamed {
            let entry = body.coverage.unresolved.iter_mut().find(|entry| entry.reason == reason);
            entry.ok_or(LogError::Entry("unresolved flows"))?.flows.get_or_insert_default().push(flow);
        }
        sort(&mut body);
        Ok(Snapshot { body, ..Snapshot::empty() })
    }

    /// The facts, which hold until `end`, and what follows from them.
    ///
    /// # Errors
    /// They make no sense.
    pub fn document(&self, end: Timestamp) -> Result<Document, LogError> {
        Ok(Document::joined([self.facts(end)?]))
    }
}

/// Entries have no order of their own; a snapshot has.
fn sort(body: &mut Body) {
    body.coverage.losses.sort_by(|a, b| a.reason.cmp(&b.reason));
    body.coverage.unresolved.sort_by(|a, b| a.reason.cmp(&b.reason));
    for flows in body.coverage.unresolved.iter_mut().flat_map(|entry| &mut entry.flows) {
        flows.sort_by(|a, b| {
            (&a.client, &a.server, a.protocol, a.port).cmp(&(&b.client, &b.server, b.protocol, b.port))
        });
    }
    body.coverage.workloads.sort_by(|a, b| a.peer.cmp(&b.peer));
    body.workloads.sort_by(|a, b| a.workload.cmp(&b.workload));
    body.label_changes.sort_by(|a, b| a.workload.cmp(&b.workload));
    body.nodes.sort();
    body.services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    body.addresses.sort_by(|a, b| (a.address, a.from, &a.peer, &a.pod).cmp(&(b.address, b.from, &b.peer, &b.pod)));
    body.presence.sort_by(|a, b| (&a.workload, &a.pod, &a.node, a.from).cmp(&(&b.workload, &b.pod, &b.node, b.from)));
    body.service_flows
        .sort_by(|a, b| (&a.client, &a.service, a.protocol, a.port).cmp(&(&b.client, &b.service, b.protocol, b.port)));
    body.remote_flows.sort_by(|a, b| {
        (&a.local, a.side, a.address, a.protocol, a.port).cmp(&(&b.local, b.side, b.address, b.protocol, b.port))
    });
    body.edges.sort_by(|a, b| {
        (&a.client.peer, &a.server.peer, a.protocol, a.port).cmp(&(&b.client.peer, &b.server.peer, b.protocol, b.port))
    });
}
