//! Why a connection is allowed or denied: the deciding policies with file and rule, for a denied one the nearest rule that almost matched and the
//! smallest rule that would allow it.
//!
//! Works on the policies as written, not on the compiled form, so that it also checks it: an explanation that disagrees with the verdict is a bug.

use std::{fmt, net::IpAddr};

use guardrail_graph::{WorkloadRef, snapshot::LabelSelector};
use serde::Serialize;

use crate::{
    evaluate::{End, Evaluator, Exemption, RuleRef, Side, Verdict, common_addresses},
    model::{Direction, Location, NetworkPolicy, PolicyPeer, PortMatch, Protocol, Rule},
};

mod near;
mod suggest;

/// One connection.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The initiator, and how the user named it.
    pub src: (&'a End, &'a str),
    /// The responder, and how the user named it.
    pub dst: (&'a End, &'a str),
    /// Protocol.
    pub protocol: Protocol,
    /// The responder's own port.
    pub port: u16,
}

impl Question<'_> {
    /// The peer as this side's policies see it: the end, its name, its address.
    fn peer(&self, direction: Direction) -> (&End, &str, Option<IpAddr>) {
        let (src, dst) = common_addresses(self.src.0, self.dst.0);
        match direction {
            Direction::Ingress => (self.src.0, self.src.1, src),
            Direction::Egress => (self.dst.0, self.dst.1, dst),
        }
    }
}

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Allowed by both sides, or exempt.
    pub allowed: bool,
    /// Why policies have no say, if so.
    pub exempt: Option<Exemption>,
    /// What each end is, in words.
    pub ends: [String; 2],
    /// Egress of the source, ingress of the destination.
    pub sides: Vec<SideExplanation>,
    /// What the reader should know beside that.
    pub notes: Vec<String>,
}

/// What one side's policies say, and why.
#[derive(Clone, Debug, Serialize)]
pub struct SideExplanation {
    /// Egress or ingress.
    pub direction: Direction,
    /// Whose policies.
    pub subject: String,
    /// Whether this side lets the connection pass.
    pub allowed: bool,
    /// Policies that select the subject and isolate it, with the rules that match.
    pub policies: Vec<Deciding>,
    /// The rule that came nearest, if the side denies and has a rule at all.
    pub nearest: Option<Near>,
    /// The smallest rule that would allow it, if the side denies.
    pub smallest: Option<Smallest>,
}

/// A policy that has a say.
#[derive(Clone, Debug, Serialize)]
pub struct Deciding {
    /// `namespace/name`.
    pub policy: String,
    /// Where it stands.
    pub location: Option<Location>,
    /// How many rules it has in this direction.
    pub rules: usize,
    /// Those that match: number from 1, and where.
    pub matching: Vec<(u32, Option<Location>)>,
}

/// A rule that almost matched.
#[derive(Clone, Debug, Serialize)]
pub struct Near {
    /// `namespace/policy#rule`.
    pub rule: String,
    /// Where it stands.
    pub location: Option<Location>,
    /// Why it does not match, one sentence each.
    pub because: Vec<String>,
}

/// A rule to add.
#[derive(Clone, Debug, Serialize)]
pub struct Smallest {
    /// The policy to add it to: `namespace/name`.
    pub policy: String,
    /// Where that stands.
    pub location: Option<Location>,
    /// The list to append to: `ingress` or `egress`.
    pub direction: Direction,
    /// The rule as YAML, an item of that list.
    pub yaml: String,
    /// What is wrong with adding it, if something is.
    pub caution: Option<String>,
}

impl Evaluator {
    /// Explains the verdict on a connection.
    #[must_use]
    pub fn explain(&self, question: &Question<'_>) -> Explanation {
        let Question { src, dst, protocol, port } = *question;
        let verdict = self.evaluate(src.0, dst.0, protocol, port);
        let Verdict { exemption, egress, ingress } = &verdict;
        let mut sides = Vec::new();
        if exemption.is_none() {
            sides.push(self.explain_side(Direction::Egress, egress, question));
            sides.push(self.explain_side(Direction::Ingress, ingress, question));
        }
        Explanation {
            allowed: verdict.allowed(),
            exempt: *exemption,
            ends: [self.describe(src.0, src.1), self.describe(dst.0, dst.1)],
            sides,
            notes: self.notes(question),
        }
    }

    fn explain_side(&self, direction: Direction, side: &Side, question: &Question<'_>) -> SideExplanation {
        let (own, name) = match direction {
            Direction::Egress => question.src,
            Direction::Ingress => question.dst,
        };
        let isolating = self.isolating(own, direction);
        let deciding = |policy: u32| {
            let known = &self.policies()[policy as usize];
            let matching = side.rules().iter().filter(|r| r.policy == policy);
            Deciding {
                policy: known.key(),
                location: known.location.clone(),
                rules: known.rules(direction).len(),
                matching: matching
                    .map(|r| (r.rule + 1, known.at(known.rules(direction)[r.rule as usize].line)))
                    .collect(),
            }
        };
        let mut explanation = SideExplanation {
            direction,
            subject: name.to_owned(),
            allowed: side.allows(),
            policies: isolating.iter().map(|p| deciding(*p)).collect(),
            nearest: None,
            smallest: None,
        };
        if *side == Side::Denied {
            let nearest = self.nearest(direction, &isolating, question);
            let target = nearest.as_ref().map_or(isolating[0], |(rule, _)| rule.policy);
            explanation.smallest = Some(self.smallest(direction, target, question));
            explanation.nearest = nearest.map(|(rule, because)| self.near(direction, rule, because));
        }
        explanation
    }

    fn near(&self, direction: Direction, rule: RuleRef, because: Vec<String>) -> Near {
        let policy = self.policy(rule);
        Near {
            rule: self.rule_name(rule),
            location: policy.at(policy.rules(direction)[rule.rule as usize].line),
            because,
        }
    }

    fn describe(&self, end: &End, name: &str) -> String {
        match end.pod() {
            Some(pod) => {
                let pod = &self.cluster().pods[pod as usize];
                let labels = pod.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(", ");
                let labels = if labels.is_empty() { "no labels".to_owned() } else { labels };
                if let Some(workload) = pod.workload.as_ref().filter(|_| pod.is_stand_in()) {
                    let WorkloadRef { namespace, owner, name } = workload;
                    return format!("{owner} {namespace}/{name}, which has no pod here, by its template ({labels})");
                }
                let own = pod.full_name();
                if own == name { format!("pod {own} ({labels})") } else { format!("{name}: pod {own} ({labels})") }
            }
            None if end.is_node() => format!("{name}: a node, or a pod on its network"),
            None => format!("{name}: outside the cluster"),
        }
    }

    fn notes(&self, question: &Question<'_>) -> Vec<String> {
        let mut notes = Vec::new();
        for (end, name) in [question.src, question.dst] {
            if end.is_node() {
                notes.push(format!("{name} counts as its node's address; how policies treat host-network pods is unspecified by Kubernetes"));
            }
            let pod = end.pod().map(|p| &self.cluster().pods[p as usize]);
            if let Some(pod) = pod.filter(|p| p.addresses.is_empty() && self.policies().iter().any(has_ip_block)) {
                notes.push(format!("{}/{} has no address yet, so no ipBlock matches it", pod.namespace, pod.name));
            }
            if let Some(pod) = pod.filter(|p| p.node.is_none() && question.src.0.is_node() != question.dst.0.is_node())
            {
                notes.push(format!(
                    "{}/{} has no nodeName: if that is its own node, the connection is allowed anyway",
                    pod.namespace, pod.name
                ));
            }
        }
        notes
    }
}

fn has_ip_block(policy: &NetworkPolicy) -> bool {
    let mut peers = policy.ingress.iter().chain(&policy.egress).flat_map(|r: &Rule| &r.peers);
    peers.any(|p: &PolicyPeer| matches!(p.kind, crate::model::PeerKind::IpBlock(_)))
}

/// A selector in a few words.
pub(crate) fn words(selector: &LabelSelector) -> String {
    let mut parts: Vec<String> = selector.match_labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    for e in &selector.match_expressions {
        let values = if e.values.is_empty() { String::new() } else { format!(" ({})", e.values.join(", ")) };
        parts.push(format!("{} {:?}{values}", e.key, e.operator));
    }
    if parts.is_empty() { "{}".to_owned() } else { parts.join(", ") }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any port"),
            Self::Range { first, last } if first == last => write!(f, "port {first}"),
            Self::Range { first, last } => write!(f, "ports {first} to {last}"),
            Self::Named(name) => write!(f, "port \"{name}\""),
        }
    }
}
