//! Why a connection is allowed or denied: the deciding policies with file and rule, for a denied
//! one the nearest rule that almost matched and the smallest rule that would allow it.
//!
//! Works on the policies as written, not on the compiled form, so that it also checks it: an
//! explanation that disagrees with the verdict is a bug.

use std::{fmt, net::IpAddr};

use guardrail_graph::WorkloadRef;
use serde::Serialize;

use crate::{
    evaluate::{End, Evaluator, Exemption, RuleRef, SideVerdict, Verdict, common_addresses},
    model::{
        Direction, Location, PortMatch, Protocol,
        tier::{Action, Tier, TierPeer, TierPolicy},
    },
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
    /// The tier that decided; absent if nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// A proxy restricts what is allowed further, by request.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restricted: bool,
    /// Why it cannot be told, if so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unproven: Vec<String>,
    /// The policies that have a say about the subject, in the order in which they are asked, with
    /// the rules that decide.
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
    /// Its tier.
    pub tier: Tier,
    /// It isolates the subject; else its rules only add.
    pub isolates: bool,
    /// How many rules it has in this direction.
    pub rules: usize,
    /// Those that match: what they are called, what they do, and where.
    pub matching: Vec<Matching>,
}

/// A rule that decides.
#[derive(Clone, Debug, Serialize)]
pub struct Matching {
    /// Number from 1 within its list; `deny` stands before it in a deny list.
    pub rule: String,
    /// What it does.
    pub action: Action,
    /// Where it stands.
    pub location: Option<Location>,
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
    /// The list that it belongs to: `ingress` or `egress`.
    pub direction: Direction,
    /// The item of `specs` that has the list; absent: `spec` has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section: Option<u32>,
    /// The rule before which it has to stand, counted from 1; absent: anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<u32>,
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

    fn explain_side(&self, direction: Direction, side: &SideVerdict, question: &Question<'_>) -> SideExplanation {
        let (own, name) = match direction {
            Direction::Egress => question.src,
            Direction::Ingress => question.dst,
        };
        let deciding = |policy: u32| {
            let known = &self.forms()[policy as usize];
            let matching = side.rules().iter().filter(|r| r.policy == policy).map(|r| {
                let rule = self.rule(direction, *r);
                Matching { rule: rule.label.clone(), action: rule.action, location: known.at(rule.line) }
            });
            Deciding {
                policy: known.key(),
                location: known.location.clone(),
                tier: known.tier,
                isolates: known.isolates(direction),
                rules: known.rules(direction).len(),
                matching: matching.collect(),
            }
        };
        let tier = match side {
            SideVerdict::NotIsolated => None,
            SideVerdict::Denied => Some(Tier::Normal),
            _ => side.rules().first().map(|r| self.form(*r).tier),
        };
        let mut explanation = SideExplanation {
            direction,
            subject: name.to_owned(),
            allowed: side.allows(),
            tier,
            restricted: self.restricted(direction, side),
            unproven: self.why_unproven(direction, side),
            policies: self.asked(own, direction).iter().map(|p| deciding(*p)).collect(),
            nearest: None,
            smallest: None,
        };
        if side.denies() {
            let nearest = self.nearest(direction, &self.asked(own, direction), question);
            explanation.smallest =
                self.remedy(direction, side, nearest.as_ref().map(|(rule, _)| rule.policy), question);
            explanation.nearest = nearest.map(|(rule, because)| self.near(direction, rule, because));
        }
        explanation
    }

    /// Where nothing accepts, a rule of the nearest policy that isolates, or of another that can
    /// say it; against a rule that denies in a tier with an order, one before it. A deny in the
    /// tier without an order beats whatever accepts.
    fn remedy(
        &self,
        direction: Direction,
        side: &SideVerdict,
        nearest: Option<u32>,
        question: &Question<'_>,
    ) -> Option<Smallest> {
        if let SideVerdict::DeniedBy(rules) = side {
            let first = rules.first().filter(|r| self.form(**r).tier.ordered())?;
            return self.smallest(direction, first.policy, Some(first.rule), question);
        }
        let own = match direction {
            Direction::Egress => question.src.0,
            Direction::Ingress => question.dst.0,
        };
        let isolating = self.isolating(own, direction);
        let candidates = nearest.filter(|n| isolating.contains(n)).into_iter().chain(isolating.iter().copied());
        let mut found = candidates.map(|policy| self.smallest(direction, policy, None, question));
        found.find_map(|smallest| smallest)
    }

    fn near(&self, direction: Direction, rule: RuleRef, because: Vec<String>) -> Near {
        let line = self.rule(direction, rule).line;
        Near { rule: self.rule_name(direction, rule), location: self.form(rule).at(line), because }
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
            if end.is_node() && !self.is_cilium() {
                notes.push(format!("{name} counts as its node's address; how policies treat host-network pods is unspecified by Kubernetes"));
            }
            let pod = end.pod().map(|p| &self.cluster().pods[p as usize]);
            if let Some(pod) = pod.filter(|p| p.addresses.is_empty() && self.forms().iter().any(has_ip_block)) {
                notes.push(format!("{}/{} has no address yet, so no ipBlock matches it", pod.namespace, pod.name));
            }
            let to_node = question.src.0.is_node() != question.dst.0.is_node() && !self.is_cilium();
            if let Some(pod) = pod.filter(|p| p.node.is_none() && to_node) {
                notes.push(format!(
                    "{}/{} has no nodeName: if that is its own node, the connection is allowed anyway",
                    pod.namespace, pod.name
                ));
            }
        }
        notes
    }
}

fn has_ip_block(policy: &TierPolicy) -> bool {
    let mut peers = policy.ingress.iter().chain(&policy.egress).flat_map(|r| r.peers.iter().flatten());
    peers.any(|p| matches!(**p, TierPeer::Addresses { .. }))
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
