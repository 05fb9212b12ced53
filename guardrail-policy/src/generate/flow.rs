//! A flow as a person names it: `CLIENT->SERVER:PORT/PROTOCOL`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use guardrail_graph::{Peer, Protocol, WorkloadRef, snapshot::EdgeRecord};

/// A flow that a person accepts to stay without a rule. Ends are `NS/KIND/NAME` (a Service:
/// `NS/svc/NAME`), `node/NAME`, an address, `[IPv6]`, or `external`: any external end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowName {
    /// `None`: any external end.
    client: Option<Peer>,
    server: Option<Peer>,
    port: u16,
    protocol: Protocol,
}

impl FlowName {
    /// The name of a flow between these ends.
    #[must_use]
    pub fn new(client: &Peer, server: &Peer, port: u16, protocol: Protocol) -> Self {
        let end = |peer: &Peer| match peer {
            Peer::External { address } => address.parse::<IpAddr>().ok().map(external),
            named => Some(named.clone()),
        };
        Self { client: end(client), server: end(server), port, protocol }
    }

    /// The name of an edge.
    #[must_use]
    pub fn of(edge: &EdgeRecord) -> Self {
        Self::new(&edge.client.peer, &edge.server.peer, edge.port, edge.protocol)
    }

    /// As a shell takes it for one word, whatever stands in names.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("'{}'", self.to_string().replace('\'', r"'\''"))
    }

    /// Whether it names this flow: `external` also names each external address.
    #[must_use]
    pub fn names(&self, flow: &Self) -> bool {
        let end = |named: &Option<Peer>, is: &Option<Peer>| {
            named == is || (named.is_none() && matches!(is, Some(Peer::External { .. })))
        };
        self.port == flow.port
            && self.protocol == flow.protocol
            && end(&self.client, &flow.client)
            && end(&self.server, &flow.server)
    }
}

fn external(address: IpAddr) -> Peer {
    Peer::External { address: address.to_canonical().to_string() }
}

impl fmt::Display for FlowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |peer: &Option<Peer>| match peer {
            None => "external".to_owned(),
            Some(Peer::External { address }) if address.contains(':') => format!("[{address}]"),
            Some(Peer::External { address }) => address.clone(),
            Some(named) => named.to_string(),
        };
        write!(f, "{}->{}:{}/{}", end(&self.client), end(&self.server), self.port, self.protocol)
    }
}

/// The text names no flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no flow: write CLIENT->SERVER:PORT/PROTOCOL as the problem prints it, ends as NS/KIND/NAME, node/NAME, \
     external, an address or [IPv6]"
)]
pub struct BadFlowName(String);

impl FromStr for FlowName {
    type Err = BadFlowName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let (client, rest) = text.split_once("->")?;
            let (server, port) = rest.rsplit_once(':')?;
            let (port, protocol) = port.split_once('/')?;
            let protocol = Protocol::of_edge(protocol)?;
            let port = port.parse().ok().filter(|port| *port > 0)?;
            Some(Self { client: end(client.trim())?, server: end(server.trim())?, port, protocol })
        };
        parsed().ok_or_else(|| BadFlowName(text.to_owned()))
    }
}

/// The outer `None`: no end; the inner one: any external end.
fn end(text: &str) -> Option<Option<Peer>> {
    if text == "external" {
        return Some(None);
    }
    let parts: Vec<&str> = text.split('/').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    match parts.as_slice() {
        ["node", name] => Some(Some(Peer::Node { name: (*name).to_owned() })),
        [namespace, owner, name] => Some(Some(Peer::Workload(WorkloadRef {
            namespace: (*namespace).to_owned(),
            owner: (*owner).to_owned(),
            name: (*name).to_owned(),
        }))),
        [address] => {
            let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
            Some(Some(external(bare.parse().ok()?)))
        }
        _ => None,
    }
}

/// What a person accepts by name: a flow without a rule, or the policy of a workload that did not
/// run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accepted {
    /// `CLIENT->SERVER:PORT/PROTOCOL`.
    Flow(FlowName),
    /// `NS/KIND/NAME`.
    Workload(WorkloadRef),
}

impl FromStr for Accepted {
    type Err = BadFlowName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match end(text) {
            Some(Some(Peer::Workload(workload))) => Ok(Self::Workload(workload)),
            _ => text.parse().map(Self::Flow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_read_as_it_is_printed() {
        for text in [
            "shop/Deployment/web->pay/Rollout/api:8080/TCP",
            "node/node-a->shop/Deployment/web:53/UDP",
            "external->shop/Deployment/web:443/TCP",
            "shop/Deployment/web->203.0.113.9:25/TCP",
            "[2001:db8::1]->shop/Deployment/web:443/TCP",
            "shop/Deployment/web->[2001:db8::1]:443/TCP",
            "shop/Deployment/web->shop/svc/api:80/TCP",
        ] {
            assert_eq!(text.parse::<FlowName>().unwrap().to_string(), text);
        }
        for text in
            ["", "a->b:1/TCP", "a/b/c->d/e/f:0/TCP", "a/b/c->d/e/f:80", "a/b/c->d/e/f:80/tcp", "a//c->1.2.3.4:1/TCP"]
        {
            assert!(text.parse::<FlowName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_person_accepts_a_flow_or_a_workload() {
        let workload =
            |text: &str| matches!(text.parse::<Accepted>(), Ok(Accepted::Workload(w)) if w.to_string() == text);
        assert!(workload("shop/CronJob/report"));
        assert!(matches!("shop/Deployment/a->shop/Deployment/b:80/TCP".parse::<Accepted>(), Ok(Accepted::Flow(_))));
        for wrong in ["web", "shop/web", "node/a", "external", "shop/Deployment/"] {
            assert!(wrong.parse::<Accepted>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn external_names_every_external_end_and_no_other() {
        let external: FlowName = "external->shop/Deployment/web:443/TCP".parse().unwrap();
        for (flow, named) in [
            ("203.0.113.9->shop/Deployment/web:443/TCP", true),
            ("external->shop/Deployment/web:443/TCP", true),
            ("node/a->shop/Deployment/web:443/TCP", false),
            ("203.0.113.9->shop/Deployment/web:444/TCP", false),
        ] {
            assert_eq!(external.names(&flow.parse().unwrap()), named, "{flow}");
        }
        assert!(!"203.0.113.9->shop/Deployment/web:443/TCP".parse::<FlowName>().unwrap().names(&external));
    }
}
