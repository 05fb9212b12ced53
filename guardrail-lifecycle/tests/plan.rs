//! A plan as people use it: which namespace is meant to be what, and what of it fits the cluster.

use std::{collections::BTreeSet, fs, path::Path};

use guardrail_graph::{Timestamp, WorkloadRef};
use guardrail_lifecycle::plan::{self, Plan, Wanted};
use guardrail_policy::generate::Phase;

const PLAN: &str = "
apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production:
      phase: constrain
      egress: true
      namespaces:
        payments: {phase: default-deny}
        kube-system: {phase: observe}
        sandbox-*: {phase: observe}
        sandbox-eu-*: {egress: false}
        sandbox-eu-main: {phase: default-deny, egress: false}
      sensitive: [data/StatefulSet/db, 'identity/*']
    staging: {}
  shared:
  - {workload: kube-system/Deployment/corends, ports: [53/UDP]}
  exceptions:
  - {id: short, from: shop/Deployment/a, to: data/StatefulSet/db, ports: [5432], expires: 2026-12-02, reason: r, owner: o}
  - {id: long, from: 192.0.2.7, to: data/StatefulSet/db, ports: [5432], expires: 2027-12-02T12:00:00Z, reason: r, owner: o, environments: [staging]}
  admission: {maxDuration: 720h}
";

fn plan() -> Plan {
    plan::read("guardrail.yaml", PLAN.as_bytes()).unwrap()
}

fn workload(text: &str) -> WorkloadRef {
    let [namespace, owner, name] = text.split('/').collect::<Vec<_>>()[..] else { panic!("{text}") };
    WorkloadRef { namespace: namespace.into(), owner: owner.into(), name: name.into() }
}

#[test]
fn an_exact_name_comes_before_a_pattern_and_a_longer_pattern_before_a_shorter() {
    let plan = plan();
    let production = plan.environment("production").unwrap();
    for (namespace, phase, egress) in [
        ("shop", Phase::Constrain, true),
        ("payments", Phase::DefaultDeny, true),
        ("kube-system", Phase::Observe, false),
        ("sandbox-x", Phase::Observe, false),
        ("sandbox-eu-x", Phase::Constrain, false),
        ("sandbox-eu-main", Phase::DefaultDeny, false),
        ("sandbox", Phase::Constrain, true),
    ] {
        assert_eq!(production.wanted(namespace), Wanted { phase, egress }, "{namespace}");
    }
    assert_eq!(plan.environment("staging").unwrap().wanted("shop"), Wanted::default());
    for (name, is) in [
        ("data/StatefulSet/db", true),
        ("data/Deployment/db", false),
        ("identity/Deployment/keycloak", true),
        ("identity2/Deployment/keycloak", false),
    ] {
        assert_eq!(production.is_sensitive(&workload(name)), is, "{name}");
    }
}

#[test]
fn an_unknown_environment_is_answered_with_the_nearest_or_all() {
    let plan = plan();
    for (name, message) in [
        ("prodution", "the plan has no environment prodution; did you mean production?"),
        ("dev", "the plan has no environment dev; it has production, staging"),
    ] {
        assert_eq!(plan.environment(name).unwrap_err().to_string(), message);
    }
}

#[test]
fn workloads_that_are_not_there_are_named_with_the_nearest() {
    let known: BTreeSet<WorkloadRef> = [
        "kube-system/Deployment/coredns",
        "shop/Deployment/a",
        "data/StatefulSet/db2",
        "identities/Deployment/keycloak",
    ]
    .into_iter()
    .map(workload)
    .collect();
    let unknown = plan().unknown_workloads(&known);
    let told: Vec<&str> = unknown.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(
        told,
        [
            "sensitive of production names data/StatefulSet/db, which matches no workload; did you mean data/StatefulSet/db2?",
            "sensitive of production names identity/*, which matches no workload",
            "shared names kube-system/Deployment/corends, which is not in the cluster; did you mean kube-system/Deployment/coredns?",
            "exception short names data/StatefulSet/db, which is not in the cluster; did you mean data/StatefulSet/db2?",
            "exception long names data/StatefulSet/db, which is not in the cluster; did you mean data/StatefulSet/db2?",
        ]
    );
    assert_eq!(unknown.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [15, 15, 18, 20, 21]);
}

#[test]
fn an_exception_beyond_the_longest_life_is_a_problem_at_its_line() {
    let now: Timestamp = "2026-12-01T00:00:00Z".parse().unwrap();
    let plan = plan();
    let problems = plan.too_long("guardrail.yaml", now);
    assert_eq!(
        problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "guardrail.yaml:21: exception long ends in 366 days 12 hours, and admission.maxDuration allows 30 days; give it an earlier end"
        ]
    );
    assert!(plan.exceptions[0].is_over(plan.exceptions[0].expires), "it has ended when its end has come");
    assert!(!plan.exceptions[0].is_over(now));
    assert!(plan.exceptions[1].applies_in("staging") && !plan.exceptions[1].applies_in("production"));
}

#[test]
fn the_schema_in_the_repository_is_that_of_the_reader() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plan.schema.json");
    let schema = plan::schema();
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::write(&path, &schema).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), schema, "UPDATE_GOLDENS=1 writes it anew");
}
