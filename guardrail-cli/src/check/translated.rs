//! Flows to addresses that a node translates to a pod's on the way: those of a Service for clients
//! outside, node ports, host ports. They are judged at the pods behind.
//!
//! Where a pod's egress to such an address is judged, and by which address its client arrives,
//! differs between networks: a flow has several ways. Its verdict is what all of them come to;
//! where they do not agree it is unproven, and the reason says on what that depends.

use guardrail_graph::inventory::{Inventory, Service};
use guardrail_policy::{
    evaluate::{End, Evaluator, SideVerdict, UnknownEnd, Verdict},
    model::{Direction, Protocol},
};

use crate::explain::ends::{self, Named};

/// What a flow was sent to, and where that leads.
pub(super) struct Translated<'a> {
    evaluator: &'a Evaluator,
    protocol: Protocol,
    /// The address that was asked for, with its port.
    front: Named,
    /// The pods behind it, with their ports.
    behind: Vec<Named>,
    /// The node that translates; `None`: the client's own, or for clients outside any.
    node: Option<&'a str>,
    /// Whether clients keep their address (`externalTrafficPolicy: Local`).
    keeps_client: bool,
    /// What stands for a Service and is no host port.
    is_service: bool,
    /// What is told of it.
    pub(super) note: String,
}

/// What becomes of a flow to one of the pods behind.
pub(super) struct Judged {
    /// The worst that each side says.
    pub(super) verdict: Verdict,
    /// On what it depends, if it does.
    pub(super) depends: Option<String>,
}

impl Judged {
    /// The greater, the worse.
    pub(super) fn rank(&self) -> usize {
        if self.depends.is_some() {
            1
        } else if self.verdict.denied() {
            2
        } else {
            usize::from(!self.verdict.allowed())
        }
    }
}

impl<'a> Translated<'a> {
    /// Where an end leads at which somebody else answers. `None`: nobody is known to.
    pub(super) fn new(
        evaluator: &'a Evaluator,
        inventory: &Inventory,
        unknown: &UnknownEnd,
        (protocol, port): (Protocol, u16),
    ) -> Option<anyhow::Result<Self>> {
        let known = |name: &str| name.split_once('/').and_then(|(namespace, name)| inventory.service(namespace, name));
        let new = |(front, node): (Named, Option<&'a str>), service: &Service, what: &str, at: u16| {
            let found = ends::behind((evaluator, true), inventory, (service, what), (protocol, at), |_| true)?;
            let (behind, note) = (found.ends, found.note.unwrap_or_default());
            let keeps_client = service.keeps_client_address;
            Ok(Self { evaluator, protocol, front, behind, node, keeps_client, is_service: true, note })
        };
        let node = |text: &str| {
            let end = evaluator.end(text).ok()?;
            Some((end, evaluator.node_name(&end)?))
        };
        match unknown {
            UnknownEnd::Virtual { address, service: name } => {
                // The address within the cluster hides nobody, wherever it is translated.
                let service = known(name).filter(|service| !service.cluster_ips.contains(address))?;
                let end = evaluator.end_of_address(*address);
                let front = Named { end, name: address.to_string(), port };
                let what = format!("{address} is an address of Service {name}");
                Some(new((front, None), service, &what, port))
            }
            UnknownEnd::NodePort { end, port: node_port, service: name } => {
                let service = known(name)?;
                let (end_of_node, node) = node(end)?;
                let at = ends::port_behind(service, protocol, *node_port)?;
                let front = Named { end: end_of_node, name: end.clone(), port: *node_port };
                let what = format!("port {node_port} of {end} is the node port of Service {name}");
                Some(new((front, Some(node)), service, &what, at))
            }
            UnknownEnd::HostPort { end, port: host_port, pod } => {
                let (end_of_node, node) = node(end)?;
                let behind = ends::pod_at_host_port(evaluator, pod, protocol, *host_port)?;
                let note = format!(
                    "port {host_port} of {end} is a host port of pod {pod}: judged at its port {}",
                    behind.port
                );
                let front = Named { end: end_of_node, name: end.clone(), port: *host_port };
                let (behind, node) = (vec![behind], Some(node));
                let (keeps_client, is_service) = (true, false);
                Some(Ok(Self { evaluator, protocol, front, behind, node, keeps_client, is_service, note }))
            }
            _ => None,
        }
    }

    /// The node of a pod.
    fn node_of(&self, end: &End) -> Option<&str> {
        self.evaluator.cluster().pods[end.pod()? as usize].node.as_deref()
    }

    /// Whether the node of this pod translates.
    fn is_at_own_node(&self, pod: &End) -> bool {
        self.node.is_none() || self.node_of(pod) == self.node
    }

    /// The pods that a client may reach there: where clients keep their address, a node leads those
    /// that are no pods to its own pods only.
    fn reached(&self, src: &End) -> Vec<&Named> {
        let own_only = self.is_service && self.keeps_client && !src.is_pod() && self.node.is_some();
        let is_reached = |named: &&Named| {
            named.end.can_reach(&self.front.end) && (!own_only || self.node_of(&named.end) == self.node)
        };
        self.behind.iter().filter(is_reached).collect()
    }

    /// Judges a flow from here to each pod that it may reach, which is given with it. Each verdict
    /// that was asked for is given to `used`.
    ///
    /// # Errors
    /// Why nothing can be said.
    pub(super) fn judge(&self, src: &Named, mut used: impl FnMut(&Verdict)) -> Result<Vec<(Judged, &End)>, String> {
        let reached = self.reached(&src.end);
        if reached.is_empty() {
            return Err(format!("{}, and the address leads to none of them", self.note));
        }
        let sources = self.sources(src)?;
        let mut judge = |behind: &Named| self.judge_one(src, &sources, behind, &mut used);
        Ok(reached.into_iter().map(|behind| (judge(behind), &behind.end)).collect())
    }

    fn judge_one(&self, src: &Named, sources: &[Named], behind: &Named, used: &mut impl FnMut(&Verdict)) -> Judged {
        let mut ask = |from: &End, to: &Named| {
            let verdict = self.evaluator.evaluate(from, &to.end, self.protocol, to.port);
            used(&verdict);
            verdict
        };
        let places = self.places(&src.end, behind);
        let egress = places.into_iter().map(|place| (ask(&src.end, place).egress, place)).collect();
        let mut exemption = None;
        let mut ingress = Vec::new();
        for source in sources {
            let verdict = ask(&source.end, behind);
            exemption = verdict.exemption.filter(|_| sources.len() == 1);
            ingress.push((verdict.ingress, source));
        }
        let (egress, on_egress) = agreed(egress, Direction::Egress);
        let (ingress, on_ingress) = agreed(ingress, Direction::Ingress);
        let verdict = Verdict { exemption, egress, ingress };
        // What one side denies on each way is denied.
        let is_denied =
            on_egress.is_none() && verdict.egress.denies() || on_ingress.is_none() && verdict.ingress.denies();
        let depends: Vec<String> = [on_egress, on_ingress].into_iter().flatten().filter(|_| !is_denied).collect();
        let depends = (!depends.is_empty()).then(|| depends.join("; "));
        Judged { verdict, depends }
    }

    /// Where egress of a client may be judged.
    fn places<'b>(&'b self, src: &End, behind: &'b Named) -> Vec<&'b Named> {
        let dataplane = self.evaluator.dataplane();
        if !src.is_pod() {
            return vec![behind];
        }
        if dataplane.judges_what_was_asked() {
            return vec![&self.front];
        }
        // Another node translates what has left the client by then, unless its socket was given the
        // pod at once.
        let is_certain = self.is_at_own_node(src) && !self.evaluator.is_cilium();
        if is_certain { vec![behind] } else { vec![behind, &self.front] }
    }

    /// By which addresses a client may arrive.
    fn sources(&self, src: &Named) -> Result<Vec<Named>, String> {
        let mut all = vec![src.clone()];
        // Of this node, or of any.
        let add = |all: &mut Vec<Named>, name: Option<&str>| {
            let nodes = self.evaluator.cluster().nodes.iter().filter(|node| name.is_none_or(|name| node.name == name));
            for address in nodes.flat_map(|node| &node.addresses) {
                let end = self.evaluator.end_of_address(*address);
                let reaches = self.behind.iter().any(|behind| behind.end.can_reach(&end));
                if reaches && !all.iter().any(|known| known.end == end) {
                    all.push(Named { end, name: address.to_string(), port: 0 });
                }
            }
        };
        // On the way to another node, and through a host port of their own, many networks give pods
        // their node's address.
        if src.end.is_pod() && !(self.is_service && self.is_at_own_node(&src.end)) {
            add(&mut all, self.node_of(&src.end));
        }
        if !self.keeps_client {
            match self.node {
                Some(node) => add(&mut all, Some(node)),
                None if src.end.is_node() => {}
                None => add(&mut all, self.node_of(&src.end)),
            }
            if all.len() == 1 && !src.end.is_node() {
                return Err(format!(
                    "{}; on the way its address may become a node's, and the inventory has no address of nodes: add Nodes to --inventory",
                    self.note
                ));
            }
        }
        Ok(all)
    }
}

/// What a side says on all ways; if they differ, the worst, and on what it depends.
fn agreed(mut ways: Vec<(SideVerdict, &Named)>, direction: Direction) -> (SideVerdict, Option<String>) {
    let rank = |side: &SideVerdict| if side.denies() { 2 } else { usize::from(!side.allows()) };
    let word = |side: &SideVerdict| ["allowed", "unproven", "denied"][rank(side)];
    // Stable: of equals the one that stands first.
    ways.sort_by_key(|(side, _)| std::cmp::Reverse(rank(side)));
    let differ = ways.first().zip(ways.last()).filter(|(worst, best)| rank(&worst.0) != rank(&best.0));
    let depends = differ.map(|((worst, at), (best, other))| match direction {
        Direction::Egress => format!(
            "egress is {} at {} port {} and {} at {} port {}, and which of them is judged depends on the network",
            word(worst),
            at.name,
            at.port,
            word(best),
            other.name,
            other.port
        ),
        Direction::Ingress => format!(
            "ingress is {} from {} and {} from {}, and by which address the client arrives depends on the network",
            word(worst),
            at.name,
            word(best),
            other.name
        ),
    });
    let worst = ways.into_iter().next().map_or(SideVerdict::NotIsolated, |(side, _)| side);
    (worst, depends)
}
