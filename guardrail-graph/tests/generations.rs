//! Labels that differ between the generations of a workload, as a merge shows them.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{
    Snapshot, Timestamp, WorkloadRef,
    snapshot::{LabelSelector, WorkloadEntry, merge},
};

/// What one source knew of the workload.
fn generation(day: i64, labels: &[(&str, &str)]) -> Snapshot {
    let labels: BTreeMap<String, String> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let mut snapshot = Snapshot::empty();
    snapshot.body.workloads.push(WorkloadEntry {
        workload: WorkloadRef { namespace: "data".into(), owner: "SparkApplication".into(), name: "pi".into() },
        selector: Some(LabelSelector::of_labels(labels.clone())),
        selector_advice: None,
        labels,
        schedule: None,
        host_network: false,
        pods: BTreeMap::new(),
        ran_on: BTreeMap::new(),
        as_of: Timestamp::from_unix_seconds(day * 86_400),
    });
    merge(vec![snapshot])
}

fn changing(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.body.label_changes.iter().flat_map(|changes| changes.changing()).collect()
}

#[test]
fn a_label_with_several_values_changes_and_one_that_came_or_went_does_not() {
    let (run, app) = ("run", "app");
    let first = generation(1, &[(app, "pi"), (run, "17"), ("old", "x")]);
    let second = generation(2, &[(app, "pi"), (run, "18"), ("new", "y")]);
    assert!(first.body.label_changes.is_empty());
    assert!(merge(vec![first.clone(), first.clone()]).body.label_changes.is_empty());
    let both = merge(vec![first, second]);
    assert_eq!(changing(&both), [run]);
    let known: Vec<_> = both.body.label_changes[0].labels.keys().collect();
    assert_eq!(known, ["new", "old", run]);
    assert_eq!(both.body.workloads[0].labels[run], "18", "the latest is what stands");
}

#[test]
fn what_changed_is_the_same_in_whatever_order_and_groups_snapshots_are_joined() {
    let values = |v: Option<&'static str>| v.map(|v| ("k", v));
    let choices = [None, Some("1"), Some("2"), Some("3")];
    for a in choices {
        for b in choices {
            for c in choices {
                let [a, b, c] = [(1, a), (2, b), (3, c)]
                    .map(|(day, v)| generation(day, &values(v).into_iter().chain([("app", "pi")]).collect::<Vec<_>>()));
                let all = merge(vec![a.clone(), b.clone(), c.clone()]);
                let text = all.to_json();
                for (one, two, three) in [(&a, &b, &c), (&b, &c, &a), (&a, &c, &b), (&c, &b, &a)] {
                    let nested = merge(vec![merge(vec![one.clone(), two.clone()]), three.clone()]);
                    assert_eq!(nested.to_json(), text);
                }
                assert_eq!(merge(vec![all.clone(), b]).to_json(), text);
                let distinct: BTreeSet<_> =
                    all.body.label_changes.iter().flat_map(|l| l.labels.values()).flatten().collect();
                assert!(distinct.len() <= 2);
                assert_eq!(Snapshot::from_json(&text, "f").unwrap(), all);
            }
        }
    }
}
