//! The rules about policies that are no NetworkPolicy: Cilium's kinds, ClusterNetworkPolicy and its
//! predecessors. What holds for all kinds has the ids of the rules about NetworkPolicy.

use std::collections::BTreeSet;

use guardrail_graph::snapshot::LabelSelector;

use super::{
    ALLOW_ALL, ANY_NAMESPACE, CLUSTER_IP_BLOCK, DENY_CLOSES, EVERY_PORT, LABEL_OUTSIDE_IDENTITY, Linter,
    MATCHES_NOBODY, NAMES_WITHOUT_DNS, PEER_MATCHES_NOTHING, PRIORITY_TIE, SELECTS_NOTHING, Severity,
    UNKNOWN_PORT_NAME, WIDE_PEER, ports::Halves,
};
use crate::{
    evaluate::{
        ClusterPod, LabelFilter,
        identity::{NAMESPACE_LABELS, POD_NAMESPACE},
    },
    model::{
        Direction, PolicyPort, PortMatch, Protocol,
        tier::{Action, Entity, PodSelector, Subject, TierPeer, TierPolicy, TierRule},
        words,
    },
};

impl Linter<'_> {
    /// `index`: of the policy in [`crate::evaluate::Evaluator::forms`].
    pub(super) fn form(&mut self, form: &TierPolicy, index: u32, all: &[TierPolicy]) {
        self.form_subject(form, index);
        for direction in Direction::BOTH {
            for rule in form.rules(direction) {
                let name = format!("{direction} rule {}", rule.label);
                self.form_rule(form, index, direction, rule, &name);
            }
            self.form_numbers(form, index, direction);
            if form.kind.is_cilium() {
                self.halves(form, direction);
                self.deny_closes(form, direction, all);
            }
        }
        self.names_without_dns(form, all);
    }

    fn form_subject(&mut self, form: &TierPolicy, index: u32) {
        let Subject::Pods(selector) = &form.subject else { return };
        self.pod_selector(form, selector, form.subject_line, "the subject");
        let cluster_wide = form.namespace.is_empty() && form.kind.is_cilium();
        if let PodSelector::Cilium { selector, .. } = selector
            && cluster_wide
            && !selector.is_empty()
            && !names_namespace(selector)
        {
            let message = format!("endpointSelector {} selects pods of every namespace", words(selector));
            self.add_as(Severity::Note, &ANY_NAMESPACE, form, form.subject_line, message);
        }
        let Some(evaluator) = self.evaluator.filter(|e| !e.cluster().pods.is_empty()) else { return };
        if evaluator.selected_pods(index).is_empty() {
            let message = format!("{} selects no live pod", form.key());
            self.add(&SELECTS_NOTHING, form, form.subject_line, message);
        }
    }

    /// What holds for selectors of all kinds.
    fn pod_selector(&mut self, form: &TierPolicy, selector: &PodSelector, line: u32, field: &str) {
        match selector {
            PodSelector::Kubernetes { namespaces, pods, .. } => {
                for selector in namespaces.iter().chain(pods) {
                    self.labels(form, selector, line, field);
                }
            }
            PodSelector::Cilium { selector, .. } => {
                // A generated label is told as that; the others that no identity has, here.
                let before = self.findings.len();
                self.labels(form, selector, line, field);
                let filter = LabelFilter::default();
                let outside = keys(selector).find(|key| *key != POD_NAMESPACE && filter.leaves_out(key));
                if let Some(key) = outside.filter(|_| self.findings.len() == before) {
                    let message = format!("{field} asks for {key}, which Cilium keeps out of identities by default");
                    self.add(&LABEL_OUTSIDE_IDENTITY, form, line, message);
                }
            }
        }
    }

    fn form_rule(&mut self, form: &TierPolicy, index: u32, direction: Direction, rule: &TierRule, name: &str) {
        let accepts = rule.action == Action::Accept;
        match &rule.peers {
            None => {}
            Some(peers) if peers.is_empty() => self.nobody(form, direction, rule, name),
            Some(peers) => {
                for (peer, line) in peers.iter().zip(&rule.peer_lines) {
                    self.form_peer(form, direction, (&**peer, *line), accepts, name);
                }
                let everybody = peers.iter().any(|peer| **peer == TierPeer::Entity(Entity::All));
                if everybody && accepts && rule.ports.is_empty() {
                    let message = format!("{name} allows every peer on every port, the world and nodes included");
                    self.add(&ALLOW_ALL, form, rule.line, message);
                }
            }
        }
        if form.kind.is_cilium() && rule.ports.iter().any(|p| p.port == PortMatch::Any) {
            self.add(&EVERY_PORT, form, rule.line, format!("{name}: port 0, or none, is every port of its protocol"));
        }
        self.port_names(form, index, direction, rule, name);
    }

    /// A rule that matches nothing: alone it is how default deny is written.
    fn nobody(&mut self, form: &TierPolicy, direction: Direction, rule: &TierRule, name: &str) {
        let alone = form.rules(direction).len() == 1 && rule.ports.is_empty() && rule.action == Action::Accept;
        let message = format!("{name} matches nobody");
        if alone {
            let message = format!("{message}: {direction} is closed; in a NetworkPolicy the same opens it");
            self.add_as(Severity::Note, &MATCHES_NOBODY, form, rule.line, message);
        } else {
            self.add(&MATCHES_NOBODY, form, rule.line, message);
        }
    }

    fn form_peer(
        &mut self,
        form: &TierPolicy,
        direction: Direction,
        (peer, line): (&TierPeer, u32),
        accepts: bool,
        name: &str,
    ) {
        match peer {
            TierPeer::Pods(selector) => {
                self.pod_selector(form, selector, line, name);
                if let PodSelector::Cilium { selector, .. } = selector
                    && form.namespace.is_empty()
                    && accepts
                    && !names_namespace(selector)
                {
                    let message = format!("{name}: {} matches pods of every namespace", words(selector));
                    self.add(&ANY_NAMESPACE, form, line, message);
                }
                let nobody = self.evaluator.filter(|e| !e.cluster().pods.is_empty() && e.peer_pods(peer) == Some(0));
                if nobody.is_some() {
                    self.add(&PEER_MATCHES_NOTHING, form, line, format!("{name}: the peer matches no live pod"));
                }
            }
            TierPeer::Entity(Entity::All) if accepts => {
                let message = format!("{name}: the entity all holds the world and every node, not only pods");
                self.add(&WIDE_PEER, form, line, message);
            }
            TierPeer::Addresses { block, .. } if form.kind.is_cilium() && block.cidr.prefix_len() > 0 => {
                let what = match self.in_cluster(block) {
                    Some((what, _)) => what,
                    None if self.is_nodes(block) => "holds addresses of nodes".to_owned(),
                    None => return,
                };
                let message =
                    format!("{name}: {} {what}, and Cilium's ranges match neither pods nor nodes", block.cidr);
                let fix = match direction {
                    Direction::Ingress => "Write fromEndpoints for pods, fromEntities for nodes",
                    Direction::Egress => "Write toEndpoints for pods, toEntities for nodes",
                };
                self.add_with(&CLUSTER_IP_BLOCK, form, line, message, fix.to_owned());
            }
            _ => {}
        }
    }

    /// Port names that nobody has whom the rule can concern: those that the policy selects, or for
    /// egress any pod.
    fn port_names(&mut self, form: &TierPolicy, index: u32, direction: Direction, rule: &TierRule, name: &str) {
        let Some(evaluator) = self.evaluator.filter(|e| !e.cluster().pods.is_empty()) else { return };
        let pods = &evaluator.cluster().pods;
        let concerned: Vec<&ClusterPod> = match direction {
            Direction::Ingress => evaluator.selected_pods(index).into_iter().map(|p| &pods[p as usize]).collect(),
            Direction::Egress => pods.iter().collect(),
        };
        let names: BTreeSet<&String> = rule
            .ports
            .iter()
            .filter_map(|p| if let PortMatch::Named(name) = &p.port { Some(name) } else { None })
            .collect();
        for wanted in names {
            let protocols: Vec<Protocol> =
                rule.ports.iter().filter(|p| p.port == PortMatch::Named(wanted.clone())).map(|p| p.protocol).collect();
            let has = |pod: &&ClusterPod| pod.ports.iter().any(|(n, p, _)| n == wanted && protocols.contains(p));
            if !concerned.is_empty() && !concerned.iter().any(has) {
                let whose = if direction == Direction::Ingress { "no selected pod" } else { "no pod" };
                self.add(&UNKNOWN_PORT_NAME, form, rule.line, format!("{name}: {whose} has a port named {wanted}"));
            }
        }
    }

    /// Numbers that are the node port or the port of a Service, where the rule is about pods.
    fn form_numbers(&mut self, form: &TierPolicy, index: u32, direction: Direction) {
        let Subject::Pods(_) = form.subject else { return };
        for rule in form.rules(direction) {
            let name = format!("{direction} rule {}", rule.label);
            let pods = self.evaluator.map(|evaluator| evaluator.cluster().pods.as_slice()).unwrap_or_default();
            let leads_to: Option<Vec<&PodSelector>> = rule.peers.as_ref().and_then(|peers| {
                let selectors =
                    peers.iter().map(|peer| if let TierPeer::Pods(selector) = &**peer { Some(selector) } else { None });
                selectors.collect()
            });
            let concerned: Vec<&ClusterPod> = match (direction, self.evaluator, leads_to) {
                (Direction::Ingress, Some(evaluator), _) => {
                    evaluator.selected_pods(index).into_iter().map(|pod| &pods[pod as usize]).collect()
                }
                (Direction::Egress, Some(evaluator), Some(selectors)) => {
                    let chosen = selectors.into_iter().flat_map(|selector| evaluator.pods_selected_by(selector));
                    chosen.map(|pod| &pods[pod as usize]).collect()
                }
                // What is no pod may well be reached at a node port.
                (Direction::Egress, _, None) => continue,
                _ => Vec::new(),
            };
            let declared = |number: u16| {
                let is = |p: &&PolicyPort| matches!(p.port, PortMatch::Range { first, last } if first == number && last == number);
                let protocols: Vec<Protocol> = rule.ports.iter().filter(is).map(|p| p.protocol).collect();
                let mut ports = concerned.iter().flat_map(|pod| &pod.declared_ports);
                ports.any(|d| d.port == number && protocols.contains(&d.protocol))
            };
            for port in &rule.ports {
                if let PortMatch::Range { first, last } = port.port
                    && first == last
                    && !port.protocol.is_icmp()
                    && !declared(first)
                {
                    self.number(form, direction, port, first, Some(&concerned), &name);
                }
            }
        }
    }

    /// See [`Linter::split_rules`].
    fn halves(&mut self, form: &TierPolicy, direction: Direction) {
        let whole = |rule: &&TierRule| {
            let somebody = rule.peers.as_ref().is_none_or(|peers| !peers.is_empty());
            rule.action == Action::Accept && somebody && !rule.l7 && !rule.ports.iter().any(|p| p.protocol.is_icmp())
        };
        let halves: Vec<Halves<'_>> = form
            .rules(direction)
            .iter()
            .filter(whole)
            .map(|rule| Halves {
                has_peers: rule.peers.is_some(),
                ports: &rule.ports,
                label: rule.label.clone(),
                line: rule.line,
            })
            .collect();
        self.split_rules(form, direction, &halves);
    }

    /// A policy of denies alone closes everything else, unless another one opens it.
    fn deny_closes(&mut self, form: &TierPolicy, direction: Direction, all: &[TierPolicy]) {
        let rules = form.rules(direction);
        let opens = |policy: &TierPolicy| {
            let somebody = |rule: &TierRule| {
                rule.action == Action::Accept && rule.peers.as_ref().is_none_or(|peers| !peers.is_empty())
            };
            policy.rules(direction).iter().any(somebody)
        };
        let denies = rules.iter().any(|r| r.action == Action::Deny);
        if !form.isolates(direction) || !denies || rules.iter().any(|r| r.action == Action::Accept) {
            return;
        }
        let beside = |other: &&TierPolicy| {
            other.namespace.is_empty() || form.namespace.is_empty() || other.namespace == form.namespace
        };
        let networks = self.network_policies.iter().any(|other| {
            other.namespace == form.namespace && other.isolates(direction) && !other.rules(direction).is_empty()
        });
        if !networks && !all.iter().filter(beside).any(opens) {
            let line = rules.first().map_or(form.subject_line, |r| r.line);
            let message = format!("{direction} has denies alone: everything else is closed, too");
            self.add(&DENY_CLOSES, form, line, message);
        }
    }

    /// `toFQDNs` learns addresses from the answers that a DNS rule lets the proxy see.
    fn names_without_dns(&mut self, form: &TierPolicy, all: &[TierPolicy]) {
        if !form.kind.is_cilium() {
            return;
        }
        let by_name = |rule: &&TierRule| rule.peers.iter().flatten().any(|p| matches!(**p, TierPeer::Name(_)));
        let Some(rule) = form.egress.iter().find(by_name) else { return };
        // HTTP and its like are for TCP alone.
        let dns = |rule: &TierRule| rule.l7 && rule.ports.iter().any(|p| p.protocol == Protocol::Udp);
        let same = |other: &TierPolicy| {
            let whole = match &other.subject {
                Subject::Pods(PodSelector::Cilium { selector, .. }) => selector.is_empty(),
                _ => false,
            };
            let place = other.namespace.is_empty() || other.namespace == form.namespace;
            place && (whole || other.subject == form.subject)
        };
        if !all.iter().any(|other| other.kind.is_cilium() && same(other) && other.egress.iter().any(dns)) {
            let message = format!(
                "egress rule {} names hosts, and no rule for the same pods has `rules.dns`: no address is ever learnt",
                rule.label
            );
            self.add(&NAMES_WITHOUT_DNS, form, rule.line, message);
        }
    }

    /// Policies of one tier and priority whose rules disagree.
    pub(super) fn ties(&mut self, all: &[TierPolicy], first: u32) {
        let actions = |policy: &TierPolicy, direction| -> BTreeSet<Action> {
            policy.rules(direction).iter().map(|r| r.action).collect()
        };
        for (earlier, index) in all.iter().zip(first..).filter(|(p, _)| p.tier.ordered()) {
            let behind = all.iter().zip(first..).skip_while(|(_, other)| *other <= index);
            let alike = |(p, _): &(&TierPolicy, u32)| p.tier == earlier.tier && p.priority == earlier.priority;
            for (later, other) in behind.filter(alike) {
                let disagree = |direction: &Direction| {
                    let (a, b) = (actions(earlier, *direction), actions(later, *direction));
                    !a.is_empty() && !b.is_empty() && a.union(&b).count() > 1
                };
                let shared = self.evaluator.is_none_or(|evaluator| {
                    let pods: BTreeSet<u32> = evaluator.selected_pods(other).into_iter().collect();
                    evaluator.selected_pods(index).iter().any(|p| pods.contains(p))
                });
                if shared && Direction::BOTH.iter().any(disagree) {
                    let message = format!(
                        "{} has the same priority {}, and their rules do different things: which one is asked first is undefined",
                        later.key(),
                        later.priority
                    );
                    let line = earlier.location.as_ref().map_or(0, |l| l.line);
                    self.add(&PRIORITY_TIE, earlier, line, message);
                    break;
                }
            }
        }
    }
}

fn keys(selector: &LabelSelector) -> impl Iterator<Item = &String> {
    selector.match_labels.keys().chain(selector.match_expressions.iter().map(|e| &e.key))
}

fn names_namespace(selector: &LabelSelector) -> bool {
    keys(selector).any(|key| key == POD_NAMESPACE || key.starts_with(NAMESPACE_LABELS))
}
