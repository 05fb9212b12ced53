//! `--policies kube` and `--inventory kube`: what the API server has is read as what kubectl prints
//! of it.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use guardrail_tests::{apiserver::ApiServer, bins};
use serde_json::{Value, json};

/// A server, a kubeconfig for it, and what it has as a file.
struct Cluster {
    server: ApiServer,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn new(server: ApiServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config"), server.kubeconfig(None)).unwrap();
        std::fs::write(dir.path().join("objects.json"), server.objects()).unwrap();
        Self { server, dir }
    }

    /// The recordings of a real cluster.
    fn recorded() -> Self {
        Self::new(ApiServer::start().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(bins::find("guardrail"))
            .args(args)
            .current_dir(self.dir.path())
            .env("KUBECONFIG", self.file("config"))
            .env("HOME", "/nonexistent")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Exit code and stdout, which is something.
    fn answer(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.run(args);
        let (out, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(!out.is_empty(), "{args:?}: {said}");
        (output.status.code(), out)
    }

    /// Exit code 2, nothing on stdout, and one line on stderr.
    fn refusal(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "one sentence: {said}");
        said
    }
}

#[test]
fn the_cluster_says_what_its_objects_in_a_file_say() {
    let cluster = Cluster::recorded();
    let pod = |namespace: &str| {
        let objects: Value = serde_json::from_str(&cluster.server.objects()).unwrap();
        let of = objects["items"].as_array().unwrap().iter().filter(|o| o["kind"] == "Pod");
        let mut names = of.filter(|o| o["metadata"]["namespace"] == namespace).map(|o| {
            format!("{}/{}", o["metadata"]["namespace"].as_str().unwrap(), o["metadata"]["name"].as_str().unwrap())
        });
        names.next().unwrap()
    };
    let (from, to) = (pod("payments"), pod("data"));
    let connection = |command| -> Vec<&str> {
        let ends = ["--from", &from, "--to", &to, "--port", "5432", "-o", "json"];
        [&[command, "--policies", "@", "--inventory", "@"][..], &ends].concat()
    };
    for args in [
        &["check", "--all", "--allow-unproven", "--policies", "@", "--inventory", "@", "-o", "csv"][..],
        &connection("explain"),
        // What it writes ends some time from now.
        &[connection("unblock"), vec!["--now", "2026-11-01T12:00:00Z"]].concat(),
        &["lint", "@", "--inventory", "@", "-o", "json"],
    ] {
        let with = |source: &str| -> Vec<String> {
            args.iter().map(|arg| if *arg == "@" { source.to_owned() } else { (*arg).to_owned() }).collect()
        };
        let ask = |source: &str| {
            let args = with(source);
            cluster.answer(&args.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let ((live_code, live), (code, file)) = (ask("kube"), ask("objects.json"));
        assert_eq!(live_code, code, "{args:?}");
        assert_eq!(without_places(&live), without_places(&file), "{args:?}");
    }
    assert!(cluster.server.requests("GET /apis/networking.k8s.io/v1/networkpolicies") > 0);
}

/// Where things stand differs: in the cluster, or in a file.
fn without_places(text: &str) -> String {
    let Ok(mut json) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("location");
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut json);
    json.to_string()
}

#[test]
fn policies_of_the_cluster_are_those_in_force_and_say_when_they_were_changed() {
    let cluster = Cluster::recorded();
    std::fs::write(cluster.file("empty.yaml"), "apiVersion: v1\nkind: List\nitems: []\n").unwrap();
    let snapshot = guardrail_graph::Snapshot::empty();
    std::fs::write(cluster.file("snapshot.json"), snapshot.to_json()).unwrap();
    let (code, table) = cluster.answer(&["status", "snapshot.json", "--policies", "kube", "--inventory", "kube"]);
    assert!(code == Some(0) && table.contains("payments"), "{table}");
    let args =
        ["drift", "snapshot.json", "--policies", "empty.yaml", "--against", "kube", "--allow-partial", "-o", "json"];
    let (code, found) = cluster.answer(&args);
    assert!(code == Some(1) && found.contains("GD012 NetworkPolicy "), "{found}");
}

#[test]
fn policies_of_other_kinds_are_found_by_the_groups_that_the_server_has() {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "uid": "n"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "p", "labels": {"app": "web"}},
            "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}}),
    ];
    let cluster = Cluster::new(ApiServer::serving(TcpListener::bind("127.0.0.1:0").unwrap(), &objects).unwrap());
    let group = |name: &str, version: &str| {
        let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
        json!({"name": name, "versions": [version], "preferredVersion": version})
    };
    let kind = |name: &str, kind: &str| json!({"name": name, "kind": kind, "verbs": ["get", "list", "watch"]});
    cluster.server.manners(|manners| {
        manners.documents = [
            ("/apis", json!({"kind": "APIGroupList", "groups": [group("cilium.io", "v2"), group("example.org", "v1"), group("apps", "v1")]})),
            ("/apis/cilium.io/v2", json!({"resources": [kind("ciliumnetworkpolicies", "CiliumNetworkPolicy"), kind("ciliumendpoints", "CiliumEndpoint"), kind("ciliumnetworkpolicies/status", "CiliumNetworkPolicy")]})),
            ("/apis/example.org/v1", json!({"resources": [kind("clusternetworkpolicies", "ClusterNetworkPolicy")]})),
            ("/apis/cilium.io/v2/ciliumnetworkpolicies", json!({
                "kind": "CiliumNetworkPolicyList", "apiVersion": "cilium.io/v2", "metadata": {"resourceVersion": "7"},
                "items": [{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "closed", "namespace": "shop"},
                    "spec": {"endpointSelector": {}, "ingress": [{}]}}],
            })),
        ]
        .into_iter()
        .map(|(path, document)| (path.to_owned(), document))
        .collect();
    });
    let args = [
        "explain",
        "--policies",
        "kube",
        "--inventory",
        "kube",
        "--from",
        "203.0.113.9",
        "--to",
        "shop/web",
        "--port",
        "80",
    ];
    let (code, told) = cluster.answer(&args);
    assert!(code == Some(1) && told.contains("CiliumNetworkPolicy/shop/closed"), "{told}");
    assert_eq!(cluster.server.requests("ciliumendpoints"), 0, "what is no policy is not read");
    assert_eq!(cluster.server.requests("/apis/apps/v1?"), 0);
}

#[test]
fn what_is_not_permitted_or_not_there_is_one_sentence() {
    let cluster = Cluster::recorded();
    let all = ["check", "--all", "--policies", "kube", "--inventory", "kube"];
    cluster.server.manners(|manners| {
        manners.denied.insert(("list".to_owned(), "networkpolicies".to_owned()));
    });
    let said = cluster.refusal(&all);
    assert!(
        said.starts_with(
            "error: no permission to read networkpolicies.networking.k8s.io of the cluster: grant the verb list on them"
        ),
        "{said}"
    );
    cluster.server.manners(|manners| manners.denied = [("list".to_owned(), "pods".to_owned())].into());
    assert!(cluster.refusal(&all).contains("no permission to read pods of the cluster"));
    let nowhere = cluster.refusal(&[&all[..], &["--kubeconfig", "missing"]].concat());
    assert!(nowhere.contains("no cluster to ask"), "{nowhere}");
    let plan =
        "apiVersion: guardrail.dev/v1alpha1\nkind: Plan\nspec:\n  environments:\n    production: {context: prod-eu}\n";
    std::fs::write(cluster.file("guardrail.yaml"), plan).unwrap();
    let of_plan = ["--plan", "guardrail.yaml", "--environment", "production"];
    for command in ["status", "drift", "blocked"] {
        let args = [&[command, "kube", "--policies", "kube"][..], &of_plan, &["--context", "lab"]].concat();
        assert_eq!(
            cluster.refusal(&args),
            "error: guardrail.yaml: environment production is context prod-eu, and --context says lab; name one of them\n"
        );
        // The plan's context is the one that is asked, and this kubeconfig has none of that name.
        let args = [&[command, "kube", "--policies", "kube"][..], &of_plan].concat();
        assert!(cluster.refusal(&args).contains("prod-eu"), "{command}");
    }
    assert!(Path::new(&cluster.file("config")).exists());
}
