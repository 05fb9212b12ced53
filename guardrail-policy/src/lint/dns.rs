//! Egress that is closed without a way to DNS: judged over all policies together, because another policy may open it.

use std::collections::BTreeMap;

use super::{Linter, NO_DNS};
use crate::model::{Direction, NetworkPolicy, PeerKind, PolicyPort, PortMatch, Protocol, Rule, selector_matches};

impl Linter<'_> {
    pub(super) fn dns(&mut self, policies: &[NetworkPolicy]) {
        // Closing policies by what they select: one finding for each, not for each pod.
        let closing = policies.iter().filter(|p| p.isolates(Direction::Egress) && !p.egress.iter().any(may_be_dns));
        let mut without = Vec::new();
        for policy in closing {
            let opened = match self.evaluator {
                Some(evaluator) => self.opened_for_all(evaluator, policy),
                None => policies.iter().any(|other| opens(other, policy)),
            };
            if !opened {
                without.push(policy);
            }
        }
        for policy in without {
            let line = policy.location.as_ref().map_or(0, |l| l.line);
            let message = "closes egress, and no policy allows DNS (UDP 53) for these pods".to_owned();
            self.add(&NO_DNS, policy, line, message);
        }
    }

    /// Every pod that the policy selects is selected by some policy that allows DNS.
    fn opened_for_all(&self, evaluator: &crate::evaluate::Evaluator, policy: &NetworkPolicy) -> bool {
        let mut opened: BTreeMap<u32, bool> = BTreeMap::new();
        for (known, index) in evaluator.policies().iter().zip(0..) {
            let dns = known.isolates(Direction::Egress) && known.egress.iter().any(may_be_dns);
            if known.key() == policy.key() {
                for pod in evaluator.selected_pods(index) {
                    opened.entry(pod).or_default();
                }
            } else if dns {
                evaluator.selected_pods(index).into_iter().for_each(|p| *opened.entry(p).or_default() = true);
            }
        }
        let own = evaluator.policies().iter().zip(0..).find(|(p, _)| p.key() == policy.key());
        own.is_none_or(|(_, index)| evaluator.selected_pods(index).iter().all(|pod| opened[pod]))
    }
}

/// Without an inventory: `other` allows DNS for everything that `policy` selects, as far as labels written down tell.
fn opens(other: &NetworkPolicy, policy: &NetworkPolicy) -> bool {
    other.namespace == policy.namespace
        && other.isolates(Direction::Egress)
        && other.egress.iter().any(may_be_dns)
        && (other.pod_selector.is_empty()
            || other.pod_selector == policy.pod_selector
            || (policy.pod_selector.match_expressions.is_empty()
                && !policy.pod_selector.is_empty()
                && selector_matches(&other.pod_selector, &policy.pod_selector.match_labels)))
}

/// The rule may let DNS pass: UDP 53 (or a DNS pod's port by name, or 5353) to pods, or to any peer.
fn may_be_dns(rule: &Rule) -> bool {
    let port = |p: &PolicyPort| {
        p.protocol == Protocol::Udp
            && match &p.port {
                PortMatch::Any => true,
                PortMatch::Range { first, last } => [53, 5353].iter().any(|dns| (first..=last).contains(&dns)),
                PortMatch::Named(name) => name.contains("dns"),
            }
    };
    let ports = rule.ports.is_empty() || rule.ports.iter().any(port);
    let peers =
        rule.peers.is_empty() || rule.peers.iter().any(|p| may_reach_dns(&p.kind)) || rule.ports.iter().any(port);
    ports && peers
}

/// Only for rules that allow all ports: a peer that is wide enough to hold the DNS pods.
fn may_reach_dns(peer: &PeerKind) -> bool {
    match peer {
        PeerKind::Pods { namespaces, .. } => namespaces.is_some(),
        PeerKind::IpBlock(block) => block.cidr.prefix_len() == 0,
    }
}
