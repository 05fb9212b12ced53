//! Whom a selector selects, decided from all workloads of the snapshot (docs/design.md#policy).
//!
//! A selector was found by whoever knew a part of the cluster, and workloads come and go: it may
//! select others, too. Two workloads whose selectors select each other's pods are one subject. A
//! workload that is selected by the way is kept apart by a label that it alone has.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{
    WorkloadRef,
    inventory::is_generated_label,
    snapshot::{LabelSelector, SelectorOperator, SelectorRequirement, WorkloadEntry},
};

use crate::model::{Labels, selector_matches};

/// Workloads that one selector selects, and the selector: `None` if no stable label names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject<'a> {
    /// Sorted, never empty.
    pub(crate) members: Vec<&'a WorkloadRef>,
    pub(crate) selector: Option<LabelSelector>,
}

/// The subjects of a namespace, sorted, from its workloads that policies can select.
pub(crate) fn subjects<'a>(entries: &[&'a WorkloadEntry]) -> Vec<Subject<'a>> {
    let labels: Vec<Labels> = entries.iter().map(|entry| labels_of(entry)).collect();
    let bases: Vec<Option<LabelSelector>> = entries.iter().map(|entry| base(entry)).collect();
    let mut group: Vec<usize> = (0..entries.len()).collect();
    for (i, j) in candidates(&bases, &labels) {
        let mutual = |a: usize, b: usize| bases[a].as_ref().is_some_and(|s| selector_matches(s, &labels[b]));
        if mutual(i, j) && mutual(j, i) {
            let (from, to) = (group[i].max(group[j]), group[i].min(group[j]));
            group.iter_mut().filter(|g| **g == from).for_each(|g| *g = to);
        }
    }
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, group) in group.iter().enumerate() {
        members.entry(*group).or_default().push(index);
    }
    let mut found: Vec<Subject<'a>> = members
        .into_values()
        .map(|members| {
            let selector = selector_of(&members, &bases, &labels);
            let mut names: Vec<&WorkloadRef> = members.iter().map(|index| &entries[*index].workload).collect();
            names.sort();
            Subject { members: names, selector }
        })
        .collect();
    found.sort_by(|a, b| a.members.cmp(&b.members));
    found
}

/// Pairs of which the first one's selector may select the second: those that share a label of it.
/// Without this, a namespace of thousands of workloads would be compared pair by pair.
fn candidates(bases: &[Option<LabelSelector>], labels: &[Labels]) -> BTreeSet<(usize, usize)> {
    let mut by_label: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (index, labels) in labels.iter().enumerate() {
        for (key, value) in labels {
            by_label.entry((key, value)).or_default().push(index);
        }
    }
    let mut pairs = BTreeSet::new();
    for (index, base) in bases.iter().enumerate() {
        let Some(base) = base else { continue };
        let rarest = base
            .match_labels
            .iter()
            .map(|(key, value)| by_label.get(&(key.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice))
            .min_by_key(|with| with.len());
        match rarest {
            Some(with) => pairs.extend(with.iter().filter(|other| **other != index).map(|other| (index, *other))),
            None => pairs.extend((0..labels.len()).filter(|other| *other != index).map(|other| (index, other))),
        }
    }
    pairs
}

/// What all pods of the workload bear.
pub(crate) fn labels_of(entry: &WorkloadEntry) -> Labels {
    let mut labels = entry.labels.clone();
    for (key, value) in entry.selector.iter().flat_map(|selector| &selector.match_labels) {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    labels
}

/// The selector before it is known whom else it selects. Without one, all stable labels together.
fn base(entry: &WorkloadEntry) -> Option<LabelSelector> {
    let by_labels = || {
        let labels = entry.labels.iter().filter(|(key, _)| !is_generated_label(key));
        LabelSelector::of_labels(labels.map(|(key, value)| (key.clone(), value.clone())).collect())
    };
    Some(entry.selector.clone().unwrap_or_else(by_labels)).filter(|selector| !selector.is_empty())
}

/// The selector that selects these members and nobody else of the namespace.
fn selector_of(members: &[usize], bases: &[Option<LabelSelector>], labels: &[Labels]) -> Option<LabelSelector> {
    let selects_all = |selector: &&LabelSelector| members.iter().all(|m| selector_matches(selector, &labels[*m]));
    let size = |s: &&LabelSelector| (s.match_labels.len() + s.match_expressions.len(), (*s).clone());
    let own = members.iter().filter_map(|m| bases[*m].as_ref()).filter(selects_all).min_by_key(size);
    let mut selector = own.cloned()?;
    for (index, other) in labels.iter().enumerate() {
        if members.contains(&index) || !selector_matches(&selector, other) {
            continue;
        }
        let mine = |key: &String| members.iter().any(|m| labels[*m].contains_key(key));
        let shared = |key: &String, value: &String| members.iter().all(|m| labels[*m].get(key) == Some(value));
        let own = |(key, value): &(&String, &String)| {
            !is_generated_label(key) && shared(key, value) && other.get(*key) != Some(*value)
        };
        if let Some(key) = other.keys().find(|key| !is_generated_label(key) && !mine(key)) {
            selector.match_expressions.push(SelectorRequirement {
                key: key.clone(),
                operator: SelectorOperator::DoesNotExist,
                values: Vec::new(),
            });
        } else {
            let (key, value) = labels[members[0]].iter().find(own)?;
            selector.match_labels.insert(key.clone(), value.clone());
        }
    }
    selector.match_expressions.sort();
    Some(selector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(owner: &str, name: &str, selector: Option<&[(&str, &str)]>, labels: &[(&str, &str)]) -> WorkloadEntry {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        WorkloadEntry {
            workload: WorkloadRef { namespace: "shop".into(), owner: owner.into(), name: name.into() },
            selector: selector.map(|s| LabelSelector::of_labels(map(s))),
            selector_advice: None,
            labels: map(labels),
            host_network: false,
            pods: BTreeMap::new(),
            ran_on: BTreeMap::new(),
            as_of: Default::default(),
        }
    }

    fn told(entries: &[WorkloadEntry]) -> Vec<String> {
        let found = subjects(&entries.iter().collect::<Vec<_>>());
        found
            .iter()
            .map(|s| {
                let members: Vec<String> = s.members.iter().map(|m| format!("{}/{}", m.owner, m.name)).collect();
                let selector = s.selector.as_ref().map_or_else(String::new, |s| {
                    let without = s.match_expressions.iter().map(|e| format!(",!{}", e.key)).collect::<String>();
                    let labels: Vec<String> = s.match_labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    labels.join(",") + &without
                });
                format!("{}: {selector}", members.join(" "))
            })
            .collect()
    }

    #[test]
    fn workloads_that_select_each_other_are_one_subject() {
        let app: &[_] = &[("app", "api")];
        assert_eq!(
            told(&[entry("Rollout", "api", Some(app), app), entry("Deployment", "api", Some(app), app)]),
            ["Deployment/api Rollout/api: app=api"]
        );
        assert_eq!(
            told(&[entry("Job", "migrate-1", None, app), entry("Job", "migrate-2", None, app)]),
            ["Job/migrate-1 Job/migrate-2: app=api"]
        );
    }

    #[test]
    fn a_workload_that_is_selected_by_the_way_is_kept_apart_whoever_noticed_it() {
        let (app, run): (&[_], &[_]) = (&[("app", "pay")], &[("app", "pay"), ("tekton.dev/taskRun", "deploy-pay")]);
        let task = entry("TaskRun", "deploy-pay", Some(run), run);
        for pay in [entry("Deployment", "pay", Some(app), app), entry("Deployment", "pay", None, app)] {
            assert_eq!(
                told(&[pay, task.clone()]),
                [
                    "Deployment/pay: app=pay,!tekton.dev/taskRun",
                    "TaskRun/deploy-pay: app=pay,tekton.dev/taskRun=deploy-pay"
                ]
            );
        }
    }

    #[test]
    fn a_label_with_another_value_tells_them_apart() {
        let (a, b): (&[_], &[_]) = (&[("app", "x"), ("track", "a")], &[("app", "x"), ("track", "b")]);
        let wide = entry("Deployment", "wide", Some(&[("app", "x")]), a);
        let narrow = entry("Deployment", "narrow", Some(b), b);
        assert_eq!(told(&[wide, narrow]), ["Deployment/narrow: app=x,track=b", "Deployment/wide: app=x,track=a"]);
    }

    #[test]
    fn where_no_label_tells_them_apart_there_is_no_selector() {
        let (app, job): (&[_], &[_]) = (&[("app", "x")], &[("app", "x"), ("job-name", "j")]);
        let web = entry("Deployment", "web", Some(app), app);
        assert_eq!(told(&[web, entry("Job", "j", Some(job), app)]), ["Deployment/web: ", "Job/j: app=x,job-name=j"]);
        assert_eq!(told(&[entry("CronJob", "bare", None, &[])]), ["CronJob/bare: "]);
    }
}
