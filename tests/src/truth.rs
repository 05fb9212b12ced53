//! The true edges, from the applications' logs and the lab's own table. Nothing of guardrail takes
//! part in this.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    app::log::{Outcome, Record, Side},
    cluster::{Cluster, node_addresses},
};

/// Names an edge. Peers are spelled `namespace/Kind/name`, `node/NAME`, `external/ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// Who calls.
    pub client: String,
    /// Who is called.
    pub server: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The port that the server's socket has.
    pub port: u16,
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}/{}", self.client, self.server, self.port, self.protocol)
    }
}

/// What is known of a true edge.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Connections made while the agent watched (TCP), exchanges (UDP).
    pub opened: u64,
    /// Connections made before and still open.
    pub found: u64,
    /// Services asked for: `namespace/name:port`.
    pub via: BTreeSet<String>,
    /// Address families seen: 4, 6.
    pub families: BTreeSet<u8>,
    /// The client's records.
    pub records: Vec<Record>,
}

/// Everything that really happened.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Edges, with evidence.
    pub edges: BTreeMap<Edge, Evidence>,
    /// Failed attempts: who, and what was asked for. The "server" is the owner of the asked
    /// address.
    pub failed: BTreeMap<Edge, Vec<Record>>,
    /// Multicast: sender and group.
    pub multicast: BTreeSet<(String, SocketAddr)>,
}

impl Truth {
    /// Derives the truth from all records of a lab.
    ///
    /// # Errors
    /// The two ends' logs do not agree, or an address is not in the table: then the lab is not
    /// sound and proves nothing.
    pub fn from_records(cluster: &Cluster, records: &[Record]) -> Result<Self> {
        let table = Table::new(cluster);
        let mut truth = Self::default();
        let mut by_id: BTreeMap<&str, &Record> = BTreeMap::new();
        let mut by_socket: BTreeMap<(IpAddr, u16, &str), &Record> = BTreeMap::new();
        for record in records.iter().filter(|r| r.side == Side::Server) {
            match &record.id {
                Some(id) => drop(by_id.insert(id, record)),
                None => drop(
                    by_socket.insert((canonical(record.remote.ip()), record.remote.port(), &record.protocol), record),
                ),
            }
        }
        let mut answered = 0;
        for record in records.iter().filter(|r| r.side == Side::Client) {
            let client = table.peer_of_process(&record.process, record)?;
            let remote = SocketAddr::new(canonical(record.remote.ip()), record.remote.port());
            match record.outcome {
                Outcome::Refused | Outcome::Unanswered | Outcome::Unreachable => {
                    let server = table.owner(remote.ip())?;
                    let edge = Edge { client, server, protocol: record.protocol.clone(), port: remote.port() };
                    truth.failed.entry(edge).or_default().push(record.clone());
                    continue;
                }
                Outcome::Sent if remote.ip().is_multicast() => {
                    truth.multicast.insert((client, remote));
                    continue;
                }
                Outcome::Established | Outcome::Sent => {}
                Outcome::Accepted | Outcome::Broken => {
                    bail!("a connection broke in the lab: {record:?}")
                }
            }
            let server = match &record.id {
                Some(id) => by_id.get(id.as_str()).copied(),
                None => table
                    .client_addresses(record)
                    .into_iter()
                    .find_map(|address| by_socket.get(&(address, record.local?.port(), &record.protocol)).copied()),
            };
            let server = server.with_context(|| format!("no server logged what a client did: {record:?}"))?;
            answered += usize::from(record.id.is_some());
            let is_external = server.process.starts_with("internet/");
            let edge = Edge {
                client,
                server: if is_external {
                    format!("external/{}", remote.ip())
                } else {
                    table.peer_of_process(&server.process, server)?
                },
                protocol: record.protocol.clone(),
                port: server.local.context("a server knows its own port")?.port(),
            };
            let kept = record.before && record.target.is_some() && record.id.is_some();
            if record.before && !kept {
                continue;
            }
            let evidence = truth.edges.entry(edge).or_default();
            if record.before {
                evidence.found += 1;
            } else {
                evidence.opened += 1;
            }
            evidence.families.insert(if remote.is_ipv4() { 4 } else { 6 });
            evidence.via.extend(table.service(remote));
            evidence.records.push(record.clone());
        }
        if answered != by_id.len() {
            let known: BTreeSet<_> =
                records.iter().filter(|r| r.side == Side::Client).filter_map(|r| r.id.as_deref()).collect();
            let orphan = by_id.iter().find(|(id, _)| !known.contains(*id));
            if let Some((_, record)) = orphan {
                bail!("a server logged what no client did: {record:?}");
            }
        }
        Ok(truth)
    }
}

/// Addresses IPv4-mapped are IPv4.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Who has which address.
struct Table<'a> {
    cluster: &'a Cluster,
    services: BTreeMap<SocketAddr, String>,
}

impl<'a> Table<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let mut services = BTreeMap::new();
        for service in &cluster.services {
            for port in &service.ports {
                let name = format!("{}/{}:{}", service.namespace, service.name, port.port);
                if !service.headless {
                    let own = [service.addresses.0.into(), service.addresses.1.into()];
                    for address in own.iter().chain(&service.external_ips) {
                        services.insert(SocketAddr::new(*address, port.port), name.clone());
                    }
                }
                if let Some(node_port) = port.node_port {
                    for node in 0..cluster.nodes.len() {
                        let (v4, v6) = node_addresses(node);
                        services.insert(SocketAddr::new(v4.into(), node_port), name.clone());
                        services.insert(SocketAddr::new(v6.into(), node_port), name.clone());
                    }
                }
            }
        }
        Self { cluster, services }
    }

    fn service(&self, asked: SocketAddr) -> Option<String> {
        self.services.get(&asked).cloned()
    }

    fn peer_of_process(&self, process: &str, record: &Record) -> Result<String> {
        let pod = process.split(':').next().unwrap_or(process);
        if process.starts_with("internet/") {
            let address = if record.side == Side::Client { record.local } else { Some(record.remote) };
            return Ok(format!(
                "external/{}",
                canonical(address.context("an external client knows its address")?.ip())
            ));
        }
        if let Some(rest) = process.strip_prefix("host/") {
            return Ok(format!("node/{}", rest.split('/').next().unwrap_or(rest)));
        }
        let pod = self
            .cluster
            .pods
            .iter()
            .find(|p| p.key() == pod)
            .with_context(|| format!("no pod {pod} in the lab's table"))?;
        Ok(self.cluster.peer_of_pod(pod))
    }

    /// Addresses that a server may have seen as the source of a client whose socket was not bound
    /// to one.
    fn client_addresses(&self, record: &Record) -> Vec<IpAddr> {
        match record.local {
            Some(local) if !local.ip().is_unspecified() => vec![canonical(local.ip())],
            _ => {
                let pod = record.process.split(':').next().unwrap_or_default();
                self.cluster
                    .pods
                    .iter()
                    .filter(|p| p.key() == pod)
                    .flat_map(|p| [p.addresses.0.into(), p.addresses.1.into()])
                    .collect()
            }
        }
    }

    fn owner(&self, address: IpAddr) -> Result<String> {
        for (index, name) in self.cluster.nodes.iter().enumerate() {
            let (v4, v6) = node_addresses(index);
            if address == v4 || address == v6 {
                return Ok(format!("node/{name}"));
            }
        }
        for pod in self.cluster.pods.iter().filter(|p| p.present && !self.cluster.workloads[p.workload].host_network) {
            if address == pod.addresses.0 || address == pod.addresses.1 {
                return Ok(self.cluster.peer_of_pod(pod));
            }
        }
        if let Some((_, service)) = self.services.iter().find(|(front, _)| front.ip() == address) {
            return Ok(format!("service/{service}"));
        }
        Ok(format!("external/{address}"))
    }
}
