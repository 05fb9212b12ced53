//! Policies of the dialects, options of data planes, names, and logs of Hubble.

use std::net::IpAddr;

use guardrail_policy::{
    check::Check,
    evaluate::{CiliumOptions, Cluster, ClusterPod, Dataplane, End, Evaluator},
    explain::Question,
    lint::{self, Context},
    model::{Direction, Labels, Protocol},
    read::{self, Expect, Reader},
};

/// Any bytes give policies of all kinds or problems with a place; under every data plane what was
/// read can be compiled, judged, explained and linted.
pub(super) fn policies(bytes: &[u8]) {
    let mut reader = Reader::new();
    reader.add("fuzz.yaml", bytes, Expect::Inventory);
    let (set, problems) = reader.finish_lenient();
    assert!(problems.iter().all(|p| p.location.line > 0 && !p.message.is_empty()));
    assert!(set.refused.iter().all(|r| !r.because.is_empty() && r.location.line > 0));
    let _ = lint::sarif(&lint::lint(&set, &problems, &Context::default()));

    let mut cluster = Cluster::default().with_facts(&set.facts);
    for (form, last) in set.forms.iter().zip(1..=8_u8) {
        cluster.push_pod(ClusterPod {
            namespace: if form.namespace.is_empty() { "default" } else { &form.namespace }.to_owned(),
            name: form.name.clone(),
            addresses: vec![[10, 0, 0, last].into()],
            node: Some("n1".to_owned()),
            ports: vec![("http".to_owned(), Protocol::Tcp, 80)],
            ..ClusterPod::default()
        });
    }
    let options = CiliumOptions { host_firewall: true, node_selectors: true, ..CiliumOptions::default() };
    for dataplane in [Dataplane::Kubernetes, Dataplane::Cilium(options)] {
        let (policies, forms) = (set.policies.clone(), set.forms.clone());
        let evaluator = Evaluator::mixed(cluster.clone(), policies, forms, &dataplane);
        let _ = (evaluator.undecided(), evaluator.missing_groups());
        let outside = evaluator.end_of_address([203, 0, 113, 1].into());
        let ends = (0..evaluator.cluster().pods.len()).filter_map(|pod| u32::try_from(pod).ok());
        for pod in ends.map(|pod| evaluator.end_of_pod(pod)) {
            for (src, dst) in [(&outside, &pod), (&pod, &outside)] {
                ask(&evaluator, src, dst);
            }
        }
    }
}

fn ask(evaluator: &Evaluator, src: &End, dst: &End) {
    let question = Question { src: (src, "src"), dst: (dst, "dst"), protocol: Protocol::Tcp, port: 80 };
    let verdict = evaluator.evaluate(src, dst, Protocol::Tcp, 80);
    let explanation = evaluator.explain(&question);
    assert_eq!(explanation.allowed, verdict.allowed());
    assert!(!(verdict.allowed() && verdict.denied()));
    for (direction, side) in [(Direction::Egress, &verdict.egress), (Direction::Ingress, &verdict.ingress)] {
        assert_eq!(evaluator.why_unproven(direction, side).is_empty(), side.allows() || side.denies());
    }
}

/// Any bytes give options of Cilium's agent, or one sentence.
pub(super) fn options(bytes: &[u8]) {
    match read::options("fuzz.yaml", bytes) {
        Ok(keys) => {
            if let Err(error) = CiliumOptions::from_keys(&keys) {
                assert!(!error.is_empty());
            }
        }
        Err(error) => assert!(error.problems.iter().all(|p| p.location.line > 0)),
    }
}

/// Any bytes give names with addresses, or problems with a place.
pub(super) fn names(bytes: &[u8]) {
    match read::names("fuzz.csv", bytes) {
        Ok(names) => {
            let cluster = Cluster::default().with_names(names, true);
            assert!(cluster.names.keys().all(|name| *name == name.to_ascii_lowercase()));
        }
        Err(error) => assert!(!error.problems.is_empty() && error.problems.iter().all(|p| p.location.line > 0)),
    }
}

/// Any bytes give flows or problems with a place; what a log says of ends can be judged.
pub(super) fn hubble(bytes: &[u8]) {
    let found = match read::flows("fuzz.json", bytes) {
        Ok(found) => found,
        Err(error) => {
            return assert!(!error.problems.is_empty() && error.problems.iter().all(|p| p.location.line > 0));
        }
    };
    let logged = || found.flows.iter().filter_map(|flow| flow.logged.as_deref());
    let ends = logged().flat_map(|logged| [&logged.src, &logged.dst]);
    let (mut cluster, _) = Cluster::default().with_logged(ends);
    cluster.set_namespace("default", Labels::new());
    let evaluator = Evaluator::mixed(cluster, Vec::new(), Vec::new(), &Dataplane::Cilium(CiliumOptions::default()));
    let mut check = Check::new(&evaluator, &evaluator);
    for flow in found.flows.iter().take(64) {
        let Some(logged) = flow.logged.as_deref() else { continue };
        let end = |seen: &guardrail_policy::model::logged::LoggedEnd, name: &str| match seen.pod {
            // It is in the cluster now, by whatever name.
            Some(_) => Some(evaluator.end(name).expect("a pod of the log")),
            None => evaluator.end_seen_as(&seen.entities, seen.address).ok(),
        };
        let ends = end(&logged.src, &flow.src).zip(end(&logged.dst, &flow.dst));
        if let Some((src, dst)) = ends {
            assert!(check.flow(&src, &dst, flow.protocol, flow.port).allowed(), "there is no policy");
        }
        let known: [Option<IpAddr>; 2] = [logged.src.address, logged.dst.address];
        assert!(known.iter().flatten().all(|a| *a == a.to_canonical()));
    }
}
