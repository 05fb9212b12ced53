//! `guardrail export` as a person runs it: files in, files out, exit codes.

#[path = "../../guardrail-policy/tests/generate_support/mod.rs"]
mod generate_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use generate_support::Scenario;
use tempfile::TempDir;

/// A shop on two nodes, seen by the agents of `observed`.
fn cluster(observed: &[&str]) -> Scenario {
    let pod = |node: &str, address: &str| serde_json::json!({"node": node, "addresses": [address]});
    serde_json::from_value(serde_json::json!({
        "about": "a shop on two nodes",
        "export": {"phase": "default-deny"},
        "nodes": {"node-a": ["192.0.2.1"], "node-b": ["192.0.2.2"]},
        "observed": observed,
        "workloads": {
            "shop/Deployment/web": {"labels": {"app": "web"}, "pods": {"web-1": pod("node-a", "10.244.0.5")}},
            "shop/Deployment/api": {
                "labels": {"app": "api"},
                "pods": {"api-1": pod("node-a", "10.244.0.6"), "api-2": pod("node-b", "10.244.1.6")},
            },
        },
        "edges": [{"edge": "shop/Deployment/web -> shop/Deployment/api 8080"}],
    }))
    .unwrap()
}

struct Run {
    directory: TempDir,
}

impl Run {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        fs::write(self.path(name), text).unwrap();
        self
    }

    fn snapshot(&self, name: &str, observed: &str) -> &Self {
        let observed: Vec<&str> = observed.split(", ").collect();
        self.write(name, &cluster(&observed).snapshot().to_json())
    }

    fn export(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_guardrail"))
            .current_dir(self.directory.path())
            .arg("export")
            .args(args)
            .args(["--min-window", "0s"])
            .output()
            .unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn read_all(directory: &Path) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn one_nodes_view_writes_nothing_and_exits_2_and_the_merge_of_both_nodes_lifts_it() {
    let run = Run::new();
    run.snapshot("a.json", "node-a").snapshot("b.json", "node-b");
    let output = run.export(&["a.json", "--phase", "default-deny", "-d", "out"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("node_unobserved:node-b"), "{}", stderr(&output));
    assert!(!run.path("out").exists());

    let output = run.export(&["a.json", "--phase", "default-deny", "-d", "out", "--force"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let api = fs::read_to_string(run.path("out/shop.guardrail-allow-deployment-api.yaml")).unwrap();
    assert!(api.contains("# view: node node-a, not for applying"), "{api}");
    assert!(api.contains("Evidence: incomplete.") && api.contains("--force"), "{api}");

    let output = run.export(&["b.json", "a.json", "--phase", "default-deny", "-d", "out"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let api = fs::read_to_string(run.path("out/shop.guardrail-allow-deployment-api.yaml")).unwrap();
    assert!(!api.contains("not for applying") && api.contains("Evidence: complete."), "{api}");
}

#[test]
fn equal_graphs_give_equal_bytes_whatever_the_order_of_the_files() {
    let run = Run::new();
    run.snapshot("a.json", "node-a").snapshot("b.json", "node-b");
    for (first, second, out) in [("a.json", "b.json", "one"), ("b.json", "a.json", "two"), ("a.json", "b.json", "one")]
    {
        let output = run.export(&[first, second, "--phase", "default-deny", "--egress", "-d", out]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert_eq!(read_all(&run.path("one")), read_all(&run.path("two")));
}

#[test]
fn kustomize_reads_the_directory() {
    let run = Run::new();
    run.snapshot("all.json", "node-a, node-b");
    let output = run.export(&["all.json", "--phase", "default-deny", "--egress", "-d", "out"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let built = Command::new("kubectl")
        .arg("kustomize")
        .arg(run.path("out"))
        .output()
        .expect("kubectl is needed (cargo xtask setup)");
    assert!(built.status.success(), "{}", stderr(&built));
    let text = String::from_utf8(built.stdout).unwrap();
    assert_eq!(text.matches("kind: NetworkPolicy").count(), 4, "{text}");
}

#[test]
fn without_a_directory_the_policies_are_one_yaml_stream() {
    let run = Run::new();
    run.snapshot("all.json", "node-a, node-b");
    let output = run.export(&["all.json", "--phase", "constrain"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let set = guardrail_policy::read::policies("stdout", text.as_bytes()).unwrap();
    assert_eq!(set.policies.len(), 1, "{text}");
    assert_eq!(set.policies[0].key(), "shop/guardrail-namespace-boundary");
}

#[test]
fn bad_input_exits_2_says_what_and_where_and_writes_nothing() {
    let run = Run::new();
    run.snapshot("all.json", "node-a, node-b")
        .write("empty.json", "")
        .write("cut.json", "{\"apiVersion\": \"guardrail.dev/v2\", ")
        .write("pod.json", "{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}")
        .write("broken.yaml", "kind: [")
        .write("policy.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  ingress:\n  - ports: [{port: 70000}]\n")
        .write("cilium.yaml", "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: c, namespace: shop}\nspec: {endpointSelector: {}, ingress: [{}]}\n");
    let cases: &[(&[&str], &str)] = &[
        (&["missing.json"], "missing.json"),
        (&["empty.json"], "empty.json"),
        (&["cut.json"], "cut.json"),
        (&["pod.json"], "v1 Pod"),
        (&["all.json", "missing.json"], "missing.json"),
        (&["all.json", "--inventory", "broken.yaml"], "broken.yaml"),
        (&["all.json", "--policies", "policy.yaml"], "policy.yaml:6"),
        (&["all.json", "--policies", "nowhere"], "nowhere"),
        (&["all.json", "--policies", "cilium.yaml", "--dataplane", "kubernetes"], "CiliumNetworkPolicy"),
        (&["all.json", "--declare", "cdn"], "NAME=CIDR"),
        (&["all.json", "--ignore-client", "web"], "NAMESPACE/NAME"),
    ];
    for (args, expected) in cases {
        let args: Vec<&str> = args.iter().copied().chain(["--phase", "default-deny", "-d", "out"]).collect();
        let output = run.export(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
        assert!(!run.path("out").exists(), "{args:?} wrote something");
    }
    let output = run.export(&["all.json", "--phase", "deny-everything", "-d", "out"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("observe, constrain or default-deny"), "{}", stderr(&output));
}

#[test]
fn a_directory_that_cannot_be_written_exits_2() {
    let run = Run::new();
    run.snapshot("all.json", "node-a, node-b").write("out", "a file");
    let output = run.export(&["all.json", "--phase", "default-deny", "-d", "out"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("out"), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(run.path("out")).unwrap(), "a file");
}

#[test]
fn a_file_that_only_an_earlier_export_wrote_goes_and_foreign_files_stay() {
    let run = Run::new();
    run.snapshot("all.json", "node-a, node-b");
    assert_eq!(run.export(&["all.json", "--phase", "constrain", "-d", "out"]).status.code(), Some(0));
    run.write("out/mine.yaml", "kept");
    assert_eq!(run.export(&["all.json", "--phase", "default-deny", "-d", "out"]).status.code(), Some(0));
    let names: Vec<String> = read_all(&run.path("out")).into_iter().map(|(name, _)| name).collect();
    assert!(!names.contains(&"shop.guardrail-namespace-boundary.yaml".to_owned()), "{names:?}");
    assert!(names.contains(&"mine.yaml".to_owned()), "{names:?}");
}

#[test]
fn a_namespace_that_is_a_path_writes_nothing_outside_of_the_directory() {
    for namespace in ["../../escaped", "/tmp/guardrail-escaped", "a/b", ".hidden", "a\nb"] {
        let run = Run::new();
        let text = cluster(&["node-a", "node-b"]).snapshot().to_json();
        let quoted = serde_json::to_string(namespace).unwrap();
        run.write("s.json", &text.replace("\"shop\"", &quoted));
        fs::create_dir_all(run.path("x/y")).unwrap();
        let output = run.export(&["s.json", "--phase", "constrain", "--force", "-d", "x/y/z"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.contains(&0x1b), "{output:?}");
        let files = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(run.path(dir)).unwrap();
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        assert!(files("x/y").iter().all(|f| f == "z") && files(".").iter().all(|f| f == "x" || f == "s.json"));
        assert!(
            !Path::new("/tmp")
                .read_dir()
                .unwrap()
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with("guardrail-escaped"))
        );
    }
}

/// The names are those of a slip that went unnoticed: the intruder's rules stayed in the files.
#[test]
fn a_typo_in_an_option_that_names_something_is_said_on_stderr_and_in_the_report() {
    let run = Run::new();
    let mut scenario = cluster(&["node-a", "node-b"]);
    let edges = serde_json::json!([
        {"edge": "shop/Deployment/web -> 203.0.113.10 443", "names": ["payments.example.com"]},
        {"edge": "shop/Deployment/web -> shop/Deployment/api 8080"},
    ]);
    scenario.edges = serde_json::from_value(edges).unwrap();
    run.write("all.json", &scenario.snapshot().to_json());
    let cases = [
        (["--ignore-client", "shop/wbe"], "no client shop/wbe in the snapshot; did you mean shop/web?"),
        (
            ["--declare", "Paymnets.example.com=203.0.113.0/24"],
            "no external name paymnets.example.com in the snapshot; did you mean payments.example.com?",
        ),
    ];
    for (option, expected) in cases {
        let args = ["all.json", "--phase", "default-deny", "--egress", "--force", "-d", "out"];
        let output = run.export(&[&args[..], &option].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        let report = fs::read_to_string(run.path("out/REPORT.md")).unwrap();
        assert!(report.contains(expected), "{report}");
    }
}

#[test]
fn an_export_may_have_more_files_than_a_process_may_have_open() {
    let run = Run::new();
    let snapshot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shop.json");
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 12; exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_guardrail"),
            "export",
            "--egress",
            "--force",
        ])
        .args(["--phase", "default-deny", "--directory"])
        .args([&run.path("policies"), &snapshot])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(read_all(&run.path("policies")).len() > 12);
}
