//! What the API server refuses so that labels and exceptions stay honest: bindings and
//! ValidatingAdmissionPolicies (admissionregistration.k8s.io/v1, Kubernetes 1.30).
//!
//! - Labels that the rules of policies trust belong to workloads. Only controllers may make pods
//!   with them, and only the workload itself may have them in its template. Who made a pod is read
//!   from the request: ownerReferences are whatever their author wrote.
//! - guardrail's policies are changed by those only whom the plan names.
//! - An exception has an end, not later than the plan allows after its creation. CEL knows no time
//!   of day, so one that is over is drift's and prune's to find.
//!
//! What is there already may stay: an update that changes none of it passes.

use std::collections::{BTreeMap, BTreeSet};

use guardrail_graph::{
    WorkloadRef,
    snapshot::{LabelSelector, SelectorOperator},
};
use guardrail_policy::{
    emit::MANAGED_BY,
    evaluate::Evaluator,
    exception,
    model::{
        NAMESPACE_NAME_LABEL, selector_matches,
        tier::{PodSelector, TierPeer, TierPolicy},
    },
};
use serde_json::{Value, json};

use crate::plan::Admission;

/// Namespaces of the cluster itself: nothing here applies to them.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];

/// The control plane's controllers that make pods, by their service accounts in kube-system.
const MAKERS_OF_PODS: [&str; 5] = [
    "daemon-set-controller",
    "job-controller",
    "replicaset-controller",
    "replication-controller",
    "statefulset-controller",
];
/// Those that make what makes pods.
const MAKERS_OF_TEMPLATES: [&str; 2] = ["cronjob-controller", "deployment-controller"];
/// Those that delete what is left of a namespace or of an owner.
const CLEANERS: [&str; 2] = ["generic-garbage-collector", "namespace-controller"];

/// What the objects follow from.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionQuestion<'a> {
    /// Whom the plan names.
    pub admission: &'a Admission,
    /// The policies whose rules trust labels, over the cluster.
    pub evaluator: &'a Evaluator,
    /// Refuse; otherwise only the audit log is told.
    pub enforce: bool,
}

/// The objects, and what is not among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdmissionObjects {
    /// ValidatingAdmissionPolicies, each followed by its binding.
    pub objects: Vec<Value>,
    /// One sentence each.
    pub left_out: Vec<String>,
}

/// A set of labels that rules trust, and the workloads that may have it.
type Trusted = BTreeMap<LabelSelector, BTreeSet<WorkloadRef>>;

/// The objects for a plan.
#[must_use]
pub fn admission(question: &AdmissionQuestion<'_>) -> AdmissionObjects {
    let mut found = AdmissionObjects::default();
    for (namespace, trusted) in trusted(question, &mut found.left_out) {
        labels(question, &namespace, &trusted, &mut found.objects);
    }
    policies(question, &mut found);
    exceptions(question, &mut found.objects);
    found
}

/// The labels that rules trust, by namespace.
fn trusted(question: &AdmissionQuestion<'_>, left_out: &mut Vec<String>) -> BTreeMap<String, Trusted> {
    let mut all: BTreeMap<String, Trusted> = BTreeMap::new();
    let pods = &question.evaluator.cluster().pods;
    for form in question.evaluator.forms() {
        let peers = form.ingress.iter().chain(&form.egress).flat_map(|rule| rule.peers.iter().flatten());
        for (namespaces, selector) in peers.filter_map(|peer| peer_of(peer)) {
            let Some(namespace) = named(namespaces, form) else {
                left_out.push(format!(
                    "{} trusts pods of namespaces that it selects by other labels than their name: those labels are not kept honest",
                    form.key()
                ));
                continue;
            };
            if SYSTEM_NAMESPACES.contains(&namespace) {
                left_out.push(format!("labels of pods in {namespace} are not kept honest: nothing here applies to it"));
                continue;
            }
            let own = pods.iter().filter(|pod| pod.namespace == namespace && selector_matches(selector, &pod.labels));
            let owners = own.filter_map(|pod| pod.workload.clone());
            all.entry(namespace.to_owned()).or_default().entry(selector.clone()).or_default().extend(owners);
        }
    }
    for (namespace, trusted) in &all {
        let kinds: BTreeSet<&str> = trusted.values().flatten().map(|owner| owner.owner.as_str()).collect();
        for kind in kinds.into_iter().filter(|kind| !is_known(kind)) {
            left_out.push(format!(
                "{kind} of {namespace} makes pods by a controller of its own: name its service account in admission.controllers"
            ));
        }
    }
    left_out.sort();
    left_out.dedup();
    all
}

/// Selectors of a peer that trusts labels of pods: namespaces and pods. One that asks for absent
/// labels only trusts whole namespaces.
fn peer_of(peer: &TierPeer) -> Option<(Option<&LabelSelector>, &LabelSelector)> {
    match peer {
        TierPeer::Pods(PodSelector::Kubernetes { namespaces, pods: Some(pods), .. })
            if !pods.match_labels.is_empty() || pods.match_expressions.iter().any(|r| is_positive(r.operator)) =>
        {
            Some((namespaces.as_ref(), pods))
        }
        _ => None,
    }
}

fn is_positive(operator: SelectorOperator) -> bool {
    matches!(operator, SelectorOperator::In | SelectorOperator::Exists)
}

/// The one namespace that is meant, if it is named.
fn named<'a>(namespaces: Option<&'a LabelSelector>, form: &'a TierPolicy) -> Option<&'a str> {
    match namespaces {
        None => Some(&form.namespace),
        Some(LabelSelector { match_labels, match_expressions }) if match_expressions.is_empty() => {
            match_labels.get(NAMESPACE_NAME_LABEL).map(String::as_str)
        }
        Some(_) => None,
    }
}

fn is_known(kind: &str) -> bool {
    TEMPLATES.iter().any(|(known, ..)| *known == kind) || kind == "Pod" || kind == "CronJob"
}

/// Kinds with `spec.template`: kind, group, resource.
const TEMPLATES: [(&str, &str, &str); 6] = [
    ("DaemonSet", "apps", "daemonsets"),
    ("Deployment", "apps", "deployments"),
    ("Job", "batch", "jobs"),
    ("ReplicaSet", "apps", "replicasets"),
    ("ReplicationController", "", "replicationcontrollers"),
    ("StatefulSet", "apps", "statefulsets"),
];

/// Where the labels of the pods stand: in the objects of one shape.
struct Shape {
    name: &'static str,
    /// The object that has `metadata.labels`, with what has to be there.
    path: &'static [&'static str],
}

const PODS: Shape = Shape { name: "pods", path: &[] };
const TEMPLATED: Shape = Shape { name: "templates", path: &["spec", "template"] };
const CRON_JOBS: Shape = Shape { name: "cronjobs", path: &["spec", "jobTemplate", "spec", "template"] };

impl Shape {
    /// The labels of `root`, or none.
    fn labels(&self, root: &str) -> String {
        let mut path = root.to_owned();
        let mut there = Vec::new();
        for part in self.path.iter().chain(&["metadata", "labels"]) {
            path = format!("{path}.{part}");
            there.push(format!("has({path})"));
        }
        format!("{} ? {path} : {{}}", there.join(" && "))
    }
}

/// Three policies for a namespace: pods, templates, and templates in templates.
fn labels(question: &AdmissionQuestion<'_>, namespace: &str, trusted: &Trusted, objects: &mut Vec<Value>) {
    let Admission { controllers, break_glass, .. } = question.admission;
    let of_plan = controllers.iter().chain(break_glass).cloned();
    let pods = users(MAKERS_OF_PODS.iter().map(|name| in_system(name)).chain(of_plan.clone()));
    let templates = users(MAKERS_OF_TEMPLATES.iter().map(|name| in_system(name)).chain(of_plan));
    // The kubelet's copies of static pods.
    let mirror = "request.userInfo.username.startsWith(\"system:node:\") && has(object.metadata.annotations) && \"kubernetes.io/config.mirror\" in object.metadata.annotations";
    let conditions = |makers: &str, more: Option<&str>| {
        let mut all = vec![
            json!({"name": "made-by-no-controller", "expression": format!("!(request.userInfo.username in {makers})")}),
        ];
        all.extend(more.map(|mirror| json!({"name": "no-mirror-pod", "expression": format!("!({mirror})")})));
        all
    };
    let only_here = json!({"matchLabels": {NAMESPACE_NAME_LABEL: namespace}});
    let templated: Vec<Value> = ["", "apps", "batch"]
        .iter()
        .map(|group| {
            let of_group = TEMPLATES.iter().filter(|(_, of, _)| of == group);
            resource_rule(group, "v1", &of_group.map(|(.., resource)| *resource).collect::<Vec<_>>(), &CHANGES)
        })
        .collect();
    for (shape, rules, conditions, is_own) in [
        (PODS, vec![resource_rule("", "v1", &["pods"], &CHANGES)], conditions(&pods, Some(mirror)), "Pod"),
        (TEMPLATED, templated, conditions(&templates, None), ""),
        (
            CRON_JOBS,
            vec![resource_rule("batch", "v1", &["cronjobs"], &CHANGES)],
            conditions(&templates, None),
            "CronJob",
        ),
    ] {
        let validations: Vec<Value> = trusted
            .iter()
            .map(|(selector, owners)| {
                let own: Vec<String> = owners
                    .iter()
                    .filter(|owner| if is_own.is_empty() { owner.owner != "Pod" && owner.owner != "CronJob" } else { owner.owner == is_own })
                    .map(|owner| {
                        format!("(request.kind.kind == {} && object.metadata.name == {})", text(&owner.owner), text(&owner.name))
                    })
                    .collect();
                let mut allowed = vec![
                    format!("!({})", has(selector, "variables.labels")),
                    format!("({})", has(selector, "variables.before")),
                ];
                allowed.extend(own);
                json!({
                    "expression": allowed.join(" || "),
                    "message": format!("{}: rules of network policies trust these labels ({})", belongs(owners), shown(selector)),
                    "reason": "Forbidden",
                })
            })
            .collect();
        let before = format!("request.operation == \"UPDATE\" && {}", shape.labels("oldObject"));
        let spec = json!({
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": rules, "namespaceSelector": only_here},
            "matchConditions": conditions,
            "variables": [
                {"name": "labels", "expression": shape.labels("object")},
                {"name": "before", "expression": before},
            ],
            "validations": validations,
        });
        pair(&format!("guardrail-{}-{namespace}", shape.name), spec, question.enforce, objects);
    }
}

fn belongs(owners: &BTreeSet<WorkloadRef>) -> String {
    let names: Vec<String> = owners.iter().map(|owner| format!("{}/{}", owner.owner, owner.name)).collect();
    match names.len() {
        0 => "no workload may have them".to_owned(),
        1..=3 => format!("only {} may have them", names.join(", ")),
        more => format!("only {} and {} more may have them", names[..3].join(", "), more - 3),
    }
}

/// Who may change guardrail's policies.
fn policies(question: &AdmissionQuestion<'_>, found: &mut AdmissionObjects) {
    let Admission { deployers, break_glass, .. } = question.admission;
    if deployers.is_empty() && break_glass.is_empty() {
        found.left_out.push(
            "the plan names no admission.deployers and no breakGlass: anybody may change guardrail's policies"
                .to_owned(),
        );
        return;
    }
    let allowed = users(deployers.iter().chain(break_glass).cloned());
    let cleaners = users(CLEANERS.iter().map(|name| in_system(name)));
    let is_ours = |root: &str| {
        format!(
            "({root}.metadata.name.startsWith(\"guardrail-\") || has({root}.metadata.labels) && {} in {root}.metadata.labels && {root}.metadata.labels[{}] == \"guardrail\")",
            text(MANAGED_BY.0),
            text(MANAGED_BY.0)
        )
    };
    let ours = format!(
        "request.operation != \"DELETE\" && {} || request.operation != \"CREATE\" && {}",
        is_ours("object"),
        is_ours("oldObject")
    );
    let spec = json!({
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [
                resource_rule("networking.k8s.io", "v1", &["networkpolicies"], &["CREATE", "UPDATE", "DELETE"]),
                resource_rule("cilium.io", "v2", &["ciliumnetworkpolicies"], &["CREATE", "UPDATE", "DELETE"]),
            ],
            "namespaceSelector": no_system(),
        },
        "matchConditions": [{"name": "is-guardrails", "expression": ours}],
        "validations": [{
            "expression": format!(
                "request.userInfo.username in {allowed} || request.operation == \"DELETE\" && request.userInfo.username in {cleaners}"
            ),
            "message": "guardrail's policies are changed in their files: only the plan's deployers may apply them",
            "reason": "Forbidden",
        }],
    });
    pair("guardrail-policies", spec, question.enforce, &mut found.objects);
}

/// An exception has an end.
fn exceptions(question: &AdmissionQuestion<'_>, objects: &mut Vec<Value>) {
    let Admission { break_glass, max_duration, .. } = question.admission;
    let (label, annotation) = (text(exception::LABEL), text(exception::EXPIRES));
    let mut conditions = vec![json!({
        "name": "is-exception",
        "expression": format!("has(object.metadata.labels) && {label} in object.metadata.labels"),
    })];
    if !break_glass.is_empty() {
        let may = users(break_glass.iter().cloned());
        conditions
            .push(json!({"name": "no-break-glass", "expression": format!("!(request.userInfo.username in {may})")}));
    }
    let mut validations = vec![json!({
        "expression": "variables.expires.matches(\"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$\")",
        "message": format!("an exception has an end: annotation {}, like 2026-12-15T08:00:00Z", exception::EXPIRES),
        "reason": "Invalid",
    })];
    if let Some(limit) = max_duration {
        let seconds = limit.as_secs();
        validations.push(json!({
            // What is no time is told above.
            "expression": format!(
                "!variables.expires.matches(\"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}Z$\") || timestamp(variables.expires) - timestamp(object.metadata.creationTimestamp) <= duration(\"{seconds}s\")"
            ),
            "message": format!(
                "an exception ends at most {} after its creation: write a new one with a new reason",
                guardrail_policy::words::duration(*limit)
            ),
            "reason": "Invalid",
        }));
    }
    let expires = format!(
        "has(object.metadata.annotations) && {annotation} in object.metadata.annotations ? object.metadata.annotations[{annotation}] : \"\""
    );
    let spec = json!({
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [
                resource_rule("networking.k8s.io", "v1", &["networkpolicies"], &CHANGES),
                resource_rule("cilium.io", "v2", &["ciliumnetworkpolicies"], &CHANGES),
            ],
            "namespaceSelector": no_system(),
        },
        "matchConditions": conditions,
        "variables": [{"name": "expires", "expression": expires}],
        "validations": validations,
    });
    pair("guardrail-exceptions", spec, question.enforce, objects);
}

const CHANGES: [&str; 2] = ["CREATE", "UPDATE"];

fn resource_rule(group: &str, version: &str, resources: &[&str], operations: &[&str]) -> Value {
    json!({"apiGroups": [group], "apiVersions": [version], "resources": resources, "operations": operations})
}

fn no_system() -> Value {
    json!({"matchExpressions": [{"key": NAMESPACE_NAME_LABEL, "operator": "NotIn", "values": SYSTEM_NAMESPACES}]})
}

/// A policy and its binding.
fn pair(name: &str, spec: Value, enforce: bool, objects: &mut Vec<Value>) {
    let metadata = json!({"name": name, "labels": {MANAGED_BY.0: MANAGED_BY.1}});
    let actions: &[&str] = if enforce { &["Deny", "Audit"] } else { &["Audit"] };
    let api_version = "admissionregistration.k8s.io/v1";
    objects.push(json!({
        "apiVersion": api_version, "kind": "ValidatingAdmissionPolicy", "metadata": metadata, "spec": spec,
    }));
    objects.push(json!({
        "apiVersion": api_version, "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata,
        "spec": {"policyName": name, "validationActions": actions},
    }));
}

fn in_system(account: &str) -> String {
    format!("system:serviceaccount:kube-system:{account}")
}

/// A list of user names in CEL.
fn users(names: impl Iterator<Item = String>) -> String {
    let all: BTreeSet<String> = names.collect();
    format!("[{}]", all.iter().map(|name| text(name)).collect::<Vec<_>>().join(", "))
}

/// A string in CEL: JSON's escapes are among CEL's.
fn text(value: &str) -> String {
    Value::from(value).to_string()
}

/// Whether labels match a selector, in CEL.
fn has(selector: &LabelSelector, labels: &str) -> String {
    let has = |key: &str| format!("{} in {labels}", text(key));
    let one_of = |key: &str, values: &[String]| {
        format!("{} && {labels}[{}] in {}", has(key), text(key), users(values.iter().cloned()))
    };
    let equal = selector
        .match_labels
        .iter()
        .map(|(key, value)| format!("{} && {labels}[{}] == {}", has(key), text(key), text(value)));
    let expressions = selector.match_expressions.iter().map(|requirement| match requirement.operator {
        SelectorOperator::In => one_of(&requirement.key, &requirement.values),
        SelectorOperator::NotIn => format!("!({})", one_of(&requirement.key, &requirement.values)),
        SelectorOperator::Exists => has(&requirement.key),
        SelectorOperator::DoesNotExist => format!("!({})", has(&requirement.key)),
    });
    equal.chain(expressions).collect::<Vec<_>>().join(" && ")
}

/// A selector in words.
fn shown(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().map(|requirement| {
        let values = requirement.values.join(", ");
        match requirement.operator {
            SelectorOperator::In => format!("{} in ({values})", requirement.key),
            SelectorOperator::NotIn => format!("{} not in ({values})", requirement.key),
            SelectorOperator::Exists => requirement.key.clone(),
            SelectorOperator::DoesNotExist => format!("no {}", requirement.key),
        }
    });
    equal.chain(expressions).collect::<Vec<_>>().join(", ")
}
