//! What the command says when it refuses an input, all in one golden file: one sentence about the
//! file, with the place and what to do.

use std::{fmt::Write as _, fs, process::Command};

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
        ("a bad port name", rule("{ports: [{port: Web_Port}]}")),
        ("a protocol", rule("{ports: [{port: 80, protocol: tcp}]}")),
        ("endPort before port", rule("{ports: [{port: 80, endPort: 79}]}")),
        ("endPort without port", rule("{ports: [{endPort: 79}]}")),
        ("endPort beside a name", rule("{ports: [{port: http, endPort: 79}]}")),
        ("two policies of one name", format!("{OK}{{podSelector: {{}}}}\n---\n{OK}{{ingress: [{{}}]}}\n").into_bytes()),
        ("a key twice", b"a: 1\nb: 2\na: 3\n".to_vec()),
        ("an open bracket", b"a: [1\nb: 2\n".to_vec()),
        ("an unknown alias", b"a: *nowhere\n".to_vec()),
        ("too deep", format!("a: {}{}\n", "[".repeat(300), "]".repeat(300)).into_bytes()),
        ("binary", b"\x7fELF\x02\x01\x01".to_vec()),
        ("neither UTF-8 nor UTF-16", b"a: b\nc: \xff\n".to_vec()),
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
        ("a key twice", b"kind: Namespace\nmetadata:\n  name: a\n  labels: {}\n  name: b\n".to_vec()),
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

#[test]
fn every_refusal_is_a_sentence_about_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let good = [("good.yaml", spec("{podSelector: {}}")), ("pods.yaml", POD.as_bytes().to_vec())];
    for (name, content) in good {
        fs::write(directory.path().join(name), content).unwrap();
    }
    let mut all = String::new();
    for (what, file, args, cases) in [
        ("policies", "p.yaml", "lint p.yaml", policies()),
        ("inventory", "i.yaml", "lint good.yaml --inventory i.yaml", inventories()),
        ("flows", "f.csv", "check --flows f.csv --policies good.yaml --inventory pods.yaml", flows()),
    ] {
        for (name, content) in cases {
            fs::write(directory.path().join(file), content).unwrap();
            let output = Command::new(env!("CARGO_BIN_EXE_guardrail"))
                .args(args.split(' '))
                .current_dir(directory.path())
                .output()
                .unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            // A quoted port is a finding beside others.
            let code = if name == "a quoted port" { 1 } else { 2 };
            assert_eq!(output.status.code(), Some(code), "{what}, {name}: {stderr}");
            for library in ["Policy in Options", "Budget", "budget", "serde", "{ depth", "breach"] {
                assert!(!stderr.contains(library), "{what}, {name}: {stderr}");
            }
            let said = if code == 1 { String::from_utf8(output.stdout).unwrap() } else { stderr };
            writeln!(all, "{what}, {name}\n{}", said.trim_end()).unwrap();
        }
    }
    insta::assert_snapshot!(all);
}
