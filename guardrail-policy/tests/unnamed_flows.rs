//! Established flows of which nobody can say with whom they were: a person is told of each,
//! whatever else its client was seen to do.

#[path = "../../guardrail-graph/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;

use common::{CLUSTER, Lab, apply_text, pod, t, tcp_client};
use guardrail_graph::{Observer, ObserverConfig, Snapshot, snapshot::merge};
use guardrail_policy::{
    export,
    generate::{Options, Phase},
};

const ADDRESS: &str = "10.244.2.4";
const HOUR: i64 = 3600;

/// An agent that knows its own node's pods.
fn agent(node: &str, pods: &str) -> Lab {
    let config = ObserverConfig { own_pods_only: true, ..ObserverConfig::new(node, node, t(0)) };
    let mut observer = Observer::new(config);
    apply_text(&mut observer, &format!("{CLUSTER}{pods}"), t(0));
    Lab { observer, now: t(0) }
}

/// What node-a's `web` called at these times, when the address was `billing`'s for an hour.
fn merged(calls: &[i64], change: impl FnOnce(&mut Lab)) -> Snapshot {
    let mut a = agent("node-a", &pod("shop", "web", 0, "node-a", "10.244.1.2", &[]));
    a.pod_cgroup(1, "web", 0);
    for at in calls {
        a.at(*at).flow(tcp_client(1, "10.244.1.2", ADDRESS, 8080, t(*at)));
    }
    let pods =
        [(0, ADDRESS), (1, "10.244.2.9")].map(|(index, address)| pod("shop", "billing", index, "node-b", address, &[]));
    let mut b = agent("node-b", &pods.concat());
    // What is known before there is any traffic was so before the window.
    b.pod_cgroup(7, "billing", 1);
    b.at(1).flow(tcp_client(7, "10.244.2.9", "203.0.113.9", 443, t(1)));
    b.at(HOUR).delete_pod("shop", "billing-5d9c-0");
    change(&mut b);
    merge(vec![a.at(4 * HOUR).snapshot(), b.at(4 * HOUR).snapshot()])
}

fn problems(snapshot: &Snapshot) -> BTreeSet<String> {
    let mut options = Options::new(Phase::DefaultDeny);
    options.egress = true;
    export::export(snapshot, &options).problems.iter().map(|p| format!("{:?} {}", p.kind, p.message)).collect()
}

#[test]
fn a_call_after_an_owner_s_end_is_named_although_there_is_an_edge_to_that_owner() {
    for calls in [&[2 * HOUR][..], &[5, 2 * HOUR], &[5, 600, 2 * HOUR]] {
        let said = problems(&merged(calls, |_| ()));
        let named = said.iter().any(|p| p.contains("--accept 'shop/Deployment/web->10.244.2.4:8080/TCP'"));
        assert!(named, "{calls:?}: {said:?}");
    }
    assert_eq!(problems(&merged(&[5, 600], |_| ())), BTreeSet::new());
}

/// Between the first and the last connection nothing says to whom they were, but to one of these.
#[test]
fn calls_to_an_address_that_passed_on_are_those_of_its_owners_and_no_problem_where_both_are_allowed() {
    let passes_to = |name: &str| {
        let next = pod("shop", name, 2, "node-b", ADDRESS, &[]);
        merged(&[5, 600, HOUR + 1_800, 2 * HOUR], move |b| b.at(HOUR + 10).apply(&next))
    };
    assert_eq!(problems(&passes_to("billing")), BTreeSet::new());
    assert_eq!(problems(&passes_to("admin")), BTreeSet::new());
}
