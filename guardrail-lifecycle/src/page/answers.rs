//! What the page says of policies: those in force at each edge and workload, and what default-deny
//! would do. The same answers as `check`, `status` and `export` give, from the same functions.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{Peer, Snapshot, snapshot::EdgeRecord};
use guardrail_policy::{
    evaluate::{EdgeVerdict, Evaluator, Exemption, SideVerdict},
    export,
    generate::{Options, Phase},
    model::Direction,
    read::{Expect, Reader},
};
use serde::Serialize;

use super::Page;

/// What the policies in force say of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageVerdict {
    /// `allowed`, `denied` or `unproven`.
    pub verdict: &'static str,
    /// At the client.
    pub egress: PageSide,
    /// At the server.
    pub ingress: PageSide,
    /// Why it is unproven, or why policies have no say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the policies in force say at one end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PageSide {
    /// What becomes of it.
    pub state: PageSideState,
    /// The rules that decide (`namespace/policy#rule`); where none matches, the policies that
    /// isolate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
}

/// What becomes of a connection at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PageSideState {
    /// No policy isolates this end.
    Open,
    /// A rule accepts it.
    Allowed,
    /// A rule denies it, or no rule accepts it.
    Denied,
    /// Nothing here tells.
    Unproven,
}

/// The policies that isolate the pods of a workload, by direction: `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PeerPolicies {
    /// Pods that policies can select.
    pub pods: usize,
    /// How many of them are isolated for ingress.
    pub ingress_isolated: usize,
    /// And for egress.
    pub egress_isolated: usize,
    /// Who isolates for ingress.
    pub ingress: BTreeSet<String>,
    /// Who isolates for egress.
    pub egress: BTreeSet<String>,
}

/// What default-deny would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Namespaces that it cannot be written for, with the reasons.
    pub stopped: BTreeMap<String, Vec<String>>,
}

impl Page<'_> {
    /// Says at every edge and workload what the policies of the evaluator do. `doubt` says why a
    /// verdict between ends in these namespaces is not proven (A34).
    pub fn judge(
        &mut self,
        snapshot: &Snapshot,
        evaluator: &Evaluator,
        doubt: impl Fn([Option<&str>; 2]) -> Option<String>,
    ) {
        for (edge, record) in self.edges.iter_mut().zip(&snapshot.body.edges) {
            edge.verdict = Some(verdict(evaluator, record, &doubt));
        }
        for peer in &mut self.peers {
            let Peer::Workload(workload) = &*peer.peer.peer else { continue };
            let pods = evaluator.cluster().workloads.get(workload).map(Vec::as_slice).unwrap_or_default();
            let mut policies = PeerPolicies::default();
            for pod in pods.iter().filter(|pod| !evaluator.cluster().pods[**pod as usize].host_network) {
                policies.pods += 1;
                let end = evaluator.end_of_pod(*pod);
                let [ingress, egress] =
                    [Direction::Ingress, Direction::Egress].map(|d| names(evaluator, evaluator.isolating(&end, d)));
                policies.ingress_isolated += usize::from(!ingress.is_empty());
                policies.egress_isolated += usize::from(!egress.is_empty());
                policies.ingress.extend(ingress);
                policies.egress.extend(egress);
            }
            peer.policies = (policies.pods > 0).then_some(policies);
        }
    }

    /// Says at every edge whether it would pass if default-deny for ingress, as `export` writes it
    /// from this evidence, were all that is in force; gates are no matter.
    pub fn preview_default_deny(&mut self, snapshot: &Snapshot, evaluator: &Evaluator, options: &Options) {
        let mut options = options.clone();
        (options.phase, options.egress, options.forced) = (Phase::DefaultDeny, false, true);
        options.min_window = std::time::Duration::ZERO;
        options.namespaces.clear();
        options.existing.clear();
        let exported = export::export(snapshot, &options);
        let mut preview = Preview::default();
        for problem in exported.problems.iter().filter(|problem| problem.stops(true)) {
            for namespace in problem.namespaces.intersection(&exported.stopped) {
                preview.stopped.entry(namespace.clone()).or_default().push(problem.message.clone());
            }
        }
        self.default_deny = Some(preview);
        let mut reader = Reader::new();
        for (name, text) in exported.files.iter().filter(|(name, _)| name.ends_with(".yaml")) {
            reader.add(name, text.as_bytes(), Expect::Anything);
        }
        let (policies, _) = reader.finish_lenient();
        let enforcer = options.enforcer();
        let after = Evaluator::mixed(evaluator.cluster().clone(), policies.policies, policies.forms, &enforcer);
        for (edge, record) in self.edges.iter_mut().zip(&snapshot.body.edges) {
            edge.after_default_deny = after.evaluate_edge(record).ok().map(|verdict| verdict.allowed());
        }
    }
}

fn verdict(
    evaluator: &Evaluator,
    edge: &EdgeRecord,
    doubt: &impl Fn([Option<&str>; 2]) -> Option<String>,
) -> PageVerdict {
    let open = || PageSide { state: PageSideState::Unproven, by: Vec::new() };
    let judged = match evaluator.evaluate_edge(edge) {
        Ok(judged) => judged,
        Err(error) => {
            let reason = Some(error.to_string());
            return PageVerdict { verdict: "unproven", egress: open(), ingress: open(), reason };
        }
    };
    let EdgeVerdict { verdict, denied, unproven, .. } = &judged;
    let namespaces = [&*edge.client.peer, &*edge.server.peer].map(|p| p.workload().map(|w| w.namespace.as_str()));
    let egress = side(evaluator, Direction::Egress, &verdict.egress, &edge.client.peer);
    let ingress = side(evaluator, Direction::Ingress, &verdict.ingress, &edge.server.peer);
    let undecided = || {
        let mut reasons = evaluator.why_unproven(Direction::Egress, &verdict.egress);
        reasons.extend(evaluator.why_unproven(Direction::Ingress, &verdict.ingress));
        reasons.join("; ")
    };
    let (verdict, reason) = match doubt(namespaces) {
        _ if *denied > 0 && denied == unproven => ("unproven", Some(undecided())),
        Some(because) => ("unproven", Some(because)),
        None if judged.allowed() => ("allowed", verdict.exemption.map(|exemption| exempt(exemption).to_owned())),
        None => ("denied", None),
    };
    PageVerdict { verdict, egress, ingress, reason }
}

fn exempt(exemption: Exemption) -> &'static str {
    match exemption {
        Exemption::Itself => "policies have no say: a pod always reaches itself",
        Exemption::OwnNode => "policies have no say between a pod and its own node",
    }
}

fn side(evaluator: &Evaluator, direction: Direction, side: &SideVerdict, peer: &Peer) -> PageSide {
    let state = match side {
        SideVerdict::NotIsolated => PageSideState::Open,
        SideVerdict::AllowedBy(_) => PageSideState::Allowed,
        SideVerdict::DeniedBy(_) | SideVerdict::Denied => PageSideState::Denied,
        SideVerdict::Unproven(_) => PageSideState::Unproven,
    };
    let by = match side {
        SideVerdict::Denied => names(evaluator, evaluator.isolating_peer(peer, direction)).into_iter().collect(),
        _ => side.rules().iter().map(|rule| evaluator.rule_name(direction, *rule)).collect(),
    };
    PageSide { state, by }
}

fn names(evaluator: &Evaluator, policies: impl IntoIterator<Item = u32>) -> BTreeSet<String> {
    policies.into_iter().map(|policy| evaluator.forms()[policy as usize].key()).collect()
}
