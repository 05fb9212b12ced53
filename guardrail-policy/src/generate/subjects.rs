//! Whom a selector selects, decided from all workloads of the snapshot (docs/design.md#policy).
//!
//! A selector was found by whoever knew a part of the cluster, and workloads come and go: it may
//! select others, too. Two workloads whose selectors select each other's pods are one subject. A
//! workload that is selected by the way is kept apart by a label that it alone has; pods of Jobs,
//! which often bear the labels of a Deployment, by the label that the Job controller gives them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use guardrail_graph::{
    WorkloadRef,
    inventory::{is_generated_label, is_release_label},
    snapshot::{LabelSelector, SelectorOperator, SelectorRequirement, WorkloadEntry},
};

use crate::model::{JOB_NAME_LABEL, Labels, job_label, selector_matches};

/// Workloads that one selector selects, and the selector: `None` if no stable label names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject<'a> {
    /// Sorted, never empty.
    pub(crate) members: Vec<&'a WorkloadRef>,
    pub(crate) selector: Option<LabelSelector>,
}

/// The subjects of a namespace, sorted, from its workloads that policies can select. `may_have`
/// says whether some generation of a workload had this label, whatever its value.
pub(crate) fn subjects<'a>(
    entries: &[&'a WorkloadEntry],
    may_have: impl Fn(&WorkloadRef, &str) -> bool,
) -> Vec<Subject<'a>> {
    let labels: Vec<Labels> = entries.iter().map(|entry| labels_of(entry)).collect();
    let bases: Vec<Option<LabelSelector>> = entries.iter().map(|entry| base(entry)).collect();
    let mut group: Vec<usize> = (0..entries.len()).collect();
    for (i, j) in candidates(&bases, &labels) {
        let mutual = |a: usize, b: usize| bases[a].as_ref().is_some_and(|s| selector_matches(s, &labels[b]));
        if mutual(i, j)
            && mutual(j, i)
            && labels[i].contains_key(JOB_NAME_LABEL) == labels[j].contains_key(JOB_NAME_LABEL)
        {
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
            let had = |key: &str| members.iter().any(|m| may_have(&entries[*m].workload, key));
            let selector = selector_of(&members, &bases, &labels, had);
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
    for (key, value) in entry.selector.iter().flat_map(|selector| selector.match_labels.iter()) {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    labels.extend(job_label(&entry.workload));
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

/// The selector that selects these members and nobody else of the namespace. `had`: a label that a
/// generation of a member had.
fn selector_of(
    members: &[usize],
    bases: &[Option<LabelSelector>],
    labels: &[Labels],
    had: impl Fn(&str) -> bool,
) -> Option<LabelSelector> {
    let selects_all = |selector: &&LabelSelector| members.iter().all(|m| selector_matches(selector, &labels[*m]));
    let size = |s: &&LabelSelector| (s.match_labels.len() + s.match_expressions.len(), (*s).clone());
    let own = members.iter().filter_map(|m| bases[*m].as_ref()).filter(selects_all).min_by_key(size);
    let mut selector = own.cloned()?;
    let of_members: Vec<&Labels> = members.iter().map(|m| &labels[*m]).collect();
    for (index, other) in labels.iter().enumerate() {
        if !members.contains(&index) && selector_matches(&selector, other) {
            keep_apart(&mut selector, &of_members, other, &had)?;
        }
    }
    selector.match_expressions.sort();
    Some(selector)
}

/// Adds what all members fulfil and `other` does not; `None` if nothing stable does. A key that
/// only one of the two has tells them apart whatever its value is at the next release, but for one
/// that not every generation of the members had (`had`).
fn keep_apart(
    selector: &mut LabelSelector,
    members: &[&Labels],
    other: &Labels,
    had: &impl Fn(&str) -> bool,
) -> Option<()> {
    let stable = |key: &String| !is_generated_label(key) && !is_release_label(key);
    let require = |selector: &mut LabelSelector, key: &String, operator, values: Vec<String>| {
        let same = |known: &&mut SelectorRequirement| known.key == *key && known.operator == operator;
        match selector.match_expressions.iter_mut().find(same) {
            Some(known) => {
                known.values.extend(values);
                known.values.sort();
                known.values.dedup();
            }
            None => selector.match_expressions.push(SelectorRequirement { key: key.clone(), operator, values }),
        }
    };
    let passes = |key: &String| is_generated_label(key) || had(key);
    let nobodys = |key: &&String| !passes(key) && !members.iter().any(|own| own.contains_key(*key));
    // A stable key before one whose values go with a release: the members may get that, too.
    let missing = other.keys().filter(nobodys).min_by_key(|key| !stable(key));
    if let Some(key) = missing {
        require(selector, key, SelectorOperator::DoesNotExist, Vec::new());
        return Some(());
    }
    let (first, rest) = members.split_first()?;
    let of_all = |(key, value): &(&String, &String)| {
        stable(key) && other.get(*key) != Some(*value) && rest.iter().all(|own| own.get(*key) == Some(*value))
    };
    if let Some((key, value)) = first.iter().find(of_all) {
        Arc::make_mut(&mut selector.match_labels).insert(key.clone(), value.clone());
        return Some(());
    }
    let everybodys =
        |key: &&String| !passes(key) && !other.contains_key(*key) && rest.iter().all(|own| own.contains_key(*key));
    if let Some(key) = first.keys().filter(everybodys).min_by_key(|key| !stable(key)) {
        require(selector, key, SelectorOperator::Exists, Vec::new());
        return Some(());
    }
    let its_own = |(key, value): &(&String, &String)| {
        stable(key) && !passes(key) && !members.iter().any(|own| own.get(*key) == Some(*value))
    };
    if let Some((key, value)) = other.iter().find(its_own) {
        require(selector, key, SelectorOperator::NotIn, vec![value.clone()]);
        return Some(());
    }
    let of_jobs = |labels: &Labels| labels.contains_key(JOB_NAME_LABEL);
    let operator = match of_jobs(other) {
        true if !members.iter().any(|own| of_jobs(own)) => SelectorOperator::DoesNotExist,
        false if members.iter().all(|own| of_jobs(own)) => SelectorOperator::Exists,
        _ => return None,
    };
    require(selector, &JOB_NAME_LABEL.to_owned(), operator, Vec::new());
    Some(())
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
            schedule: None,
            host_network: false,
            pods: BTreeMap::new(),
            ran_on: BTreeMap::new(),
            as_of: Default::default(),
        }
    }

    fn told(entries: &[WorkloadEntry]) -> Vec<String> {
        let found = subjects(&entries.iter().collect::<Vec<_>>(), |_, _| false);
        found
            .iter()
            .map(|s| {
                let members: Vec<String> = s.members.iter().map(|m| format!("{}/{}", m.owner, m.name)).collect();
                let selector = s.selector.as_ref().map_or_else(String::new, |s| {
                    let labels = s.match_labels.iter().map(|(k, v)| format!("{k}={v}"));
                    let further = s.match_expressions.iter().map(|e| match e.operator {
                        SelectorOperator::DoesNotExist => format!("!{}", e.key),
                        operator => format!("{} {operator:?} {}", e.key, e.values.join("|")).trim_end().to_owned(),
                    });
                    labels.chain(further).collect::<Vec<_>>().join(",")
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
    fn a_label_that_some_generation_had_is_never_said_to_be_absent() {
        let (app, run): (&[_], &[_]) = (&[("app", "pay")], &[("app", "pay"), ("run", "7")]);
        let entries = [entry("Deployment", "pay", Some(app), app), entry("TaskRun", "deploy-pay", Some(run), run)];
        let entries: Vec<&WorkloadEntry> = entries.iter().collect();
        let pay = |had: bool| {
            let found = subjects(&entries, |workload, key| had && workload.name == "pay" && key == "run");
            found.into_iter().find(|s| s.members[0].name == "pay").unwrap().selector
        };
        assert!(pay(false).is_some_and(|selector| selector.match_expressions.len() == 1));
        assert_eq!(pay(true), None);
    }

    #[test]
    fn where_no_label_tells_them_apart_there_is_no_selector() {
        let (app, job): (&[_], &[_]) = (&[("app", "x")], &[("app", "x"), ("controller-uid", "j")]);
        let web = entry("Deployment", "web", Some(app), app);
        assert_eq!(
            told(&[web, entry("Task", "j", Some(job), app)]),
            ["Deployment/web: ", "Task/j: app=x,controller-uid=j"]
        );
        assert_eq!(told(&[entry("CronJob", "bare", None, &[])]), ["CronJob/bare: "]);
    }

    /// Charts give the Job of a migration the labels of the Deployment.
    #[test]
    fn pods_of_jobs_are_kept_apart_by_the_label_of_their_controller() {
        let app: &[_] = &[("app", "x")];
        let web = entry("Deployment", "web", Some(app), app);
        let (job, cron) = (entry("Job", "j", None, app), entry("CronJob", "c", None, app));
        assert_eq!(
            told(&[web.clone(), job.clone()]),
            ["Deployment/web: app=x,!job-name", "Job/j: app=x,job-name Exists"]
        );
        assert_eq!(
            told(&[web, cron.clone(), job.clone()]),
            ["CronJob/c Job/j: app=x,job-name Exists", "Deployment/web: app=x,!job-name"]
        );
        assert_eq!(told(&[cron, job]), ["CronJob/c Job/j: app=x"]);
        // A label of its own, which says more, comes first.
        let (own, wide) =
            (entry("Job", "m", None, &[("app", "x"), ("task", "m")]), entry("Deployment", "w", Some(app), app));
        assert_eq!(told(&[own, wide]), ["Deployment/w: app=x,!task", "Job/m: app=x,task=m"]);
    }

    /// Two that are one subject, and a third whose label has a value or is there where theirs
    /// differ.
    #[test]
    fn where_members_differ_the_third_is_kept_apart_by_what_it_has_or_lacks() {
        let app: &[_] = &[("app", "x")];
        let with = |track: &'static str| [("app", "x"), ("track", track)];
        let (a, b, c) = (with("a"), with("b"), with("c"));
        let pair = |a: &[(&str, &str)], b: &[(&str, &str)]| {
            [entry("Deployment", "one", Some(app), a), entry("Deployment", "two", Some(app), b)]
        };
        let [one, two] = pair(&a, &b);
        let third = entry("Job", "third", Some(&c), &c);
        assert_eq!(
            told(&[one.clone(), two.clone(), third]),
            ["Deployment/one Deployment/two: app=x,track NotIn c", "Job/third: app=x,track=c"]
        );
        let more = with("d");
        assert_eq!(
            told(&[one.clone(), two.clone(), entry("Job", "3", Some(&c), &c), entry("Job", "4", Some(&more), &more)])
                [0],
            "Deployment/one Deployment/two: app=x,track NotIn c|d"
        );
        // It has another selector, and none of the label that both have.
        let bare: &[_] = &[("app", "x"), ("job-name", "j")];
        let job = entry("Job", "j", Some(bare), app);
        assert_eq!(
            told(&[one, two, job]),
            ["Deployment/one Deployment/two: app=x,track Exists", "Job/j: app=x,job-name=j"]
        );
    }

    #[test]
    fn a_version_tells_nobody_apart_by_its_value() {
        let with = |version: &'static str| [("app", "x"), ("app.kubernetes.io/version", version)];
        let (one, two) = (with("1"), with("2"));
        let web = entry("Deployment", "web", Some(&[("app", "x")]), &one);
        let task = entry("Task", "j", Some(&[("app", "x"), ("controller-uid", "j")]), &two);
        assert_eq!(told(&[web, task]), ["Deployment/web: ", "Task/j: app=x,controller-uid=j"]);
    }

    proptest::proptest! {
        /// A selector selects its members and nobody else. Where there is none, each label that
        /// could tell a member from the one selected by the way has a value of both, or differs
        /// between members.
        #[test]
        fn a_selector_is_exact(
            drawn in proptest::collection::vec(
                (proptest::collection::btree_map("[abc]", "[xyz]", 0..4), 0_u8..8),
                1..6,
            ),
        ) {
            let entries: Vec<WorkloadEntry> = drawn
                .iter()
                .enumerate()
                .map(|(index, (labels, mask))| {
                    let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                    let chosen: Vec<(&str, &str)> =
                        labels.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, l)| *l).collect();
                    entry("Deployment", &index.to_string(), Some(&chosen).filter(|c| !c.is_empty()).map(|c| &c[..]), &labels)
                })
                .collect();
            for subject in subjects(&entries.iter().collect::<Vec<_>>(), |_, _| false) {
                let is_member = |entry: &&WorkloadEntry| subject.members.contains(&&entry.workload);
                if let Some(selector) = &subject.selector {
                    for entry in &entries {
                        let selected = selector_matches(selector, &labels_of(entry));
                        proptest::prop_assert_eq!(selected, is_member(&entry), "{:?} {:?}", selector, entry.labels);
                    }
                    continue;
                }
                // Nothing selects the members, or no requirement that holds for all of them fails
                // for one of the others.
                let members: Vec<Labels> = entries.iter().filter(is_member).map(labels_of).collect();
                let apart = |other: &Labels| {
                    ["a", "b", "c"].iter().any(|key| {
                        let own: Vec<Option<&String>> = members.iter().map(|m| m.get(*key)).collect();
                        let theirs = other.get(*key);
                        let never_theirs = theirs.is_some() && !own.contains(&theirs);
                        let always_there = theirs.is_none() && own.iter().all(Option::is_some);
                        never_theirs || always_there
                    })
                };
                let bases: Vec<LabelSelector> = entries.iter().filter(is_member).filter_map(base).collect();
                let one_selects_all = bases.iter().any(|base| members.iter().all(|m| selector_matches(base, m)));
                let others: Vec<Labels> = entries.iter().filter(|e| !is_member(e)).map(labels_of).collect();
                proptest::prop_assert!(!one_selects_all || others.iter().any(|other| !apart(other)), "{:?}", subject);
            }
        }
    }
}
