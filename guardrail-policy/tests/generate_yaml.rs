//! The written YAML as others read it: PyYAML (YAML 1.1), the Kubernetes API types, and kustomize.

mod generate_support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use generate_support::Scenario;
use guardrail_graph::snapshot::{LabelSelector, SelectorOperator, SelectorRequirement};
use guardrail_policy::{
    emit, export,
    generate::{Format, Options, Phase, Plan, PlannedPolicy, PlannedRule, PortRef, Purpose, RulePeer, RulePort},
    read,
};
use proptest::strategy::{Strategy, ValueTree};
use serde_json::Value;

/// What PyYAML makes of each text. PyYAML is needed for this test (Debian's python3-yaml); without
/// it the test fails.
fn pyyaml(texts: &[String]) -> Vec<Value> {
    let script = "import json, sys, yaml\nprint(json.dumps([yaml.safe_load(t) for t in json.load(sys.stdin)]))";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python3 with PyYAML is needed (Debian: python3-yaml)");
    let mut stdin = child.stdin.take().unwrap();
    let input = serde_json::to_vec(texts).unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "PyYAML (Debian: python3-yaml): {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Strings that a YAML 1.1 or 1.2 reader could take for something else.
const HOSTILE: [&str; 66] = [
    "",
    "~",
    "null",
    "Null",
    "NULL",
    "on",
    "On",
    "ON",
    "off",
    "Off",
    "yes",
    "Yes",
    "YES",
    "no",
    "No",
    "n",
    "N",
    "y",
    "Y",
    "true",
    "True",
    "false",
    "0",
    "1",
    "-1",
    "+1",
    "007",
    "0o17",
    "0x1F",
    "0b101",
    "1_000",
    "1_0.5",
    "1.5",
    "1.",
    ".5",
    "-.5",
    "1e3",
    "1E3",
    "1.0e+3",
    "12:30",
    "12:30:45",
    "190:20:30.15",
    "2001-12-14",
    "2001-12-14T21:59:43Z",
    ".inf",
    "-.INF",
    ".NaN",
    ".nan",
    "<<",
    "=",
    "!x",
    "&a",
    "*a",
    "- a",
    "? a",
    "a: b",
    "a #b",
    "#a",
    "%a",
    "@a",
    "`a",
    "'",
    "\"",
    "{",
    "[",
    "|",
];

fn policy(key: &str, value: &str) -> PlannedPolicy {
    let selector = LabelSelector {
        match_labels: BTreeMap::from([(key.to_owned(), value.to_owned())]).into(),
        match_expressions: vec![SelectorRequirement {
            key: key.to_owned(),
            operator: SelectorOperator::In,
            values: vec![value.to_owned()],
        }],
    };
    let peer = RulePeer::Pods { namespace: Some(value.to_owned()), selector: selector.clone() };
    let port = RulePort { protocol: guardrail_graph::Protocol::Tcp, port: PortRef::Name(value.to_owned()) };
    PlannedPolicy {
        namespace: value.to_owned(),
        name: value.to_owned(),
        purpose: Purpose::Boundary,
        phase: Phase::DefaultDeny,
        subject: selector,
        ingress: Some(vec![PlannedRule { peers: [peer].into(), ports: [port].into(), learns_names: false }]),
        egress: None,
        complete: true,
        view: None,
        notes: [format!("{value}\n- injected: line")].into(),
    }
}

const FORMATS: [Format; 2] = [Format::NetworkPolicy, Format::Cilium];

fn printed(format: Format, key: &str, value: &str) -> String {
    let plan = Plan { phase: Phase::DefaultDeny, format, policies: vec![policy(key, value)] };
    emit::policy_file(&plan.policies[0], &plan, &Options::new(Phase::DefaultDeny))
}

fn assert_read_back(format: Format, read: &Value, key: &str, value: &str) {
    if format == Format::Cilium {
        return assert_read_back_from_cilium(read, key, value);
    }
    let labels = serde_json::json!({key: value});
    let selector = serde_json::json!({"matchLabels": labels, "matchExpressions": [{"key": key, "operator": "In", "values": [value]}]});
    assert_eq!(read["spec"]["podSelector"], selector, "key {key:?} value {value:?}");
    let rule = &read["spec"]["ingress"][0];
    assert_eq!(rule["from"][0]["podSelector"], selector, "key {key:?} value {value:?}");
    assert_eq!(rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], value);
    assert_eq!(rule["ports"][0]["port"], value);
    assert_eq!(read["metadata"]["name"], value);
    assert_eq!(read.as_object().unwrap().len(), 4, "a comment became content: {read}");
}

fn assert_read_back_from_cilium(read: &Value, key: &str, value: &str) {
    let selector = |labels: Value| serde_json::json!({"matchLabels": labels, "matchExpressions": [{"key": key, "operator": "In", "values": [value]}]});
    let spec = &read["spec"];
    assert_eq!(spec["endpointSelector"], selector(serde_json::json!({key: value})), "key {key:?} value {value:?}");
    let entry = &spec["ingress"][0];
    let labels = serde_json::json!({key: value, "k8s:io.kubernetes.pod.namespace": value});
    assert_eq!(entry["fromEndpoints"], serde_json::json!([selector(labels)]), "key {key:?} value {value:?}");
    let ports = serde_json::json!([{"ports": [{"port": value, "protocol": "TCP"}]}]);
    assert_eq!(entry["toPorts"], ports, "key {key:?} value {value:?}");
    assert_eq!(read["metadata"]["name"], value);
    assert_eq!(read.as_object().unwrap().len(), 4, "a comment became content: {read}");
}

#[test]
fn hostile_strings_come_back_from_pyyaml_as_the_same_strings() {
    let pairs: Vec<(&str, &str)> = HOSTILE.iter().flat_map(|h| [("key", *h), (*h, "value"), (*h, *h)]).collect();
    for format in FORMATS {
        let texts: Vec<String> = pairs.iter().map(|(key, value)| printed(format, key, value)).collect();
        for ((key, value), read) in pairs.iter().zip(pyyaml(&texts)) {
            assert_read_back(format, &read, key, value);
        }
    }
}

#[test]
fn random_strings_come_back_from_pyyaml_as_the_same_strings() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    // One character that YAML 1.1 cannot print unescaped is enough to break a reader, so any
    // printable Unicode may occur.
    let strategy = proptest::collection::vec(("[ -~\u{a0}-\u{d7ff}]{0,12}", "[0-9._:+eExob-]{0,8}"), 2000);
    let pairs = strategy.new_tree(&mut runner).unwrap().current();
    for format in FORMATS {
        let texts: Vec<String> = pairs.iter().map(|(key, value)| printed(format, key, value)).collect();
        for ((key, value), read) in pairs.iter().zip(pyyaml(&texts)) {
            assert_read_back(format, &read, key, value);
        }
    }
}

fn scenario_files() -> Vec<(String, BTreeMap<String, String>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/generate_scenarios");
    let mut all = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let scenario: Scenario =
            serde_saphyr::from_str(&fs::read_to_string(path.join("scenario.yaml")).unwrap()).unwrap();
        let files = export::export(&scenario.snapshot(), &scenario.options()).files;
        all.push((path.file_name().unwrap().to_str().unwrap().to_owned(), files));
    }
    assert!(all.len() > 40);
    all
}

#[test]
fn every_file_is_exactly_what_the_kubernetes_types_hold() {
    let mut texts = Vec::new();
    for (_, files) in scenario_files() {
        texts.extend(files.into_iter().filter(|(name, _)| name.contains(".guardrail-")).map(|(_, text)| text));
    }
    let values = pyyaml(&texts);
    let mut cilium = 0;
    for (text, value) in texts.iter().zip(values) {
        if value["kind"] == "CiliumNetworkPolicy" {
            // guardrail's reader refuses a field that it does not know.
            let set = read::policies("text", text.as_bytes()).unwrap_or_else(|e| panic!("{e}:\n{text}"));
            assert!(set.warnings.is_empty() && set.forms.len() == 1, "{:?}:\n{text}", set.warnings);
            cilium += 1;
            continue;
        }
        let typed: k8s_openapi::api::networking::v1::NetworkPolicy =
            serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}:\n{text}"));
        // A field that the types do not have would be lost here.
        assert_eq!(serde_json::to_value(&typed).unwrap(), value, "{text}");
        let spec = typed.spec.unwrap();
        assert!(!spec.policy_types.unwrap_or_default().is_empty(), "policyTypes are explicit:\n{text}");
        for peer in spec.ingress.unwrap_or_default().into_iter().flat_map(|r| r.from.unwrap_or_default()) {
            assert!(
                peer.namespace_selector.is_none() || peer.pod_selector.is_some(),
                "a namespace without its pods:\n{text}"
            );
        }
    }
    assert!(cilium > 10, "only {cilium} files of Cilium's kind");
}

#[test]
fn kustomize_builds_every_scenarios_directory() {
    for (name, files) in scenario_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut policies = 0;
        for (file, text) in &files {
            fs::write(directory.path().join(file), text).unwrap();
            policies += usize::from(file.contains(".guardrail-"));
        }
        let output =
            Command::new("kubectl").arg("kustomize").arg(directory.path()).output().expect("kubectl is needed");
        let built = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let kinds = ["kind: NetworkPolicy\n", "kind: CiliumNetworkPolicy\n"];
        assert_eq!(kinds.map(|kind| built.matches(kind).count()).iter().sum::<usize>(), policies, "{name}");
    }
}
