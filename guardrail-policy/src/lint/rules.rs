//! The rules that look at one policy.

use super::{ALLOW_ALL, EMPTY_SPEC, IGNORED_RULES, Linter, MISSING_POLICY_TYPES, Severity, WIDE_PEER, ports::Halves};
use crate::model::{Direction, NetworkPolicy, PeerKind, PolicyPeer, Rule};

impl Linter<'_> {
    pub(super) fn policy(&mut self, policy: &NetworkPolicy, index: u32) {
        let line = policy.location.as_ref().map_or(0, |l| l.line);
        self.subject(policy);
        let empty = policy.ingress.is_empty() && policy.egress.is_empty() && policy.pod_selector.is_empty();
        if empty && !policy.policy_types.explicit && policy.pod_selector_line == line {
            self.add(&EMPTY_SPEC, policy, line, format!("closes ingress of every pod in {}", policy.namespace));
        } else if !policy.policy_types.explicit {
            let means = if policy.policy_types.egress { "Ingress and Egress" } else { "Ingress" };
            self.add(&MISSING_POLICY_TYPES, policy, line, format!("policyTypes is missing and means {means} here"));
        }
        for direction in Direction::BOTH {
            let rules = policy.rules(direction);
            if !policy.isolates(direction) {
                if let Some(rule) = rules.first() {
                    self.add(
                        &IGNORED_RULES,
                        policy,
                        rule.line,
                        format!("policyTypes does not list {direction}, its rules are ignored"),
                    );
                }
                continue;
            }
            for (rule, number) in rules.iter().zip(1..) {
                self.rule(policy, index, direction, rule, &format!("{direction} rule {number}"));
            }
            let halves: Vec<Halves<'_>> = rules
                .iter()
                .zip(1..)
                .map(|(rule, number): (&Rule, usize)| Halves {
                    has_peers: !rule.peers.is_empty(),
                    ports: &rule.ports,
                    label: number.to_string(),
                    line: rule.line,
                })
                .collect();
            self.split_rules(policy, direction, &halves);
            self.one_family(policy, direction, rules);
        }
    }

    fn rule(&mut self, policy: &NetworkPolicy, index: u32, direction: Direction, rule: &Rule, name: &str) {
        if rule.peers.is_empty() && rule.ports.is_empty() {
            let message = format!("{name} allows every peer on every port");
            if policy.rules(direction).len() > 1 {
                let message = format!("{message}, and the other rules do nothing");
                self.add(&ALLOW_ALL, policy, rule.line, message);
            } else {
                // Alone it is how a direction is left open where another policy closes it.
                self.add_as(Severity::Note, &ALLOW_ALL, policy, rule.line, message);
            }
        }
        for (peer, nth) in rule.peers.iter().zip(0..) {
            match &peer.kind {
                PeerKind::IpBlock(_) => self.block(policy, direction, rule, nth, name),
                PeerKind::Pods { .. } => self.selectors(policy, rule, peer, name),
            }
        }
        if direction == Direction::Ingress {
            self.lost_address(policy, index, rule, name);
        }
        self.split_pair(policy, &rule.peers, name);
        self.ports(policy, index, direction, rule, name);
    }

    /// Two items where one was probably meant: a namespaceSelector beside a podSelector, in any
    /// order, is an OR. With an empty one of the two nobody means AND: that would be the other one
    /// alone.
    fn split_pair(&mut self, policy: &NetworkPolicy, peers: &[PolicyPeer], name: &str) {
        let half = |peer: &PolicyPeer| match &peer.kind {
            PeerKind::Pods { namespaces: Some(only), pods: None } if !only.is_empty() => Some(true),
            PeerKind::Pods { namespaces: None, pods: Some(only) } if !only.is_empty() => Some(false),
            PeerKind::Pods { .. } | PeerKind::IpBlock(_) => None,
        };
        for pair in peers.windows(2) {
            if let (Some(first), Some(second)) = (half(&pair[0]), half(&pair[1]))
                && first != second
            {
                let [first, second] = [first, second].map(|n| if n { "namespaceSelector" } else { "podSelector" });
                let message = format!(
                    "{name}: {first} and {second} are two items, so either is enough; without the second `-` both are needed"
                );
                self.add(&WIDE_PEER, policy, pair[1].line, message);
            }
        }
    }
}
