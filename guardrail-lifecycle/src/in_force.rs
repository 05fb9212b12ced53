//! Which phase is in force, read from the policies in force, pod by pod: never assumed.
//!
//! Each pod is asked for by unlabelled probes, on a port that no rule names: one of its own
//! namespace, one of a namespace that nobody knows, and an address outside. The own one denied is
//! default-deny, only the own one admitted is constrain, else it is open.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_policy::{
    evaluate::{ClusterPod, End, Evaluator},
    generate::Phase,
    model::{Direction, PortMatch, Protocol},
};
use serde::Serialize;

/// A namespace that no cluster can have.
const ELSEWHERE: &str = "(elsewhere)";
/// The name of a probe, which no pod can have.
const PROBE: &str = "(probe)";

/// How far a pod is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PodPhase {
    /// For who calls it.
    pub ingress: Phase,
    /// For whom it calls.
    pub egress: Phase,
    /// Whether policies isolate it: ingress, egress. It may be isolated and open.
    #[serde(skip)]
    pub isolated: [bool; 2],
}

/// How far each pod is closed, by its index in the cluster; pods that policies cannot select
/// (finished ones, those on the host's network) are left out.
#[must_use]
pub fn pods(evaluator: &Evaluator) -> BTreeMap<u32, PodPhase> {
    let of_cluster = evaluator.cluster().pods.len();
    let namespaces: BTreeSet<&str> = evaluator.cluster().pods.iter().map(|pod| pod.namespace.as_str()).collect();
    let probe = |namespace: &str| ClusterPod {
        namespace: namespace.to_owned(),
        name: PROBE.to_owned(),
        ..ClusterPod::default()
    };
    let probes = namespaces.iter().copied().chain([ELSEWHERE]).map(probe);
    let probed = evaluator.with_pods(probes);
    let all = &probed.cluster().pods;
    let ends: BTreeMap<&str, End> = (of_cluster..all.len())
        .filter_map(|index| Some((all[index].namespace.as_str(), probed.end_of_pod(u32::try_from(index).ok()?))))
        .collect();
    let mut strangers = probed.outside();
    strangers.extend(ends.get(ELSEWHERE));
    let port = port_that_no_rule_names(&probed);
    let mut phases = BTreeMap::new();
    for (pod, index) in all[..of_cluster].iter().zip(0..).filter(|(pod, _)| !pod.finished && !pod.host_network) {
        let own = probed.end_of_pod(index);
        let admits = |other: &End, direction: Direction| match direction {
            Direction::Ingress => probed.evaluate(other, &own, Protocol::Tcp, port).ingress.allows(),
            Direction::Egress => probed.evaluate(&own, other, Protocol::Tcp, port).egress.allows(),
        };
        let phase = |direction: Direction| {
            if strangers.iter().any(|stranger| admits(stranger, direction)) {
                Phase::Observe
            } else if ends.get(pod.namespace.as_str()).is_some_and(|neighbour| admits(neighbour, direction)) {
                Phase::Constrain
            } else {
                Phase::DefaultDeny
            }
        };
        phases.insert(
            index,
            PodPhase {
                ingress: phase(Direction::Ingress),
                egress: phase(Direction::Egress),
                isolated: [Direction::Ingress, Direction::Egress].map(|direction| probed.isolated(&own, direction)),
            },
        );
    }
    phases
}

/// The highest TCP port in the fewest ranges of rules: in none, unless rules name all of them.
fn port_that_no_rule_names(evaluator: &Evaluator) -> u16 {
    let rules = evaluator.forms().iter().flat_map(|form| form.ingress.iter().chain(&form.egress));
    let mut steps = vec![0_i64; usize::from(u16::MAX) + 2];
    for port in rules.flat_map(|rule| &rule.ports).filter(|port| port.protocol == Protocol::Tcp) {
        if let PortMatch::Range { first, last } = port.port {
            steps[usize::from(first)] += 1;
            steps[usize::from(last) + 1] -= 1;
        }
    }
    // Numbers behind names of ports count, too.
    for (_, protocol, number) in evaluator.cluster().pods.iter().flat_map(|pod| &pod.ports) {
        if *protocol == Protocol::Tcp {
            steps[usize::from(*number)] += 1;
            steps[usize::from(*number) + 1] -= 1;
        }
    }
    let mut covered = 0;
    let mut best = (i64::MAX, u16::MAX);
    for port in 1..=u16::MAX {
        covered += steps[usize::from(port)];
        if covered <= best.0 {
            best = (covered, port);
        }
    }
    best.1
}
