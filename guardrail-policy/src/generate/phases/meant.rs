//! What a plan means for everybody, beside what was seen: services that every pod may reach, and
//! clients that may reach every pod.
//!
//! A shared service has one rule instead of a list of its callers, and whoever's egress is closed
//! has the rule to it, seen or not: else a new pod has no DNS. A caller is let in to every workload
//! but sensitive ones.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Peer, Protocol, WorkloadRef, snapshot::EdgeRecord};

use super::{Announced, Builder, Draft};
use crate::generate::{
    EdgeUse, Phase, PortRef, RulePeer, RulePort,
    context::Context,
    dns::Dns,
    reach::{Nodes, every_node},
};

type Ports = BTreeSet<(Protocol, u16)>;

/// What a plan means for everybody, as far as rules can say it.
#[derive(Default)]
pub(super) struct Meant {
    shared: BTreeMap<WorkloadRef, Ports>,
    callers: BTreeMap<WorkloadRef, Ports>,
}

impl Meant {
    /// Finds who is meant, and says who is and cannot be named.
    pub(super) fn new(context: &Context<'_>, uses: &[EdgeUse], dns: &Dns, warnings: &mut BTreeSet<String>) -> Self {
        let options = context.options;
        let mut meant = Self::default();
        let mut nameable = |what: &str, workload: &WorkloadRef| {
            let why = match context.workloads.get(workload) {
                // Whoever has the plan says so, with the nearest name.
                None => return false,
                Some(entry) if entry.host_network => "it uses the host's network",
                Some(_) if context.selector(workload).is_none() => "no label names it alone",
                Some(_) => return true,
            };
            warnings.insert(format!("{what} {workload} gets no rule of its own ({why}): what was seen is allowed"));
            false
        };
        for (workload, ports) in &options.shared {
            if nameable("shared service", workload) {
                meant.shared.insert(workload.clone(), ports.clone());
            }
        }
        let mut fallbacks = BTreeSet::new();
        let by_nodes = dns.is_answered_on_nodes() && !options.share_dns;
        for (workload, protocol, port) in dns.servers().filter(|_| options.share_dns || by_nodes) {
            let said = options.shared.contains_key(workload) || options.sensitive.contains(workload);
            if !said && context.selector(workload).is_some() {
                if by_nodes {
                    fallbacks.insert(workload);
                }
                meant.shared.entry(workload.clone()).or_default().insert((protocol, port));
            }
        }
        for caller in options.callers.iter().filter(|caller| nameable("caller", caller)) {
            meant.callers.insert(caller.clone(), Ports::new());
        }
        for (edge, _) in context.body.edges.iter().zip(uses).filter(|(_, used)| used.must_be_allowed()) {
            if let (Peer::Workload(client), Peer::Workload(_)) = (&*edge.client.peer, &*edge.server.peer)
                && let Some(ports) = meant.callers.get_mut(client)
            {
                ports.insert((edge.protocol, edge.port));
            }
        }
        warnings.extend(fallbacks.into_iter().map(|workload| {
            format!(
                "{workload} is open to every pod on its DNS ports: nodes answer for it, and when their caches are down pods ask it themselves"
            )
        }));
        meant.callers.retain(|caller, ports| {
            if ports.is_empty() {
                warnings.insert(format!("caller {caller} was seen to call no pod: it gets no rule"));
            }
            !ports.is_empty()
        });
        meant
    }

    /// Announces it port by port, those included whom no label tells from the ones that are meant.
    pub(super) fn announce(&self, context: &Context<'_>, announced: &mut Announced) {
        let each = |all: &BTreeMap<WorkloadRef, Ports>| -> BTreeSet<(WorkloadRef, Protocol, u16)> {
            let alike = all.iter().map(|(workload, ports)| (context.alike(workload), ports));
            alike
                .flat_map(|(alike, ports)| {
                    alike.into_iter().flat_map(|workload| {
                        ports.iter().map(move |(protocol, port)| (workload.clone(), *protocol, *port))
                    })
                })
                .collect()
        };
        announced.shared = each(&self.shared);
        announced.callers = each(&self.callers);
    }

    /// Whether the workload is shared.
    pub(super) fn shares(&self, workload: &WorkloadRef) -> bool {
        self.shared.contains_key(workload)
    }

    /// Whether the rule of a shared service allows this edge: the client is a pod.
    pub(super) fn covers(&self, edge: &EdgeRecord, context: &Context<'_>) -> bool {
        let (Peer::Workload(client), Peer::Workload(server)) = (&*edge.client.peer, &*edge.server.peer) else {
            return false;
        };
        self.shared.get(server).is_some_and(|ports| ports.contains(&(edge.protocol, edge.port)))
            && context.workloads.get(client).is_none_or(|entry| !entry.host_network)
            && !edge.marks.contains("proxied")
    }
}

impl Builder<'_> {
    /// Opens the ports on which these workloads are shared to every pod, and to the nodes: pods in
    /// a node's network ask, too. Returns the edges that this does not allow.
    pub(super) fn share(&self, draft: &mut Draft, members: &[&WorkloadRef], indices: Vec<usize>) -> Vec<usize> {
        let context = self.context;
        let shared = members.iter().filter_map(|member| self.meant.shared.get(*member)).flatten();
        let ports: BTreeSet<RulePort> = shared.map(rule_port).collect();
        if ports.is_empty() {
            return indices;
        }
        let (covered, others): (Vec<usize>, Vec<usize>) =
            indices.into_iter().partition(|index| self.meant.covers(self.edge(*index), context));
        self.allow_supported(draft, &RulePeer::EveryPod, &ports, &covered);
        let mut nodes = BTreeSet::new();
        if context.reach.nodes != Nodes::Nothing {
            nodes.extend(context.node_ranges().map(|(_, range, _)| range.peer.clone()));
        }
        if context.reach.by_entity() {
            nodes.extend(every_node());
        }
        draft.allow(nodes, &ports, &[]);
        others
    }

    /// Lets the callers in that are meant to reach everybody.
    pub(super) fn let_callers_in(&self, draft: &mut Draft, namespace: &str) {
        let bounded = self.context.options.phase_of(namespace) != Phase::DefaultDeny;
        for (caller, ports) in &self.meant.callers {
            // Within a boundary everybody calls everybody.
            let is_inside = bounded && caller.namespace == namespace;
            if let Some((peer, _)) = self.context.pods_peer(caller, namespace).filter(|_| !is_inside) {
                draft.allow([peer], &ports.iter().map(rule_port).collect(), &[]);
            }
        }
    }

    /// Lets a caller out to every pod.
    pub(super) fn let_caller_out(&self, draft: &mut Draft, members: &[&WorkloadRef]) {
        let ports = members.iter().filter_map(|member| self.meant.callers.get(*member)).flatten();
        let ports: BTreeSet<RulePort> = ports.map(rule_port).collect();
        // A rule without ports would mean all of them.
        if !ports.is_empty() {
            draft.allow([RulePeer::EveryPod], &ports, &[]);
        }
    }

    /// The way to every shared service, for a policy in this namespace.
    pub(super) fn allow_shared(&self, draft: &mut Draft, namespace: &str, asks: &[usize]) {
        for (workload, ports) in &self.meant.shared {
            let Some((peer, _)) = self.context.pods_peer(workload, namespace) else { continue };
            let of_it = |index: &&usize| self.edge(**index).server.peer.workload() == Some(workload);
            let edges: Vec<usize> = asks.iter().filter(of_it).copied().collect();
            self.allow_supported(draft, &peer, &ports.iter().map(rule_port).collect(), &edges);
        }
    }

    /// Each port rests on the edges of its number.
    fn allow_supported(&self, draft: &mut Draft, peer: &RulePeer, ports: &BTreeSet<RulePort>, edges: &[usize]) {
        for port in ports {
            let is_its = |index: &&usize| {
                let edge = self.edge(**index);
                rule_port(&(edge.protocol, edge.port)) == *port
            };
            let edges: Vec<usize> = edges.iter().filter(is_its).copied().collect();
            draft.allow([peer.clone()], &BTreeSet::from([port.clone()]), &edges);
        }
    }
}

fn rule_port((protocol, port): &(Protocol, u16)) -> RulePort {
    RulePort { protocol: *protocol, port: PortRef::Number(*port) }
}
