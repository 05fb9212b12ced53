//! Policies and flows, as users write them.

use guardrail_policy::{
    evaluate::{Cluster, ClusterPod, Evaluator},
    explain::Question,
    lint::{self, Context},
    model::{Labels, Protocol},
    read::{self, Expect, Reader},
};

/// Any bytes give flows or problems with a place.
pub(super) fn flows(bytes: &[u8]) {
    match read::flows("fuzz.csv", bytes) {
        Ok(found) => assert!(found.flows.iter().all(|f| (f.port > 0 || f.protocol.is_icmp()) && f.line > 0)),
        Err(error) => assert!(!error.problems.is_empty() && error.problems.iter().all(|p| p.location.line > 0)),
    }
}

/// Any bytes give policies or problems with a place; what was read can be compiled, judged, linted
/// and explained.
pub(super) fn policies(bytes: &[u8]) {
    let mut reader = Reader::new();
    reader.add("fuzz.yaml", bytes, Expect::Policies);
    let (set, problems) = reader.finish_lenient();
    assert!(problems.iter().all(|p| p.location.line > 0 && !p.message.is_empty()));
    let _ = lint::sarif(&lint::lint(&set, &problems, &Context::default()));

    let mut cluster = Cluster::default();
    for policy in set.policies.iter().take(8) {
        cluster.push_pod(ClusterPod {
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            labels: (*policy.pod_selector.match_labels).clone(),
            addresses: vec![[10, 0, 0, 1].into()],
            ports: vec![("http".to_owned(), Protocol::Tcp, 80)],
            ..ClusterPod::default()
        });
        cluster.set_namespace(&policy.namespace, Labels::new());
    }
    let pods = u32::try_from(cluster.pods.len()).unwrap_or(0);
    let evaluator = Evaluator::new(cluster, set.policies);
    let outside = evaluator.end_of_address([203, 0, 113, 1].into());
    for pod in 0..pods {
        let end = evaluator.end_of_pod(pod);
        for (src, dst) in [(&outside, &end), (&end, &outside)] {
            let question = Question { src: (src, "src"), dst: (dst, "dst"), protocol: Protocol::Tcp, port: 80 };
            assert_eq!(evaluator.explain(&question).allowed, evaluator.evaluate(src, dst, Protocol::Tcp, 80).allowed());
        }
    }
}
