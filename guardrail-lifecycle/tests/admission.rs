//! What admission refuses, judged by an interpreter of CEL over requests made of objects that a
//! real API server sent.
//!
//! The interpreter (crate `cel`) is not the API server's: it knows no types of Kubernetes and
//! counts no costs, and `object` and `oldObject` are plain maps, as they are for the server at run
//! time. Resources, operations and namespaces are matched by the API itself: here by hand.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::Duration,
};

use cel::{Context, Program, Value as Cel};
use guardrail_graph::inventory::read as inventory;
use guardrail_lifecycle::{
    admission::{AdmissionQuestion, admission},
    plan::Admission,
};
use guardrail_policy::{
    evaluate::{Cluster, Evaluator},
    exception::{EXPIRES as EXPIRES_ANNOTATION, LABEL as EXCEPTION_LABEL},
    read,
};
use serde_json::{Value, json};

fn list(resource: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/fixtures/kube/list/{resource}.json"));
    let list: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Rules that trust the labels of each kind of workload.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: postgres, namespace: data}
spec:
  podSelector: {}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: storefront}}
      podSelector: {matchLabels: {app: api}}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: storefront}}
      podSelector: {matchLabels: {app: cart-cleanup}}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: payments}}
      podSelector: {matchExpressions: [{key: app, operator: In, values: [charge]}, {key: track, operator: Exists}]}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
    - podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: gateway, namespace: edge}
spec: {podSelector: {}, egress: [{to: [{podSelector: {matchLabels: {app.kubernetes.io/name: gateway}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: sets, namespace: data}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app.kubernetes.io/instance: main}}}]}]}
";

const ARGO: &str = "system:serviceaccount:argocd:argocd-application-controller";
const ROLLOUTS: &str = "system:serviceaccount:argo-rollouts:argo-rollouts";

fn account(name: &str) -> String {
    format!("system:serviceaccount:kube-system:{name}")
}

fn objects(admission_of: &Admission) -> Vec<Value> {
    let mut all = Vec::new();
    for resource in
        ["namespaces", "pods", "deployments", "replicasets", "statefulsets", "daemonsets", "jobs", "cronjobs"]
    {
        for item in list(resource) {
            let kind = kind_of(resource);
            all.extend(inventory::object(&item.to_string(), Some(kind), resource).unwrap());
        }
    }
    let policies = read::policies("p.yaml", POLICIES.as_bytes()).unwrap().policies;
    let evaluator = Evaluator::new(Cluster::with_templates(&all), policies);
    admission(&AdmissionQuestion { admission: admission_of, evaluator: &evaluator, enforce: true }).objects
}

fn kind_of(resource: &str) -> &'static str {
    match resource {
        "namespaces" => "Namespace",
        "pods" => "Pod",
        "deployments" => "Deployment",
        "replicasets" => "ReplicaSet",
        "statefulsets" => "StatefulSet",
        "daemonsets" => "DaemonSet",
        "jobs" => "Job",
        "cronjobs" => "CronJob",
        _ => "NetworkPolicy",
    }
}

fn plan() -> Admission {
    Admission {
        deployers: vec![ARGO.to_owned()],
        break_glass: vec!["alice@example.org".to_owned()],
        controllers: vec![ROLLOUTS.to_owned()],
        max_duration: Some(Duration::from_secs(720 * 3600)),
    }
}

/// Somebody's request.
#[derive(Clone)]
struct Request {
    resource: &'static str,
    user: String,
    operation: &'static str,
    object: Value,
    old: Value,
}

fn create(resource: &'static str, user: &str, object: &Value) -> Request {
    Request { resource, user: user.to_owned(), operation: "CREATE", object: object.clone(), old: Value::Null }
}

fn update(resource: &'static str, user: &str, old: &Value, object: &Value) -> Request {
    Request { resource, user: user.to_owned(), operation: "UPDATE", object: object.clone(), old: old.clone() }
}

fn delete(resource: &'static str, user: &str, old: &Value) -> Request {
    Request { resource, user: user.to_owned(), operation: "DELETE", object: Value::Null, old: old.clone() }
}

struct Admitter {
    objects: Vec<Value>,
}

impl Admitter {
    fn new(admission_of: &Admission) -> Self {
        Self { objects: objects(admission_of) }
    }

    /// The messages of those that refuse; empty: it is admitted.
    fn refusals(&self, request: &Request) -> Vec<String> {
        let bound = self.objects.iter().filter(|o| o["kind"] == "ValidatingAdmissionPolicy");
        bound.filter(|policy| concerns(&policy["spec"], request)).flat_map(|policy| refused(policy, request)).collect()
    }

    #[track_caller]
    fn passes(&self, request: &Request) {
        let refusals = self.refusals(request);
        let subject = if request.object.is_null() { &request.old } else { &request.object };
        assert!(
            refusals.is_empty(),
            "{} {} {}: {refusals:?}",
            request.user,
            request.operation,
            subject["metadata"]["name"]
        );
    }

    #[track_caller]
    fn refuses(&self, request: &Request) {
        let subject = if request.object.is_null() { &request.old } else { &request.object };
        let refusals = self.refusals(request);
        assert!(!refusals.is_empty(), "{} {} {}", request.user, request.operation, subject["metadata"]["name"]);
    }
}

/// Resources, operations and the namespace, as the API matches them.
fn concerns(spec: &Value, request: &Request) -> bool {
    let rules = spec["matchConstraints"]["resourceRules"].as_array().unwrap();
    let has = |list: &Value, text: &str| list.as_array().unwrap().iter().any(|item| item == text);
    let subject = if request.object.is_null() { &request.old } else { &request.object };
    let namespace = subject["metadata"]["namespace"].as_str().unwrap();
    let selector = &spec["matchConstraints"]["namespaceSelector"];
    let here = selector["matchLabels"].as_object().is_none_or(|labels| {
        labels.iter().all(|(key, value)| key == "kubernetes.io/metadata.name" && value == namespace)
    }) && selector["matchExpressions"]
        .as_array()
        .is_none_or(|all| all.iter().all(|e| e["operator"] == "NotIn" && !has(&e["values"], namespace)));
    here && rules
        .iter()
        .any(|rule| has(&rule["resources"], request.resource) && has(&rule["operations"], request.operation))
}

fn refused(policy: &Value, request: &Request) -> Vec<String> {
    let mut context = Context::default();
    let kind = kind_of(request.resource);
    let asked = json!({"operation": request.operation, "userInfo": {"username": request.user}, "kind": {"kind": kind}});
    context.add_variable("request", &asked).unwrap();
    context.add_variable("object", &request.object).unwrap();
    context.add_variable("oldObject", &request.old).unwrap();
    let spec = &policy["spec"];
    let run = |context: &Context<'_, '_>, expression: &Value| {
        let text = expression.as_str().unwrap();
        let program = Program::compile(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        program.execute(context).unwrap_or_else(|e| panic!("{e}\n{text}\n{asked}"))
    };
    let holds = |context: &Context<'_, '_>, expression: &Value| match run(context, expression) {
        Cel::Bool(holds) => holds,
        other => panic!("{other:?}: {expression}"),
    };
    let conditions = spec["matchConditions"].as_array().unwrap();
    if !conditions.iter().all(|condition| holds(&context, &condition["expression"])) {
        return Vec::new();
    }
    let mut variables: HashMap<String, Cel> = HashMap::new();
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let value = run(&context, &variable["expression"]);
        variables.insert(variable["name"].as_str().unwrap().to_owned(), value);
    }
    context.add_variable_from_value("variables", Cel::from(variables));
    let validations = spec["validations"].as_array().unwrap().iter();
    let broken = validations.filter(|validation| !holds(&context, &validation["expression"]));
    broken.map(|validation| validation["message"].as_str().unwrap().to_owned()).collect()
}

fn named(resource: &str, namespace: &str, name: &str) -> Value {
    let all = list(resource);
    let found = all.iter().find(|item| {
        item["metadata"]["namespace"] == namespace && item["metadata"]["name"].as_str().unwrap().starts_with(name)
    });
    found.unwrap_or_else(|| panic!("{resource} {namespace}/{name}")).clone()
}

/// The object with something else in it.
fn with(object: &Value, path: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, last) = path.rsplit_once('/').unwrap();
    match object.pointer_mut(parent).unwrap() {
        Value::Object(fields) => drop(fields.insert(last.to_owned(), value)),
        other => panic!("{other}"),
    }
    object
}

const MALLORY: &str = "mallory";

/// Whose labels the rules trust.
fn is_trusted(pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    let label = |key: &str| labels[key].as_str().unwrap_or_default().to_owned();
    match pod["metadata"]["namespace"].as_str().unwrap() {
        "storefront" => ["api", "cart-cleanup"].contains(&label("app").as_str()),
        "payments" => label("app") == "charge",
        "edge" => label("app.kubernetes.io/name") == "gateway",
        "data" => label("app.kubernetes.io/instance") == "main",
        _ => false,
    }
}

#[test]
fn pods_with_labels_that_rules_trust_come_from_controllers_only() {
    let admitter = Admitter::new(&plan());
    let mut trusted = 0;
    for pod in list("pods") {
        let owner = pod["metadata"]["ownerReferences"][0]["kind"].as_str().unwrap_or_default().to_lowercase();
        let owner = if owner == "daemonset" { "daemon-set".to_owned() } else { owner };
        admitter.passes(&create("pods", &account(&format!("{owner}-controller")), &pod));
        admitter.passes(&create("pods", ROLLOUTS, &pod));
        admitter.passes(&create("pods", "alice@example.org", &pod));
        // A forged ownerReference changes nothing: the pod has it already.
        let forged = create("pods", MALLORY, &pod);
        if is_trusted(&pod) {
            trusted += 1;
            admitter.refuses(&forged);
            // Deployers apply policies, and make no pods.
            admitter.refuses(&create("pods", ARGO, &pod));
        } else {
            admitter.passes(&forged);
        }
        // What leaves the labels as they are passes: the kubelet, a person who annotates.
        let annotated = with(&pod, "/metadata/annotations", json!({"note": "seen"}));
        admitter.passes(&update("pods", MALLORY, &pod, &annotated));
    }
    assert!(trusted >= 8, "{trusted}");
    let shell = named("pods", "storefront", "debug-shell");
    let borrowed = with(&shell, "/metadata/labels", json!({"app": "api"}));
    admitter.refuses(&update("pods", MALLORY, &shell, &borrowed));
    admitter.refuses(&create("pods", MALLORY, &borrowed));
    // Elsewhere the label means nothing.
    admitter.passes(&create("pods", MALLORY, &with(&borrowed, "/metadata/namespace", json!("monitoring"))));
}

#[test]
fn system_namespaces_and_static_pods_are_never_locked_out() {
    let admitter = Admitter::new(&plan());
    let dns = named("pods", "kube-system", "coredns");
    admitter.passes(&create("pods", MALLORY, &dns));
    let deployment = named("deployments", "kube-system", "coredns");
    admitter.passes(&create("deployments", MALLORY, &with(&deployment, "/metadata/name", json!("other"))));
    let own = policy("kube-system", json!({}));
    admitter.passes(&create("networkpolicies", MALLORY, &own));
    let shell = with(&named("pods", "storefront", "debug-shell"), "/metadata/labels", json!({"app": "api"}));
    let mirror = with(&shell, "/metadata/annotations", json!({"kubernetes.io/config.mirror": "abc"}));
    admitter.passes(&create("pods", "system:node:node-a", &mirror));
    admitter.refuses(&create("pods", MALLORY, &mirror));
    admitter.refuses(&create("pods", "system:node:node-a", &shell));
}

#[test]
fn templates_have_the_labels_under_their_owners_name_only() {
    let admitter = Admitter::new(&plan());
    for resource in ["deployments", "statefulsets", "daemonsets", "cronjobs"] {
        for object in list(resource) {
            admitter.passes(&create(resource, MALLORY, &object));
            admitter.passes(&update(
                resource,
                MALLORY,
                &object,
                &with(&object, "/metadata/annotations", json!({"a": "b"})),
            ));
        }
    }
    for (resource, maker) in [("replicasets", "deployment-controller"), ("jobs", "cronjob-controller")] {
        for object in list(resource) {
            admitter.passes(&create(resource, &account(maker), &object));
        }
    }
    for (resource, namespace, name) in [
        ("deployments", "storefront", "api"),
        ("deployments", "payments", "charge"),
        ("statefulsets", "data", "postgres"),
        ("daemonsets", "edge", "gateway"),
        ("cronjobs", "storefront", "cart-cleanup"),
    ] {
        let own = named(resource, namespace, name);
        let borrowed = with(&own, "/metadata/name", json!("borrower"));
        admitter.refuses(&create(resource, MALLORY, &borrowed));
        admitter.refuses(&create(resource, ARGO, &borrowed));
        admitter.passes(&create(resource, "alice@example.org", &borrowed));
        // What had them before the rule was there may go on.
        admitter.passes(&update(resource, MALLORY, &borrowed, &with(&borrowed, "/metadata/annotations", json!({}))));
    }
    // A bare ReplicaSet or Job under any name.
    admitter.refuses(&create("replicasets", MALLORY, &named("replicasets", "storefront", "api")));
    admitter.refuses(&create("jobs", MALLORY, &named("jobs", "storefront", "cart-cleanup")));
    // An update that borrows.
    let web = named("deployments", "storefront", "web");
    let borrowing = with(&web, "/spec/template/metadata/labels", json!({"app": "api"}));
    admitter.refuses(&update("deployments", MALLORY, &web, &borrowing));
    let cron = named("cronjobs", "storefront", "unlabelled");
    let borrowing = with(&cron, "/spec/jobTemplate/spec/template/metadata", json!({"labels": {"app": "cart-cleanup"}}));
    admitter.refuses(&update("cronjobs", MALLORY, &cron, &borrowing));
}

fn policy(namespace: &str, metadata: Value) -> Value {
    let mut object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "guardrail-allow-api", "namespace": namespace, "creationTimestamp": "2026-03-01T12:00:00Z",
            "labels": {"app.kubernetes.io/managed-by": "guardrail"}},
        "spec": {"podSelector": {}},
    });
    for (key, value) in metadata.as_object().unwrap() {
        object["metadata"][key] = value.clone();
    }
    object
}

#[test]
fn guardrails_policies_are_changed_by_those_whom_the_plan_names() {
    let admitter = Admitter::new(&plan());
    let own = policy("storefront", json!({}));
    let widened = with(&own, "/spec/ingress", json!([{}]));
    // Whoever takes the label or the name off is no freer.
    let disguised = policy("storefront", json!({"labels": {}}));
    for user in [ARGO, "alice@example.org"] {
        admitter.passes(&create("networkpolicies", user, &own));
        admitter.passes(&update("networkpolicies", user, &own, &widened));
        admitter.passes(&delete("networkpolicies", user, &own));
    }
    for user in [MALLORY, &account("namespace-controller")] {
        admitter.refuses(&create("networkpolicies", user, &own));
        admitter.refuses(&update("networkpolicies", user, &own, &widened));
        admitter.refuses(&update("networkpolicies", user, &own, &disguised));
    }
    admitter.refuses(&delete("networkpolicies", MALLORY, &own));
    // What goes with its namespace goes.
    admitter.passes(&delete("networkpolicies", &account("namespace-controller"), &own));
    admitter.passes(&delete("networkpolicies", &account("generic-garbage-collector"), &own));
    // Other policies are nobody's business here.
    for other in list("networkpolicies") {
        admitter.passes(&create("networkpolicies", MALLORY, &other));
        admitter.passes(&delete("networkpolicies", MALLORY, &other));
    }
    // A plan that names nobody has no such rule.
    let nobody = Admitter::new(&Admission::default());
    nobody.passes(&create("networkpolicies", MALLORY, &own));
}

#[test]
fn an_exception_has_an_end_within_what_the_plan_allows() {
    let admitter = Admitter::new(&plan());
    let exception = |annotations: Value| {
        let labels = json!({"app.kubernetes.io/managed-by": "guardrail", EXCEPTION_LABEL: "inc-4711"});
        policy("storefront", json!({"labels": labels, "annotations": annotations}))
    };
    let until = |end: &str| exception(json!({EXPIRES_ANNOTATION: end}));
    for (object, passes) in [
        (until("2026-03-31T12:00:00Z"), true),
        (until("2026-03-31T12:00:01Z"), false),
        (until("2027-03-01T12:00:00Z"), false),
        (until("next week"), false),
        (until(""), false),
        (exception(json!({})), false),
        (exception(json!({"other": "x"})), false),
        (policy("storefront", json!({"labels": {EXCEPTION_LABEL: "x"}})), false),
        // CEL knows no time of day: drift finds it, and prune removes it.
        (until("2026-02-01T00:00:00Z"), true),
    ] {
        let request = create("networkpolicies", ARGO, &object);
        if passes {
            admitter.passes(&request)
        } else {
            admitter.refuses(&request)
        }
        let changed = update("networkpolicies", ARGO, &until("2026-03-02T00:00:00Z"), &object);
        if passes {
            admitter.passes(&changed)
        } else {
            admitter.refuses(&changed)
        }
        admitter.passes(&create("networkpolicies", "alice@example.org", &object));
    }
    // Without a limit an end is enough.
    let unlimited = Admitter::new(&Admission { max_duration: None, ..plan() });
    unlimited.passes(&create("networkpolicies", ARGO, &until("2036-01-01T00:00:00Z")));
    unlimited.refuses(&create("networkpolicies", ARGO, &exception(json!({}))));
}

#[test]
fn every_policy_is_bound_and_first_only_tells() {
    let admission_of = plan();
    let evaluator = Evaluator::new(Cluster::default(), Vec::new());
    for (enforce, actions) in [(false, json!(["Audit"])), (true, json!(["Deny", "Audit"]))] {
        let found = admission(&AdmissionQuestion { admission: &admission_of, evaluator: &evaluator, enforce });
        assert!(found.left_out.is_empty(), "{:?}", found.left_out);
        let names: Vec<&str> =
            found.objects.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["guardrail-policies", "guardrail-policies", "guardrail-exceptions", "guardrail-exceptions"]);
        for pair in found.objects.chunks(2) {
            assert_eq!(pair[1]["spec"]["policyName"], pair[0]["metadata"]["name"]);
            assert_eq!(pair[1]["spec"]["validationActions"], actions);
        }
    }
    let of_all: BTreeMap<String, usize> = objects(&admission_of).iter().fold(BTreeMap::new(), |mut all, object| {
        *all.entry(object["kind"].as_str().unwrap().to_owned()).or_default() += 1;
        all
    });
    assert_eq!(of_all["ValidatingAdmissionPolicy"], of_all["ValidatingAdmissionPolicyBinding"]);
}
