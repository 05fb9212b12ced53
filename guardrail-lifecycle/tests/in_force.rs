//! The phase in force, read from policies.

use guardrail_lifecycle::in_force::{self, PodPhase};
use guardrail_policy::{
    evaluate::{Cluster, ClusterPod, Evaluator},
    generate::Phase,
    model::Labels,
    read,
};

/// Two pods in `shop`, `web` and `db`, and one elsewhere.
fn phases(specs: &[&str]) -> Vec<PodPhase> {
    let mut cluster = Cluster::default();
    for (namespace, name, number) in [("shop", "db", 1), ("shop", "web", 2), ("other", "x", 3)] {
        cluster.push_pod(ClusterPod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: Labels::from([("app".to_owned(), name.to_owned())]),
            addresses: vec![[10, 0, 0, number].into()],
            ports: vec![("http".to_owned(), guardrail_policy::model::Protocol::Tcp, 8080)],
            ..ClusterPod::default()
        });
    }
    let text: String = specs
        .iter()
        .enumerate()
        .map(|(number, spec)| {
            format!("---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{number}, namespace: shop}}\nspec: {spec}\n")
        })
        .collect();
    let policies = read::policies("p.yaml", text.as_bytes()).map(|set| set.policies).unwrap_or_default();
    assert_eq!(policies.len(), specs.len());
    in_force::pods(&Evaluator::new(cluster, policies)).into_values().collect()
}

#[test]
fn a_pod_is_as_closed_as_the_policies_about_it_leave_it() {
    use Phase::{Constrain, DefaultDeny, Observe};
    for (specs, db, web) in [
        (&[][..], Observe, Observe),
        (&["{podSelector: {}, policyTypes: [Ingress]}"], DefaultDeny, DefaultDeny),
        (&["{podSelector: {}, policyTypes: [Egress]}"], Observe, Observe),
        (&["{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"], Constrain, Constrain),
        // Callers by name, from wherever, are what each phase has.
        (
            &[
                "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {from: [{namespaceSelector: {}}], ports: [{port: 80}]}]}",
            ],
            Constrain,
            Constrain,
        ),
        // Everybody on every port is open, whatever isolates.
        (&["{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"], Observe, Observe),
        (&["{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"], Observe, Observe),
        (&["{podSelector: {}, ingress: [{}]}"], Observe, Observe),
        // One pod only, and the union of two policies.
        (&["{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}"], DefaultDeny, Observe),
        (
            &[
                "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
                "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}",
            ],
            Constrain,
            Constrain,
        ),
        // The sensitive one is left out of the boundary.
        (
            &[
                "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, ingress: [{from: [{podSelector: {}}]}]}",
                "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]}",
            ],
            DefaultDeny,
            Constrain,
        ),
        // A caller by label is no neighbour in general, also without a port; nor is one on most
        // ports.
        (
            &["{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}"],
            DefaultDeny,
            DefaultDeny,
        ),
        (
            &[
                "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 1, endPort: 60000}, {port: http}]}]}",
            ],
            DefaultDeny,
            DefaultDeny,
        ),
    ] {
        let found = phases(specs);
        assert_eq!([found[0].ingress, found[1].ingress], [db, web], "{specs:?}");
        assert_eq!(found[2].ingress, Observe, "another namespace is not touched");
    }
}

#[test]
fn egress_is_read_likewise_and_isolation_is_told_apart() {
    let found = phases(&[
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}, {ports: [{port: 53, protocol: UDP}]}]}",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{}]}",
    ]);
    assert_eq!(
        (found[0].ingress, found[0].egress, found[0].isolated),
        (Phase::Observe, Phase::Constrain, [false, true])
    );
    assert_eq!(
        (found[1].ingress, found[1].egress, found[1].isolated),
        (Phase::Observe, Phase::DefaultDeny, [true, true])
    );
}
