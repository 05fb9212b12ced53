//! What the command says when it refuses an input, all in one golden file: one sentence about the
//! file or the option, with the place and what to do.

use std::{fmt::Write as _, fs, path::Path, process::Command};

#[path = "refusals/questions.rs"]
mod questions;

const OK: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: ";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n";

fn spec(text: &str) -> Vec<u8> {
    format!("{OK}{text}\n").into_bytes()
}

fn rule(text: &str) -> Vec<u8> {
    spec(&format!("{{podSelector: {{}}, ingress: [{text}]}}"))
}

fn peer(text: &str) -> Vec<u8> {
    rule(&format!("{{from: [{text}]}}"))
}

/// Name of the case, content of the file.
fn policies() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty value", b"just text\n".to_vec()),
        ("a list", b"- a\n".to_vec()),
        ("no apiVersion", b"kind: NetworkPolicy\n".to_vec()),
        ("an old version", b"apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\n".to_vec()),
        ("a misspelt kind", b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolice\nmetadata: {name: p}\n".to_vec()),
        ("another kind", POD.as_bytes().to_vec()),
        ("no name", b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {}\n".to_vec()),
        ("a bad name", b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: A_B}\n".to_vec()),
        (
            "a bad namespace",
            b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a, namespace: A}\n".to_vec(),
        ),
        ("a spec that is a list", spec("[]")),
        ("a policy type", spec("{policyTypes: [ingress]}")),
        ("an empty peer", peer("{}")),
        ("ipBlock beside a selector", peer("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}")),
        ("no CIDR", peer("{ipBlock: {cidr: 10.0.0.1}}")),
        ("an impossible CIDR", peer("{ipBlock: {cidr: 10.0.0.0/33}}")),
        ("an exception outside", peer("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}")),
        ("an operator", peer("{podSelector: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}")),
        ("In without values", peer("{podSelector: {matchExpressions: [{key: a, operator: In}]}}")),
        ("a label that is a number", peer("{podSelector: {matchLabels: {a: 1}}}")),
        ("a bad label value", peer("{podSelector: {matchLabels: {a: \"b c\"}}}")),
        ("port 0", rule("{ports: [{port: 0}]}")),
        ("a quoted port", rule("{ports: [{port: \"80\"}]}")),
        ("a range for a port", rule("{ports: [{port: 8000-9000}]}")),
        ("a map for a port", rule("{ports: [{port: 'map[containerPort:80]'}]}")),
        ("a quoted endPort", rule("{ports: [{port: 80, endPort: \"90\"}]}")),
        ("a name for a range", peer("{ipBlock: {cidr: example.com}}")),
        ("a blank behind a range", peer("{ipBlock: {cidr: \"10.0.0.0/8 \"}}")),
        ("two addresses for a range", peer("{ipBlock: {cidr: 10.0.0.1-10.0.0.9}}")),
        ("a mapping for a list", spec("{ingress: {from: []}}")),
        ("a word for a list", spec("{policyTypes: Ingress}")),
        ("a list for a mapping", spec("{podSelector: [{matchLabels: {a: b}}]}")),
        ("a bad port name", rule("{ports: [{port: Web_Port}]}")),
        ("a protocol", rule("{ports: [{port: 80, protocol: tcp}]}")),
        ("endPort before port", rule("{ports: [{port: 80, endPort: 79}]}")),
        ("endPort without port", rule("{ports: [{endPort: 79}]}")),
        ("endPort beside a name", rule("{ports: [{port: http, endPort: 79}]}")),
        ("two policies of one name", format!("{OK}{{podSelector: {{}}}}\n---\n{OK}{{ingress: [{{}}]}}\n").into_bytes()),
        ("a key twice", b"a: 1\nb: 2\na: 3\n".to_vec()),
        ("an open bracket", b"a: [1\nb: 2\n".to_vec()),
        ("two keys in a line", b"a: b: c\n".to_vec()),
        ("a tab", b"a:\n\tb: c\n".to_vec()),
        ("an unknown alias", b"a: *nowhere\n".to_vec()),
        ("too deep", format!("a: {}{}\n", "[".repeat(300), "]".repeat(300)).into_bytes()),
        ("binary", b"\x7fELF\x02\x01\x01".to_vec()),
        ("neither UTF-8 nor UTF-16", b"a: b\nc: \xff\n".to_vec()),
        ("UTF-16 without its mark", b"k\0i\0n\0d\0".to_vec()),
        ("compressed", b"\x1f\x8b\x08\xff".to_vec()),
        ("no line between two policies", format!("{OK}{{}}\n{OK}{{}}\n").into_bytes()),
    ]
}

fn inventories() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", b"".to_vec()),
        ("text", b"just text\n".to_vec()),
        ("no kind", b"a: b\n".to_vec()),
        ("no name", b"kind: Pod\nmetadata: {namespace: x}\n".to_vec()),
        ("an address", format!("{POD}status: {{podIP: 10.0.0}}\n").into_bytes()),
        ("a port", b"kind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 70000}]}\n".to_vec()),
        ("a range", b"kind: Node\nmetadata: {name: n}\nspec: {podCIDR: 10.0.0.0/64}\n".to_vec()),
        ("an object twice", format!("{POD}---\n{POD}spec: {{nodeName: n}}\n").into_bytes()),
        ("no line between two objects", b"kind: Namespace\nmetadata: {name: a}\nkind: Namespace\n".to_vec()),
        (
            "a number for a label",
            b"{\"kind\": \"Pod\", \"metadata\": {\"name\": \"x\", \"labels\": {\"a\": 1}}}".to_vec(),
        ),
        ("a list of labels", b"kind: Pod\nmetadata: {name: x, labels: [a]}\n".to_vec()),
        (
            "a word for a port",
            b"kind: Pod\nmetadata: {name: x}\nspec: {containers: [{ports: [{containerPort: http}]}]}\n".to_vec(),
        ),
        ("a mapping for a list", b"kind: Pod\nmetadata: {name: x}\nspec: {containers: {name: a}}\n".to_vec()),
        ("a template", b"kind: Pod\nmetadata: {name: {{ .Release.Name }}}\n".to_vec()),
        (
            "an operator",
            b"kind: Deployment\nmetadata: {name: x}\nspec: {selector: {matchExpressions: [{key: a, operator: Is}]}}\n"
                .to_vec(),
        ),
        ("half of a JSON file", b"{\"kind\": \"Pod\", \"metadata\": {\"name\"".to_vec()),
        ("binary", b"\x7fELF\xff\x01\x01".to_vec()),
    ]
}

fn flows() -> Vec<(&'static str, Vec<u8>)> {
    let with = |row: &str| format!("src,dst,protocol,port\n{row}\n").into_bytes();
    vec![
        ("empty", b"".to_vec()),
        ("a column is missing", b"src,dst,port\n".to_vec()),
        ("a port", with("10.0.0.1,10.0.0.2,TCP,0")),
        ("a protocol", with("10.0.0.1,10.0.0.2,icmp,1")),
        ("too few columns", with("10.0.0.1,10.0.0.2")),
        ("an open quote", with("\"10.0.0.1,10.0.0.2,TCP,1")),
        ("no such pod", with("shop/nobody,10.0.0.2,TCP,1")),
        ("neither pod nor address", with("nobody,10.0.0.2,TCP,1")),
    ]
}

/// CiliumNetworkPolicy, ClusterNetworkPolicy, AdminNetworkPolicy.
fn other_kinds() -> Vec<(&'static str, Vec<u8>)> {
    let cilium = |spec: &str| {
        format!("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n{spec}\n")
    };
    let rule = |rule: &str| cilium(&format!("spec: {{endpointSelector: {{}}, ingress: [{rule}]}}"));
    let cluster = |spec: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        )
    };
    let ordered = |rule: &str| {
        cluster(&format!("{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{rule}]}}"))
    };
    let admin = |spec: &str| {
        format!(
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        )
    };
    let cases = [
        ("Cilium, neither spec nor specs", cilium("")),
        ("Cilium, no subject", cilium("spec: {ingress: [{}]}")),
        ("Cilium, two subjects", cilium("spec: {endpointSelector: {}, nodeSelector: {}, ingress: [{}]}")),
        ("Cilium, nodes of a namespace", cilium("spec: {nodeSelector: {}, ingress: [{}]}")),
        ("Cilium, an entity", rule("{fromEntities: [internet]}")),
        ("Cilium, a CIDR", rule("{fromCIDR: [10.0.0.0/33]}")),
        ("Cilium, an exception outside", rule("{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/16]}]}")),
        ("Cilium, a number as port", rule("{toPorts: [{ports: [{port: 80}]}]}")),
        ("Cilium, a port", rule("{toPorts: [{ports: [{port: \"70000\"}]}]}")),
        ("Cilium, a protocol", rule("{toPorts: [{ports: [{port: \"80\", protocol: HTTP}]}]}")),
        ("Cilium, DNS at ingress", rule("{toPorts: [{ports: [{port: \"53\"}], rules: {dns: [{}]}}]}")),
        ("Cilium, two kinds of peers", rule("{fromEndpoints: [{}], fromCIDR: [10.0.0.0/8]}")),
        ("Cilium, names at ingress", rule("{fromFQDNs: [{matchName: a.example}]}")),
        ("ClusterNetworkPolicy, no tier", cluster("{priority: 1, subject: {namespaces: {}}}")),
        ("ClusterNetworkPolicy, a priority", cluster("{tier: Admin, priority: 1001, subject: {namespaces: {}}}")),
        ("ClusterNetworkPolicy, no subject", cluster("{tier: Admin, priority: 1}")),
        ("ClusterNetworkPolicy, an action", ordered("{action: Allow, from: [{namespaces: {}}]}")),
        ("ClusterNetworkPolicy, no peer", ordered("{action: Deny, from: []}")),
        (
            "ClusterNetworkPolicy, two peers in one",
            ordered("{action: Deny, from: [{namespaces: {}, pods: {podSelector: {}}}]}"),
        ),
        (
            "AdminNetworkPolicy, an action",
            admin("{priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]}"),
        ),
        ("AdminNetworkPolicy, no priority", admin("{subject: {namespaces: {}}}")),
        (
            "AdminNetworkPolicy, a port",
            admin(
                "{priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}], ports: [{portNumber: {port: 0, protocol: TCP}}]}]}",
            ),
        ),
        (
            "AdminNetworkPolicy, a range backwards",
            admin(
                "{priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}], ports: [{portRange: {start: 9, end: 1}}]}]}",
            ),
        ),
    ];
    cases.into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
}

fn snapshots(good: &str) -> Vec<(&'static str, Vec<u8>)> {
    let cut = &good[..good.len() / 2];
    let cases = [
        ("empty", String::new()),
        ("text", "just text".to_owned()),
        ("YAML", "apiVersion: v1\n".to_owned()),
        ("a list", "[]".to_owned()),
        ("another kind", r#"{"apiVersion": "v1", "kind": "List", "items": []}"#.to_owned()),
        ("another version", good.replacen("guardrail.dev/v2", "guardrail.dev/v9", 1)),
        ("an earlier version", good.replacen("guardrail.dev/v2", "guardrail.dev/v1", 1)),
        ("cut off", cut.to_owned()),
        ("a time", good.replacen("2026-03-01T10:00:00Z", "yesterday", 1)),
    ];
    cases.into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
}

fn plans() -> Vec<(&'static str, Vec<u8>)> {
    let plan = |spec: &str| format!("apiVersion: guardrail.dev/v1alpha1\nkind: Plan\nspec: {spec}\n");
    let environment = |text: &str| plan(&format!("{{environments: {{prod: {text}}}}}"));
    let cases = [
        ("empty", String::new()),
        ("another kind", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n".to_owned()),
        ("no such environment", plan("{environments: {production: {phase: observe}}}")),
        ("no environments", plan("{}")),
        ("a phase", environment("{phase: obsrve}")),
        ("a field", environment("{phase: observe, namespace: {}}")),
        ("a window", environment("{phase: observe, gates: {window: long}}")),
        ("a share", environment("{phase: observe, gates: {coverage: 101}}")),
        ("a workload", environment("{phase: observe, sensitive: [postgres]}")),
        (
            "an exception without an end",
            plan(
                "{environments: {prod: {phase: observe}}, exceptions: [{id: x, from: a/Deployment/b, to: a/Deployment/c, ports: [1/TCP], reason: x, owner: y}]}",
            ),
        ),
        ("a key twice", "apiVersion: guardrail.dev/v1alpha1\nkind: Plan\nkind: Plan\n".to_owned()),
        (
            "patterns of equal rank",
            environment("{phase: observe, namespaces: {s*: {phase: constrain}, s*p: {phase: observe}}}"),
        ),
        (
            "an exception beyond the longest life",
            plan(
                "{environments: {prod: {phase: observe}}, admission: {maxDuration: 24h}, exceptions: [{id: x, from: a/Deployment/b, to: a/Deployment/c, ports: [1/TCP], expires: 2026-03-04, reason: x, owner: y}]}",
            ),
        ),
        (
            "an exception of an environment that is not there",
            plan(
                "{environments: {prod: {phase: observe}}, exceptions: [{id: x, from: a/Deployment/b, to: a/Deployment/c, ports: [1/TCP], expires: 2026-03-04, reason: x, owner: y, environments: [prd]}]}",
            ),
        ),
    ];
    cases.into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
}

/// Words of libraries and of the system, which tell a user nothing.
const FOREIGN: [&str; 12] = [
    "Policy in Options",
    "Budget",
    "budget",
    "serde",
    "{ depth",
    "breach",
    "os error",
    ".guardrail-",
    "invalid digit",
    "invalid IP address",
    "EOF while",
    "expected ident",
];

/// What the command says, its finding of a quoted port or why it refuses; what is wrong with that.
fn said(directory: &Path, args: &[&str], code: i32) -> (String, Option<String>) {
    let output = Command::new(env!("CARGO_BIN_EXE_guardrail")).args(args).current_dir(directory).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let foreign = FOREIGN.iter().find(|foreign| stderr.contains(**foreign));
    let wrong = match foreign {
        Some(foreign) => Some(format!("it says {foreign:?}")),
        None => (output.status.code() != Some(code)).then(|| format!("exit {:?}", output.status.code())),
    };
    let said = if code == 1 { String::from_utf8(output.stdout).unwrap() } else { stderr };
    (said.trim_end().to_owned(), wrong)
}

#[test]
fn every_refusal_is_a_sentence_about_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let shop = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shop.json")).unwrap();
    let good = [
        ("good.yaml", spec("{podSelector: {}}")),
        ("pods.yaml", POD.as_bytes().to_vec()),
        ("shop.json", shop.clone().into_bytes()),
        ("ends.yaml", questions::ENDS.as_bytes().to_vec()),
        ("other.yaml", questions::PLAN.as_bytes().to_vec()),
        ("config.yaml", b"kind: ConfigMap\napiVersion: v1\nmetadata: {name: cilium-config}\ndata: {}\n".to_vec()),
    ];
    for (name, content) in good {
        fs::write(directory.path().join(name), content).unwrap();
    }
    fs::create_dir(directory.path().join("empty")).unwrap();
    let (mut all, mut failures) = (String::new(), String::new());
    let mut ask = |name: &str, args: &str, code: i32| {
        let args: Vec<&str> = args.split(' ').collect();
        let (said, wrong) = said(directory.path(), &args, code);
        writeln!(all, "{name}\n{said}").unwrap();
        if let Some(wrong) = wrong {
            writeln!(failures, "{name}: {wrong}\n{said}").unwrap();
        }
    };
    for (what, file, args, cases) in [
        ("policies", "p.yaml", "lint p.yaml", policies()),
        ("other kinds", "p.yaml", "lint p.yaml", other_kinds()),
        ("inventory", "i.yaml", "lint good.yaml --inventory i.yaml", inventories()),
        ("flows", "f.csv", "check --flows f.csv --policies good.yaml --inventory pods.yaml", flows()),
        ("snapshot", "s.json", "graph s.json", snapshots(&shop)),
        (
            "plan",
            "plan.yaml",
            "status shop.json --plan plan.yaml --environment prod --now 2026-03-01T12:00:00Z",
            plans(),
        ),
    ] {
        for (name, content) in cases {
            fs::write(directory.path().join(file), content).unwrap();
            // A quoted port is a finding beside others.
            ask(&format!("{what}, {name}"), args, if name == "a quoted port" { 1 } else { 2 });
        }
    }
    for line in questions::COMMANDS
        .lines()
        .chain(questions::PLANNED.lines())
        .chain(questions::EXPLAIN.lines())
        .filter(|line| !line.is_empty())
    {
        ask(&format!("$ {line}"), line, 2);
    }
    assert!(failures.is_empty(), "{failures}");
    insta::assert_snapshot!(all);
}
