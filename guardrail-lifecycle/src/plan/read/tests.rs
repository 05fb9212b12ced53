use serde_json::{Value as Json, json};

use super::{super::fields::Kind, *};

/// A plan that uses every field.
fn full() -> Json {
    json!({
        "apiVersion": "guardrail.dev/v1alpha1",
        "kind": "Plan",
        "spec": {
            "environments": {
                "production": {
                    "context": "prod-eu",
                    "phase": "constrain",
                    "egress": true,
                    "namespaces": {"payments": {"phase": "default-deny", "egress": false}},
                    "sensitive": ["data/StatefulSet/db", "identity/*"],
                    "gates": {"window": "14d", "coverage": 99.9, "quiet": "3d"},
                },
            },
            "shared": [{"workload": "kube-system/Deployment/coredns", "ports": ["53/UDP", 53]}],
            "callers": [{"workload": "monitoring/StatefulSet/prometheus"}],
            "nodeRanges": ["10.0.0.0/16"],
            "controlPlaneRanges": ["192.0.2.0/28"],
            "external": {"api": {"names": ["api.example.com"], "ranges": ["203.0.113.0/24"], "ports": ["443/TCP"]}},
            "exceptions": [{
                "id": "inc-4711", "from": "shop/Deployment/legacy", "to": "data/StatefulSet/db", "ports": ["5432/TCP"],
                "expires": "2026-12-15T00:00:00Z", "reason": "old driver", "owner": "team-shop",
                "environments": ["production"],
            }],
            "accepted": [{
                "flow": "shop/Deployment/legacy->203.0.113.9:25/TCP", "reason": "mail", "until": "2026-12-31",
            }],
            "unused": "90d",
            "admission": {"deployers": ["a"], "breakGlass": ["b"], "controllers": ["c"], "maxDuration": "720h"},
        },
    })
}

fn paths(fields: &'static Fields) -> Vec<Vec<&'static str>> {
    let mut all = Vec::new();
    for field in fields.fields {
        all.push(vec![field.name]);
        let mut inner = &field.kind;
        while let Kind::List(of) | Kind::Map(of) = inner {
            inner = of;
        }
        if let Kind::Object(inner) = inner {
            all.extend(paths(inner).into_iter().map(|path| [vec![field.name], path].concat()));
        }
    }
    all
}

/// Without the field at the path, in the first entry of each list and mapping on the way.
fn without(mut plan: Json, path: &[&str]) -> Json {
    let (last, outer) = path.split_last().unwrap();
    let mut at = &mut plan;
    for name in outer {
        at = &mut at[*name];
        if let Json::Array(items) = at {
            at = &mut items[0];
        } else if ["environments", "namespaces", "external"].contains(name) {
            at = at.as_object_mut().unwrap().values_mut().next().unwrap();
        }
    }
    assert!(at.as_object_mut().unwrap().remove(*last).is_some(), "the full plan has no {path:?}");
    plan
}

#[test]
fn every_field_of_the_table_is_read() {
    // On one line, so that plans differ in nothing but what the field says.
    let read = |plan: &Json| read("plan", plan.to_string().as_bytes());
    let whole = read(&full()).unwrap();
    let paths = paths(&fields::PLAN);
    assert!(paths.len() >= 45, "{}", paths.len());
    for path in paths {
        match read(&without(full(), &path)) {
            Ok(plan) => assert_ne!(plan, whole, "{path:?} has no effect"),
            Err(error) => assert!(error.to_string().contains(path[path.len() - 1]), "{path:?}: {error}"),
        }
    }
}

const SMALL: &str = "apiVersion: guardrail.dev/v1alpha1
kind: Plan
spec:
  environments:
    production:
      phase: constrain
";

/// Each is one problem at one line; the text begins at `spec.environments.production`.
#[test]
fn what_is_wrong_is_said_with_its_line_and_the_nearest_right_word() {
    for (more, problem) in [
        ("      phaze: observe\n", "7: spec.environments.production has no field `phaze`; did you mean phase?"),
        (
            "      colour: red\n",
            "7: spec.environments.production has no field `colour`; it has context, phase, egress, namespaces, sensitive, gates",
        ),
        (
            "      namespaces: {shop: {phase: default-dney}}\n",
            "7: spec.environments.production.namespaces.shop.phase is `default-dney`, which is no phase; did you mean default-deny?",
        ),
        (
            "      namespaces: {shop: {phase: closed}}\n",
            "7: spec.environments.production.namespaces.shop.phase is `closed`, which is no phase; write observe, constrain or default-deny",
        ),
        (
            "      namespaces:\n        sandbox-*: {}\n        sandbox-*-eu: {}\n",
            "9: `sandbox-*-eu` and `sandbox-*` of line 8 stand for the same namespaces and neither is closer; make the letters before the `*` of one of them longer",
        ),
        ("      namespaces: {Shop: {}}\n", "7: `Shop` is no name of a namespace and no pattern of one, like sandbox-*"),
        (
            "      namespaces: {shop: {phase: observe, egress: true}}\n",
            "7: spec.environments.production.namespaces.shop.egress has no effect at phase observe, which closes nothing; remove one of them",
        ),
        (
            "      sensitive: [db]\n",
            "7: spec.environments.production.sensitive[0] is `db`, which names no workload; write NAMESPACE/KIND/NAME or NAMESPACE/*",
        ),
        (
            "      gates: {window: 14}\n",
            "7: spec.environments.production.gates.window is a number; write a duration like 24h or 7d",
        ),
        (
            "      gates: {coverage: 101}\n",
            "7: spec.environments.production.gates.coverage is no percentage; write a number from 0 to 100",
        ),
        (
            "  shared: [{workload: kube-system/coredns, ports: [53/udp]}]\n",
            "7: spec.shared[0].ports[0] is `53/udp`; did you mean 53/UDP?|7: spec.shared[0].workload is `kube-system/coredns`, which is no workload; write NAMESPACE/KIND/NAME",
        ),
        ("  shared: [{workload: a/b/c, ports: []}]\n", "7: spec.shared[0].ports is empty; add at least one"),
        (
            "  nodeRanges: [10.0.0.1/16]\n",
            "7: spec.nodeRanges[0] is `10.0.0.1/16`, whose last bits are not 0; write 10.0.0.0/16",
        ),
        ("  nodeRanges: 10.0.0.0/16\n", "7: spec.nodeRanges is a string; write a list"),
        ("  external: {api: {ports: [443]}}\n", "7: spec.external.api has neither names nor ranges; add one of them"),
        (
            "  exceptions:\n  - {id: a, from: s/Deployment/a, to: s/Deployment/b, ports: [1], reason: r, owner: o}\n",
            "8: spec.exceptions[0] has no `expires` (its end: a time like 2026-12-15T00:00:00Z, or a date); add it",
        ),
        (
            "  exceptions:\n  - {id: a, from: s/Deployment/a, to: s/Deployment/b, ports: [1], reason: r, owner: o, expires: soon}\n",
            "8: spec.exceptions[0].expires is `soon`, which is no time; write one like 2026-12-15T00:00:00Z, or a date",
        ),
        (
            "  exceptions:\n  - {id: a, from: s/D/a, to: s/D/b, ports: [1], reason: r, owner: o, expires: 2027-01-01, environments: [prodution]}\n",
            "8: exception a names environment prodution, which the plan does not have; did you mean production?",
        ),
        (
            "  exceptions:\n  - {id: a, from: 192.0.2.1, to: 192.0.2.0/24, ports: [1], reason: r, owner: o, expires: 2027-01-01}\n",
            "8: spec.exceptions[0] has no end in the cluster; name a workload in from or to",
        ),
        (
            "  exceptions:\n  - &one {id: a, from: s/D/a, to: s/D/b, ports: [1], reason: r, owner: o, expires: 2027-01-01}\n  - {id: a, from: s/D/a, to: s/D/b, ports: [2], reason: r, owner: o, expires: 2027-01-01}\n",
            "9: exception a stands at line 8, too; give one of them another id",
        ),
        (
            "  exceptions:\n  - {id: Ä, from: s/D/a, to: s/D/b, ports: [1], reason: r, owner: o, expires: 2027-01-01}\n",
            "8: spec.exceptions[0].id is `Ä`; it becomes part of an object's name: write at most 40 lower case letters, digits and `-`",
        ),
        ("  unused: 90 days\n", "7: spec.unused is `90 days`, which is no duration; write one like 24h or 7d"),
        ("  accepted: [{flow: a->b, reason: r}]\n", "7: spec.accepted[0].flow is wrong: `a->b` names no flow: "),
        ("---\na: b\n", "8: a plan is one document, and this file has 2; keep one of them"),
        ("  environments: {}\n", "7: "),
    ] {
        let error = read("plan.yaml", format!("{SMALL}{more}").as_bytes()).unwrap_err();
        let found: Vec<String> = error.problems.iter().map(|p| format!("{}: {}", p.location.line, p.message)).collect();
        let wanted: Vec<&str> = problem.split('|').collect();
        assert_eq!(found.len(), wanted.len(), "{more}{found:?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.starts_with(wanted), "{more}\n{found}\n{wanted}");
        }
    }
    assert!(read("plan.yaml", SMALL.as_bytes()).is_ok());
    for (text, problem) in [
        ("", "plan.yaml:1: the file is empty; `guardrail init` writes a first plan"),
        ("[]", "plan.yaml:1: a plan is a list; write a mapping with apiVersion, kind, spec"),
        (
            "{apiVersion: guardrail.dev/v1, kind: Plan, spec: {environments: {a: {}}}}",
            "plan.yaml:1: apiVersion is `guardrail.dev/v1`; a plan has guardrail.dev/v1alpha1",
        ),
        (
            "{apiVersion: guardrail.dev/v1alpha1, kind: Plan, spec: {environments: {}}}",
            "plan.yaml:1: spec.environments is empty; add one, like production",
        ),
    ] {
        assert_eq!(read("plan.yaml", text.as_bytes()).unwrap_err().to_string(), problem);
    }
}
