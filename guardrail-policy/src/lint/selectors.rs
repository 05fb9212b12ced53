//! The rules about what selectors match, and by which labels.

use std::collections::BTreeMap;

use guardrail_graph::{
    inventory::{is_generated_label, is_release, is_replica_label, release_keys},
    snapshot::LabelSelector,
};

use super::{
    GENERATED_LABEL, HOST_NETWORK_PEER, HOST_NETWORK_SUBJECT, Linter, PEER_MATCHES_NOTHING, RELEASE_LABEL,
    SELECTS_NOTHING, Severity, WIDE_PEER, dns,
};
use crate::{
    evaluate::ClusterPod,
    model::{NAMESPACE_NAME_LABEL, NetworkPolicy, PeerKind, PolicyPeer, Rule, selector_matches, words},
    words::nearest,
};

/// Pods that selectors match.
#[derive(Default)]
pub(super) struct Matched<'a> {
    /// Live ones that policies apply to, and those that templates would make.
    pub(super) selectable: Vec<&'a ClusterPod>,
    /// Live ones on their host's network.
    pub(super) host: Vec<&'a ClusterPod>,
    /// A finished pod: the labels are right.
    pub(super) finished: bool,
}

impl<'a> Matched<'a> {
    fn of(pods: impl Iterator<Item = &'a ClusterPod>) -> Self {
        let mut matched = Self::default();
        for pod in pods {
            match (pod.finished, pod.host_network) {
                (true, _) => matched.finished = true,
                (false, true) => matched.host.push(pod),
                (false, false) => matched.selectable.push(pod),
            }
        }
        matched
    }

    fn is_empty(&self) -> bool {
        self.selectable.is_empty() && self.host.is_empty() && !self.finished
    }
}

fn named(pods: &[&ClusterPod]) -> String {
    let mut names: Vec<String> = pods.iter().take(2).map(|p| p.full_name()).collect();
    if pods.len() > 2 {
        names.push(format!("{} more", pods.len() - 2));
    }
    names.join(", ")
}

impl<'a> Linter<'a> {
    /// The pods of the inventory; `None` if there is no inventory or it has no pods and no
    /// templates at all.
    fn pods(&self) -> Option<&'a [ClusterPod]> {
        Some(self.evaluator?.cluster().pods.as_slice()).filter(|pods| !pods.is_empty())
    }

    pub(super) fn peer_pods(&self, policy: &NetworkPolicy, peer: &PeerKind) -> Matched<'a> {
        let (Some(pods), PeerKind::Pods { namespaces, pods: labels }) = (self.pods(), peer) else {
            return Matched::default();
        };
        let cluster = self.evaluator.map(crate::evaluate::Evaluator::cluster);
        let within = |pod: &ClusterPod| match namespaces {
            None => pod.namespace == policy.namespace,
            Some(selector) => cluster.is_some_and(|c| selector_matches(selector, &c.namespace_labels(&pod.namespace))),
        };
        let matches = |pod: &&ClusterPod| {
            within(pod) && labels.as_ref().is_none_or(|selector| selector_matches(selector, &pod.labels))
        };
        Matched::of(pods.iter().filter(matches))
    }

    pub(super) fn subject(&mut self, policy: &NetworkPolicy) {
        let line = policy.pod_selector_line;
        self.labels(policy, &policy.pod_selector, line, "podSelector");
        let Some(pods) = self.pods() else { return };
        let own =
            |p: &&ClusterPod| p.namespace == policy.namespace && selector_matches(&policy.pod_selector, &p.labels);
        let matched = Matched::of(pods.iter().filter(own));
        let shown = words(&policy.pod_selector);
        if matched.is_empty() {
            let message = format!("podSelector {shown} matches no live pod in {}", policy.namespace);
            let within = |namespace: &str| namespace == policy.namespace;
            if policy.pod_selector.is_empty() || self.is_out_of_sight(within) {
                self.add_as(Severity::Note, &SELECTS_NOTHING, policy, line, message);
            } else if !self.is_made_by_others(within, &policy.pod_selector) {
                let near =
                    self.nearly(within, &policy.pod_selector).map_or_else(String::new, |near| format!(": {near}"));
                self.add(&SELECTS_NOTHING, policy, line, format!("{message}{near}"));
            }
        } else if matched.selectable.is_empty() && !matched.host.is_empty() {
            let message = format!(
                "podSelector {shown} matches only pods on their host's network ({}): the policy closes nothing, their ports stay open",
                named(&matched.host)
            );
            self.add(&HOST_NETWORK_SUBJECT, policy, line, message);
        }
    }

    /// Whether the inventory is what a pipeline renders: workloads, and no pod.
    fn is_rendered(&self) -> bool {
        self.pods().is_some_and(|pods| pods.iter().all(ClusterPod::is_stand_in))
    }

    /// What is rendered has no workload in these namespaces: it is about others, which may have
    /// any.
    fn is_out_of_sight(&self, within: impl Fn(&str) -> bool) -> bool {
        self.is_rendered() && !self.pods().is_some_and(|pods| pods.iter().any(|pod| within(&pod.namespace)))
    }

    /// Whether pods with these labels come from what is not rendered: an operator, for whose pods
    /// there is a Service already, or whoever adds such a label to running pods.
    fn is_made_by_others(&self, within: impl Fn(&str) -> bool, selector: &LabelSelector) -> bool {
        let keys = selector.match_labels.keys().chain(selector.match_expressions.iter().map(|e| &e.key));
        let mut services = self.context.inventory.services().filter(|s| !s.selector.is_empty() && within(&s.namespace));
        self.is_rendered()
            && !selector.is_empty()
            && (keys.into_iter().any(|key| is_added_label(key))
                || services.any(|service| selector_matches(selector, &service.selector.to_map())))
    }

    pub(super) fn selectors(&mut self, policy: &NetworkPolicy, rule: &Rule, peer: &PolicyPeer, name: &str) {
        let PeerKind::Pods { namespaces, pods } = &peer.kind else { return };
        if let Some(selector) = namespaces {
            self.labels(policy, selector, peer.line, "namespaceSelector");
        }
        if let Some(selector) = pods {
            self.labels(policy, selector, peer.line, "podSelector");
        }
        let every = |s: &Option<LabelSelector>| s.as_ref().is_some_and(LabelSelector::is_empty);
        let any_pod = pods.is_none() || every(pods);
        if every(namespaces) && any_pod {
            let message = format!("{name}: `namespaceSelector: {{}}` means every pod of every namespace");
            let pods = |p: &PolicyPeer| matches!(p.kind, PeerKind::Pods { .. });
            if rule.peers.iter().filter(|p| pods(p)).count() > 1 {
                let message = format!("{message}, and the other peers that are pods do nothing");
                self.add(&WIDE_PEER, policy, peer.line, message);
            } else if rule.ports.is_empty() {
                self.add(&WIDE_PEER, policy, peer.line, message);
            } else if !dns::is_only_dns(&rule.ports) {
                // Metrics and webhooks for the whole cluster are mostly meant.
                self.add_as(Severity::Note, &WIDE_PEER, policy, peer.line, message);
            }
        } else if namespaces.is_none() && every(pods) && !policy.pod_selector.is_empty() && rule.peers.len() == 1 {
            let message = format!("{name}: `podSelector: {{}}` means every pod of namespace {}", policy.namespace);
            self.add(&WIDE_PEER, policy, peer.line, message);
        }
        self.matches_nothing(policy, peer, namespaces.as_ref(), pods.as_ref(), name);
    }

    fn matches_nothing(
        &mut self,
        policy: &NetworkPolicy,
        peer: &PolicyPeer,
        namespaces: Option<&LabelSelector>,
        pods: Option<&LabelSelector>,
        name: &str,
    ) {
        let Some(all) = self.pods() else { return };
        if namespaces.is_some_and(is_host_network_of_openshift) {
            return;
        }
        let matched = self.peer_pods(policy, &peer.kind);
        let shown = |field: &str, s: Option<&LabelSelector>| s.map(|s| format!("{field} {}", words(s)));
        let parts = [shown("namespaceSelector", namespaces), shown("podSelector", pods)];
        let what = parts.into_iter().flatten().collect::<Vec<_>>().join(" with ");
        if matched.selectable.is_empty() && !matched.host.is_empty() {
            let message =
                format!("{name}: {what} matches only pods on their host's network ({})", named(&matched.host));
            return self.add(&HOST_NETWORK_PEER, policy, peer.line, message);
        }
        if !matched.is_empty() {
            return;
        }
        let by_labels = namespaces.is_some_and(|s| {
            s.match_labels.keys().chain(s.match_expressions.iter().map(|e| &e.key)).any(|k| k != NAMESPACE_NAME_LABEL)
        });
        if by_labels && let Some(evaluator) = self.evaluator {
            let unknown: Vec<&str> = evaluator.cluster().namespaces_without_labels().take(3).collect();
            if !unknown.is_empty() {
                let message = format!("{name}: {what}: the labels of namespace {} are not known", unknown.join(", "));
                self.add_with(
                    &PEER_MATCHES_NOTHING,
                    policy,
                    peer.line,
                    message,
                    "Add Namespaces to --inventory".to_owned(),
                );
                if let Some(last) = self.findings.last_mut() {
                    last.severity = Severity::Note;
                }
                return;
            }
        }
        let elsewhere = pods.filter(|_| namespaces.is_none()).and_then(|selector| {
            all.iter().find(|p| !p.finished && !selector.is_empty() && selector_matches(selector, &p.labels))
        });
        let cluster = self.evaluator.map(crate::evaluate::Evaluator::cluster);
        let within = |namespace: &str| match namespaces {
            None => namespace == policy.namespace,
            Some(selector) => cluster.is_some_and(|c| selector_matches(selector, &c.namespace_labels(namespace))),
        };
        let own_is_empty = namespaces.is_none() && !all.iter().any(|pod| pod.namespace == policy.namespace);
        let by_others = pods.is_some_and(|selector| self.is_made_by_others(within, selector));
        if !self.is_out_of_sight(within)
            && !by_others
            && let Some((why, fix)) = self.misplaced(namespaces, pods)
        {
            let message = format!("{name}: {what} matches nothing: {why}");
            return self.add_with(&PEER_MATCHES_NOTHING, policy, peer.line, message, fix);
        }
        match elsewhere {
            None if own_is_empty && pods.is_some_and(LabelSelector::is_empty) => {}
            None if self.is_out_of_sight(within) => {
                let message = format!("{name}: {what} matches nothing here, which has no workload of such a namespace");
                let fix = "Add what runs there to --inventory".to_owned();
                self.add_with(&PEER_MATCHES_NOTHING, policy, peer.line, message, fix);
                if let Some(last) = self.findings.last_mut() {
                    last.severity = Severity::Note;
                }
            }
            None if by_others => {}
            Some(pod) => {
                let message = format!(
                    "{name}: {what} matches pods of {}, and without a namespaceSelector it means pods of {}",
                    pod.namespace, policy.namespace
                );
                let fix =
                    format!("Add a namespaceSelector in the same item ({NAMESPACE_NAME_LABEL}: {})", pod.namespace);
                self.add_with(&PEER_MATCHES_NOTHING, policy, peer.line, message, fix);
            }
            None => {
                let near = pods.and_then(|selector| self.nearly(within, selector));
                let near = near.map_or_else(String::new, |near| format!(": {near}"));
                self.add(&PEER_MATCHES_NOTHING, policy, peer.line, format!("{name}: {what} matches no live pod{near}"));
            }
        }
    }

    /// What keeps the selector from the pod that it nearly matches: which of its labels that one
    /// lacks, or a letter or two of its only label.
    fn nearly(&self, within: impl Fn(&str) -> bool, selector: &LabelSelector) -> Option<String> {
        let wanted = &selector.match_labels;
        let pods = self.pods()?.iter().filter(|pod| !pod.finished && within(&pod.namespace));
        let mut alone = wanted.iter().filter(|_| wanted.len() == 1 && selector.match_expressions.is_empty());
        if let Some((key, value)) = alone.next() {
            let has = |pod: &ClusterPod| Some((pod.labels.get(key)?.clone(), pod.full_name()));
            let values: BTreeMap<String, String> = pods.rev().filter_map(has).collect();
            let near = nearest(value, values.keys().map(String::as_str))?;
            return Some(format!("{} has {key}={near}", values[near]));
        }
        let count = |pod: &&ClusterPod| wanted.iter().filter(|(k, v)| pod.labels.get(*k) == Some(v)).count();
        // The first of those that have most of the labels.
        let best = pods.rev().max_by_key(count).filter(|pod| count(pod) > 0)?;
        let lacks = wanted.iter().filter(|(k, v)| best.labels.get(*k) != Some(v)).map(|(k, v)| format!("{k}={v}"));
        let lacks: Vec<String> = lacks.collect();
        (!lacks.is_empty()).then(|| format!("{} has all of it but {}", best.full_name(), lacks.join(", ")))
    }

    /// Labels that are right and stand in the wrong place: why, and what to do.
    fn misplaced(&self, namespaces: Option<&LabelSelector>, pods: Option<&LabelSelector>) -> Option<(String, String)> {
        let cluster = self.evaluator?.cluster();
        if let Some(name) = pods.and_then(|selector| selector.match_labels.get(NAMESPACE_NAME_LABEL)) {
            let why = format!("{NAMESPACE_NAME_LABEL} is a label of namespaces, pods do not have it");
            return Some((why, format!("Write it under namespaceSelector ({NAMESPACE_NAME_LABEL}: {name})")));
        }
        let selector = namespaces.filter(|s| !s.is_empty() && s.match_expressions.is_empty())?;
        // Every cluster has it, mostly without pods; the Service of the API server is there.
        let is_default = selector.match_labels.get(NAMESPACE_NAME_LABEL).is_some_and(|name| name == "default");
        if is_default && !cluster.pods.iter().any(|pod| pod.namespace == "default") {
            let why = "no pod is in namespace default, and the API server is none".to_owned();
            let fix = "If it is meant, write an ipBlock of its endpoints (kubectl get endpointslices -n default)";
            return Some((why, fix.to_owned()));
        }
        let matches = |name: &&str| selector_matches(selector, &cluster.namespace_labels(name));
        if cluster.namespaces().any(|name| matches(&name)) {
            // The namespace is right, and the labels of its pods are not, or the other way round.
            let labels = pods.filter(|labels| !labels.is_empty())?;
            let found = cluster.pods.iter().find(|p| !p.finished && selector_matches(labels, &p.labels))?;
            let why = format!(
                "pods with these labels are in {}, which the namespaceSelector does not match",
                found.namespace
            );
            let fix = format!(
                "Correct the labels, or the namespaceSelector if those are meant ({NAMESPACE_NAME_LABEL}: {})",
                found.namespace
            );
            return Some((why, fix));
        }
        if let Some(pod) = cluster.pods.iter().find(|p| !p.finished && selector_matches(selector, &p.labels)) {
            let why = format!("these are labels of pods ({}), namespaces do not have them", pod.full_name());
            let fix = format!(
                "Write them under podSelector, in one item with a namespaceSelector ({NAMESPACE_NAME_LABEL}: {})",
                pod.namespace
            );
            return Some((why, fix));
        }
        let called = |(key, value): (&String, &String)| {
            (key != NAMESPACE_NAME_LABEL && cluster.has_namespace(value)).then(|| (key.clone(), value.clone()))
        };
        if let Some((key, value)) = selector.match_labels.iter().find_map(called) {
            let why = format!("namespace {value} has no label {key}={value}");
            return Some((why, format!("Write {NAMESPACE_NAME_LABEL}: {value}, which every namespace has")));
        }
        if let Some(name) = selector.match_labels.get(NAMESPACE_NAME_LABEL).filter(|name| !name.starts_with("kube-")) {
            return Some((format!("no namespace is called {name}"), "Correct the name of the namespace".to_owned()));
        }
        None
    }

    pub(super) fn labels(&mut self, policy: &impl super::Policy, selector: &LabelSelector, line: u32, field: &str) {
        let equal = selector.match_labels.iter().map(|(k, v)| (k.as_str(), vec![v.as_str()]));
        let listed = selector
            .match_expressions
            .iter()
            .map(|e| (e.key.as_str(), e.values.iter().map(String::as_str).collect::<Vec<_>>()));
        let passing = release_keys(selector.match_labels.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        // `Exists` and `DoesNotExist` name no value that could change.
        let all: Vec<(&str, Vec<&str>)> = equal.chain(listed).filter(|(_, values)| !values.is_empty()).collect();
        for (key, values) in all {
            // One replica keeps its name.
            if is_replica_label(key) {
                continue;
            }
            let released = passing.contains(key) || values.iter().any(|value| is_release(key, value));
            if matches!(key, "job-name" | "batch.kubernetes.io/job-name") {
                if values.iter().any(|job| self.is_made_job(job)) {
                    let message = format!("{field} names the run {}, the next one has another name", values.join(", "));
                    self.add_as(Severity::Note, &GENERATED_LABEL, policy, line, message);
                }
            } else if is_generated_label(key) {
                self.add(&GENERATED_LABEL, policy, line, format!("{field} names the generated label {key}"));
            } else if released && !is_name_of_revisions(key, &values) {
                let message =
                    format!("{field} names {key}={}, which the next release or run changes", values.join(", "));
                self.add(&RELEASE_LABEL, policy, line, message);
            }
        }
    }

    /// Whether a CronJob made the Job of this name: it appends the minute. A Job that a person
    /// named keeps its name at every upgrade.
    fn is_made_job(&self, job: &str) -> bool {
        let owned =
            self.context.inventory.controllers().any(|c| c.kind == "Job" && c.name == job && c.controller.is_some());
        let minute = job.rsplit_once('-').is_some_and(|(_, n)| n.len() >= 8 && n.bytes().all(|b| b.is_ascii_digit()));
        owned || minute
    }
}

/// OpenShift's way to name what is on the network of nodes: a namespace without pods, which its
/// network plugin fills with the addresses of nodes (its documentation of policy groups).
fn is_host_network_of_openshift(namespaces: &LabelSelector) -> bool {
    namespaces.match_labels.iter().any(|(key, value)| {
        key == "policy-group.network.openshift.io/host-network"
            || key == NAMESPACE_NAME_LABEL && value == "openshift-host-network"
    })
}

/// Labels that running pods have and no template: of controllers, and of the injectors of Istio
/// (`injection-template.yaml` of its charts) and Linkerd (`pkg/k8s/labels.go`).
fn is_added_label(key: &str) -> bool {
    is_generated_label(key)
        || ["service.istio.io/", "security.istio.io/", "linkerd.io/"].iter().any(|prefix| key.starts_with(prefix))
}

/// `istio.io/rev` holds the revision of a control plane, `1-26-1`, or a tag, which stays the same
/// over revisions: `default`, `stable`.
fn is_name_of_revisions(key: &str, values: &[&str]) -> bool {
    key == "istio.io/rev" && !values.iter().any(|value| value.bytes().any(|b| b.is_ascii_digit()))
}
