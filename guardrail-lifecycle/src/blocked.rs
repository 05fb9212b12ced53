//! Attempts that failed and that a policy denies: who was cut off, and how sure that is.
//!
//! Evidence that every data plane gives: a dropped connection is one that nobody answered, a
//! rejected one was refused. Both have other reasons, too, so each finding says how sure it is and
//! what speaks against it. Attempts count that are later than the last change of a policy that
//! denies them, and that no success of the same pair and port followed. Attempts on a Service are
//! judged at the pods behind it. Where no attempt failed, established connections that broke off
//! count, at the time at which they did.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Peer, Protocol, Snapshot, Timestamp};
use guardrail_policy::{
    evaluate::{EdgeVerdict, Evaluator, SideVerdict},
    exception,
    generate::FlowName,
    model::{
        Direction,
        tier::{PolicyKind, TierPolicy},
    },
};
use serde::Serialize;

mod attempts;
mod others;

use attempts::Attempts;
use others::Others;

/// Kind, namespace and name of a policy, as [`TierPolicy::object`] gives them.
pub type PolicyName = (PolicyKind, String, String);

/// Everything that the answer follows from.
#[derive(Debug)]
pub struct BlockedEvidence<'a> {
    /// What was observed.
    pub snapshot: &'a Snapshot,
    /// The policies in force, over the cluster that was observed.
    pub evaluator: &'a Evaluator,
    /// When policies were changed last, as far as the cluster says.
    pub changed: &'a BTreeMap<PolicyName, Timestamp>,
    /// Since when all others are in force; `None`: nobody knows, and what they deny is at most
    /// possible.
    pub since: Option<Timestamp>,
}

/// How sure it is that policies are the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Denied, nothing arrived at the server, which was watched, and others get through.
    Certain,
    /// Denied, and nothing speaks against it.
    Likely,
    /// There may be another reason.
    Possible,
}

impl Confidence {
    /// All, the surest first.
    pub const ALL: [Self; 3] = [Self::Certain, Self::Likely, Self::Possible];

    /// As answers call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Likely => "likely",
            Self::Possible => "possible",
        }
    }
}

/// How attempts failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// Nobody answered: what a data plane does that drops.
    Unanswered,
    /// Refused, or reported unreachable: what a data plane does that rejects.
    Refused,
    /// They came about and broke off: what was sent was never answered any more, as where a data
    /// plane that judges by packet drops from one moment on.
    Broken,
}

/// Attempts of one client at one port of a server, or of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockedAttempts {
    /// The flow, in the form that plans and `--accept` take.
    pub flow: String,
    /// Who tried.
    pub client: String,
    /// Whom; a Service is `NAMESPACE/svc/NAME`.
    pub server: String,
    /// Protocol.
    pub protocol: Protocol,
    /// The server's own port; the Service's if the server is one.
    pub port: u16,
    /// Services through which the client tried: `NAMESPACE/NAME:PORT`.
    pub via: BTreeSet<String>,
    /// Who is behind the Service, if the server is one: `PEER:PORT`.
    pub behind: BTreeSet<String>,
    /// Namespaces of the ends.
    pub namespaces: BTreeSet<String>,
    /// How they failed.
    pub outcome: Outcome,
    /// How many failed or broke off; over UDP datagrams. Some may be older than the policies.
    pub attempts: u64,
    /// The last of them.
    pub last_attempt: Timestamp,
    /// Since when policies deny it; `None`: nobody knows.
    pub denied_since: Option<Timestamp>,
    /// Which side denies it.
    pub denied_at: Vec<Direction>,
    /// The policies that deny it, as [`TierPolicy::key`] calls them.
    pub denied_by: BTreeSet<String>,
    /// How sure it is.
    pub confidence: Confidence,
    /// What keeps it from being certain: sentences without a full stop.
    pub because: Vec<String>,
}

/// A server behind what was dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    peer: Peer,
    /// Its own port.
    port: u16,
}

/// Whether policies deny the connections to all targets, for all pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denial {
    All,
    Some,
}

/// What policies say of attempts.
struct Denied {
    denial: Denial,
    at: BTreeSet<Direction>,
    by: BTreeSet<String>,
    since: Option<Timestamp>,
}

/// Attempts that failed and that policies deny, the surest first.
#[must_use]
pub fn blocked(evidence: &BlockedEvidence<'_>) -> Vec<BlockedAttempts> {
    let others = Others::new(evidence);
    let all = attempts::all(evidence.snapshot);
    let mut found: Vec<BlockedAttempts> =
        all.iter().filter_map(|attempts| judge(evidence, &others, attempts)).collect();
    found.sort_by(|a, b| (a.confidence, &a.flow).cmp(&(b.confidence, &b.flow)));
    found
}

fn judge(evidence: &BlockedEvidence<'_>, others: &Others<'_>, attempts: &Attempts<'_>) -> Option<BlockedAttempts> {
    let failure = attempts.failure(others)?;
    let denied = denied(evidence, others, attempts)?;
    if denied.since.is_some_and(|since| failure.last <= since) {
        return None;
    }
    // Without any success, what failed at first failed before the policies, too.
    let failed_before = denied.since.is_some_and(|since| !failure.mixed && failure.first < since);
    let refused = failure.outcome == Outcome::Refused;
    let after = denied.since.unwrap_or(Timestamp::MIN);
    let seen = others.at(attempts.client, &attempts.targets, attempts.protocol, after);
    if refused && (seen.allowed_refused || failed_before) {
        return None;
    }
    let watched = attempts.targets.iter().all(|target| others.is_watched(&target.peer));
    let possible = [
        (denied.since.is_none(), "when the policies that deny it were changed last is not known"),
        (denied.denial == Denial::Some, "policies deny it to some of the pods only"),
        (failure.order_unknown, "connections came about, too, and which was last is not known"),
        (failed_before, "attempts failed before the policies were changed, too"),
        (seen.allowed_unanswered && !seen.passes, "clients that policies allow get no answer there either"),
        (refused && !seen.passes, "nobody is known to listen there"),
        (!attempts.protocol.has_connections() && !watched, "over UDP some servers never answer"),
    ];
    let broken = failure.outcome == Outcome::Broken;
    let likely = [
        (broken, "connections also break off where a server vanishes or a network fails"),
        (refused, "they were refused, as a server does where nobody listens"),
        (!watched, "nobody watched the server's side"),
        (!seen.passes, "nobody else was seen to get through there"),
    ];
    let told = |reasons: &[(bool, &str)]| -> Vec<String> {
        reasons.iter().filter(|(holds, _)| *holds).map(|(_, because)| (*because).to_owned()).collect()
    };
    let (mut because, rest) = (told(&possible), told(&likely));
    let confidence = match (because.is_empty(), rest.is_empty()) {
        (false, _) => Confidence::Possible,
        (true, false) => Confidence::Likely,
        (true, true) => Confidence::Certain,
    };
    because.extend(rest);
    let server = attempts.server();
    let ends = [attempts.client].into_iter().chain(attempts.targets.iter().map(|target| &target.peer));
    let behind = |target: &Target| format!("{}:{}", target.peer, target.port);
    Some(BlockedAttempts {
        flow: FlowName::new(attempts.client, &server, attempts.port, attempts.protocol).to_string(),
        client: attempts.client.to_string(),
        server: server.to_string(),
        protocol: attempts.protocol,
        port: attempts.port,
        via: attempts.via.clone(),
        behind: if attempts.is_of_service() { attempts.targets.iter().map(behind).collect() } else { BTreeSet::new() },
        namespaces: ends.filter_map(Peer::workload).map(|workload| workload.namespace.clone()).collect(),
        outcome: failure.outcome,
        attempts: failure.count,
        last_attempt: failure.last,
        denied_since: denied.since,
        denied_at: denied.at.into_iter().collect(),
        denied_by: denied.by,
        confidence,
        because,
    })
}

/// Who denies it, and since when; `None`: nobody does for certain.
fn denied(evidence: &BlockedEvidence<'_>, others: &Others<'_>, attempts: &Attempts<'_>) -> Option<Denied> {
    let mut denied = Denied { denial: Denial::All, at: BTreeSet::new(), by: BTreeSet::new(), since: None };
    let mut per_side: BTreeMap<Direction, BTreeSet<PolicyName>> = BTreeMap::new();
    for target in &attempts.targets {
        // What cannot be judged is not said to be denied.
        let verdict = others.verdict(attempts.client, target, attempts.protocol);
        let Some(verdict) = verdict.filter(|verdict| verdict.denied > verdict.unproven) else {
            denied.denial = Denial::Some;
            continue;
        };
        if verdict.denied - verdict.unproven < verdict.pairs {
            denied.denial = Denial::Some;
        }
        for direction in Direction::BOTH {
            let policies = denying(evidence.evaluator, &verdict, direction, attempts.client, &target.peer);
            if policies.is_empty() {
                continue;
            }
            denied.at.insert(direction);
            denied.by.extend(policies.iter().map(|policy| policy.key()));
            per_side.entry(direction).or_default().extend(policies.iter().map(|policy| policy.object()));
        }
    }
    if denied.at.is_empty() {
        return None;
    }
    // A side denies since the last of its policies was changed; one side is enough.
    let since = |policies: &BTreeSet<PolicyName>| {
        let times = policies.iter().map(|policy| evidence.changed.get(policy).copied().or(evidence.since));
        times.collect::<Option<Vec<_>>>()?.into_iter().max()
    };
    denied.since = per_side.values().filter_map(since).min();
    Some(denied)
}

/// The policies that deny a connection at one side. An exception that stands beside others closes
/// nothing: it is not to blame, and its coming is no change after which attempts begin to count.
fn denying<'a>(
    evaluator: &'a Evaluator,
    verdict: &EdgeVerdict,
    direction: Direction,
    client: &Peer,
    server: &Peer,
) -> Vec<&'a TierPolicy> {
    let (side, subject) = match direction {
        Direction::Egress => (&verdict.verdict.egress, client),
        Direction::Ingress => (&verdict.verdict.ingress, server),
    };
    let forms = evaluator.forms();
    match side {
        SideVerdict::DeniedBy(rules) => rules.iter().map(|rule| &forms[rule.policy as usize]).collect(),
        SideVerdict::Denied => {
            let isolating = evaluator.isolating_peer(subject, direction);
            let mut all: Vec<&TierPolicy> = isolating.into_iter().map(|policy| &forms[policy as usize]).collect();
            let is_exception = |policy: &&TierPolicy| exception::named(&policy.name).is_some();
            if !all.iter().all(is_exception) {
                all.retain(|policy| !is_exception(policy));
            }
            all
        }
        _ => Vec::new(),
    }
}
