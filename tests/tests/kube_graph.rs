//! `guardrail … kube`: the graph of a whole cluster through the API server's port-forward, and what
//! it says of agents that do not answer.
//!
//! The agents here are sockets with prepared answers; tests/kube_nodes.rs has real ones.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use guardrail_graph::{
    Snapshot, Timestamp,
    snapshot::{Interval, Source},
};
use guardrail_tests::{
    apiserver::{ApiServer, Forward, agent_pod},
    bins,
};
use serde_json::{Value, json};

/// How long an agent may take in these tests.
const LIMIT: &str = "2";

/// An API server with agent pods, and a directory with a kubeconfig for it.
struct Cluster {
    server: ApiServer,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn new(pods: &[Value]) -> Self {
        let server = ApiServer::serving(TcpListener::bind("127.0.0.1:0").unwrap(), pods).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "for-the-api-server").unwrap();
        server.manners(|m| m.tokens = Some(["for-the-api-server".to_owned()].into()));
        std::fs::write(dir.path().join("config"), server.kubeconfig(Some(&token))).unwrap();
        Self { server, dir }
    }

    /// Two nodes: the agent of `a` answers as it should, that of `b` as `forward` says.
    fn with_b(forward: Forward) -> Self {
        let cluster = Self::new(&[agent_pod("agent-a", "a", true), agent_pod("agent-b", "b", true)]);
        cluster.server.forward("guardrail", "agent-a", http(200, snapshot("a").to_json().into_bytes()));
        cluster.server.forward("guardrail", "agent-b", forward);
        cluster
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        guardrail(args, &self.file("config"))
    }
}

fn guardrail(args: &[&str], kubeconfig: &Path) -> Output {
    Command::new(bins::find("guardrail"))
        .args(args)
        .args(["--agent-timeout", LIMIT])
        .env("KUBECONFIG", kubeconfig)
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Exit code 2, nothing on stdout, and one line on stderr.
fn refusal(output: &Output) -> String {
    let text = said(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(text.trim_end().lines().count(), 1, "one sentence: {text}");
    assert!(text.starts_with("error: "), "{text}");
    text
}

/// What the agent of a node would serve after a quiet minute: `web` on `a` called `db` on `b`, and
/// each node saw its end.
fn snapshot(node: &str) -> Snapshot {
    let at = |seconds: i64| Timestamp::from_unix_seconds(1_790_000_000 + seconds);
    let side = if node == "a" { "client" } else { "server" };
    let peer = |name: &str| json!({"kind": "Workload", "namespace": "shop", "owner": "Deployment", "name": name});
    let source = json!({"node": node, "instance": format!("i-{node}")});
    let counts = json!({"opened": 3, "found": 0, "refused": 0, "unanswered": 0, "unreachable": 0, "bytes_sent": 30, "bytes_received": 300});
    let seen = json!({"first_seen": at(5), "last_seen": at(50)});
    let with = |parts: &[&Value]| {
        let mut all = serde_json::Map::new();
        for part in parts {
            all.extend(part.as_object().unwrap().clone());
        }
        Value::Object(all)
    };
    let edge = with(&[
        &json!({
            "client": peer("web"), "server": peer("db"), "protocol": "TCP", "port": 5432, "port_name": null, "via": [],
            "seen_by": [side], "supported": true, "marks": [],
            "sources": [with(&[&json!({"source": source, "side": side}), &counts, &seen])],
        }),
        &counts,
        &seen,
    ]);
    let workload = |name: &str, node: &str| {
        json!({
            "namespace": "shop", "owner": "Deployment", "name": name, "selector": {"matchLabels": {"app": name}}, "labels": {"app": name},
            "pods": {node: [{"name": format!("{name}-1"), "addresses": []}]}, "as_of": at(60),
        })
    };
    let mut snapshot = Snapshot::empty();
    let body = &mut snapshot.body;
    body.sources.insert(Source { node: node.to_owned(), instance: format!("i-{node}"), start: None });
    body.window.nodes.insert(node.to_owned(), vec![Interval { from: at(0), to: at(60) }]);
    body.coverage.nodes.observed.insert(node.to_owned());
    body.coverage.nodes.expected.extend(["a".to_owned(), "b".to_owned()]);
    body.workloads = serde_json::from_value(json!([workload("db", "b"), workload("web", "a")])).unwrap();
    body.edges = serde_json::from_value(json!([edge])).unwrap();
    // As an agent serves it: with everything that follows.
    guardrail_graph::snapshot::merge(vec![snapshot])
}

/// A server in this process that does `answer` on each connection, and a forward to it.
fn agent(answer: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + Clone + 'static) -> Forward {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mut stream, answer) = (stream, answer.clone());
            thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                assert!(head.is_empty() || head.starts_with(b"GET /v1/graph?since=1970-01-01&facts HTTP/1.1\r\n"));
                let head = String::from_utf8(head).unwrap().to_lowercase();
                assert!(!head.contains("authorization"), "the user's token is for the API server alone: {head}");
                let _ = answer(&mut stream);
            });
        }
    });
    Forward::To(Box::new(move |port| {
        assert_eq!(port, 9465, "the port of --local-listen in deploy/base");
        TcpStream::connect(address)
    }))
}

fn http(status: u16, body: Vec<u8>) -> Forward {
    agent(move |stream| {
        write!(
            stream,
            "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        stream.write_all(&body)
    })
}

#[test]
fn the_graph_of_the_cluster_is_the_merge_of_its_agents() {
    let cluster = Cluster::with_b(http(200, snapshot("b").to_json().into_bytes()));
    let files = ["a", "b"].map(|node| {
        let file = cluster.file(&format!("{node}.json"));
        std::fs::write(&file, snapshot(node).to_json()).unwrap();
        file.display().to_string()
    });
    for command in [&["graph", "-o", "json"][..], &["graph"], &["merge"]] {
        let live = cluster.run(&[command, &["kube"]].concat());
        let filed = cluster.run(&[command, &[&files[0], &files[1]]].concat());
        assert_eq!((live.status.code(), said(&live).as_str()), (Some(0), ""));
        assert_eq!(live.stdout, filed.stdout, "{command:?}");
    }
    let merged: Value = serde_json::from_slice(&cluster.run(&["merge", "kube:guardrail"]).stdout).unwrap();
    let edges = merged["edges"].as_array().unwrap();
    assert_eq!(edges.len(), 1, "one edge, seen by two nodes: {edges:#?}");
    assert_eq!((&edges[0]["seen_by"], &edges[0]["opened"]), (&json!(["client", "server"]), &json!(3)));
    assert_eq!(merged["coverage"]["complete"], true, "{}", merged["coverage"]);

    // The kubeconfig may be named, and so may its context.
    let config = cluster.file("config").display().to_string();
    let nothing = cluster.file("none");
    let named = guardrail(&["merge", "kube", "--kubeconfig", &config, "--context", "lab"], &nothing);
    assert_eq!((named.status.code(), said(&named).as_str()), (Some(0), ""));
}

/// A node that does not answer is named with the reason; the graph is shown all the same, and
/// nothing is concluded from it.
#[track_caller]
fn b_does_not_answer(cluster: &Cluster, reason: &str) {
    let graph = cluster.run(&["graph", "kube", "-o", "json"]);
    let text = said(&graph);
    assert_eq!(graph.status.code(), Some(0), "{text}");
    assert!(text.contains("warning: node b did not answer: ") && text.contains(reason), "not `{reason}`: {text}");
    assert!(!text.contains("node a did not"), "{text}");
    assert!(text.contains("the graph is incomplete: nodes not observed: b"), "{text}");
    let snapshot: Value = serde_json::from_slice(&graph.stdout).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], false);
    assert_eq!(snapshot["coverage"]["nodes"], json!({"observed": ["a"], "expected": ["a", "b"]}));
    assert_eq!(snapshot["edges"].as_array().unwrap().len(), 1);
}

#[test]
fn an_agent_that_cannot_be_reached_is_named_with_the_reason() {
    let refused = Forward::To(Box::new(|_| Err(io::Error::other("connection refused"))));
    b_does_not_answer(&Cluster::with_b(refused), "connection refused");
    let gone = Cluster::with_b(Forward::Silence);
    gone.server.forget("guardrail", "agent-b");
    b_does_not_answer(&gone, "its pod is gone");
    let forbidden = "pods \"agent-b\" is forbidden: User \"u\" cannot create resource \"pods/portforward\" in API group \"\" in the namespace \"guardrail\"";
    b_does_not_answer(
        &Cluster::with_b(Forward::Status(403, forbidden.to_owned())),
        "cannot create resource \"pods/portforward\"",
    );
    let unreachable = "error dialing backend: dial tcp 192.0.2.7:10250: connect: no route to host";
    b_does_not_answer(&Cluster::with_b(Forward::Status(500, unreachable.to_owned())), "no route to host");
}

#[test]
fn an_agent_that_never_finishes_costs_its_time_and_no_more() {
    let began = Instant::now();
    b_does_not_answer(&Cluster::with_b(Forward::Silence), "no whole answer within 2 s");
    let stalled = agent(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")?;
        stream.read_exact(&mut [0])
    });
    b_does_not_answer(&Cluster::with_b(stalled), "no whole answer within 2 s");
    let endless = agent(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            stream.write_all(b"4\r\n    \r\n")?;
            thread::sleep(Duration::from_millis(1));
        }
    });
    b_does_not_answer(&Cluster::with_b(endless), "no whole answer within 2 s");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn an_answer_that_makes_no_sense_is_no_answer() {
    let whole = snapshot("b").to_json().into_bytes();
    let half = whole[..whole.len() / 2].to_vec();
    b_does_not_answer(&Cluster::with_b(http(200, half.clone())), "makes no sense");
    b_does_not_answer(&Cluster::with_b(http(200, b"\x1b[2J\xff".to_vec())), "makes no sense");
    b_does_not_answer(&Cluster::with_b(http(404, b"not here\x1b[2J\n".to_vec())), "answers 404 Not Found: not here");
    b_does_not_answer(&Cluster::with_b(agent(|stream| stream.write_all(b"SSH-2.0-x\r\n"))), "broke");
    let cut = agent(move |stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * half.len())?;
        stream.write_all(&half)
    });
    b_does_not_answer(&Cluster::with_b(cut), "broke");
    let busy = Cluster::with_b(http(503, b"busy\n".to_vec()));
    b_does_not_answer(&busy, "busy");
    assert!(busy.server.requests("agent-b/portforward") > 1, "a busy agent is asked again");
    let huge = agent(|stream| stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{"));
    b_does_not_answer(&Cluster::with_b(huge), "more than 256 MiB");
}

#[test]
fn an_answer_in_which_times_run_backwards_is_refused_as_a_file_is() {
    let mut backwards = snapshot("b");
    let edge = &mut backwards.body.edges[0];
    (edge.first_seen, edge.last_seen) = (edge.last_seen, edge.first_seen);
    let cluster = Cluster::with_b(http(200, backwards.to_json().into_bytes()));
    let of_cluster = refusal(&cluster.run(&["graph", "kube"]));
    let file = cluster.file("b.json");
    std::fs::write(&file, backwards.to_json()).unwrap();
    let of_file = refusal(&cluster.run(&["graph", file.to_str().unwrap()]));
    let why = |text: &str, name: &str| text.trim().strip_prefix(&format!("error: {name}: ")).map(str::to_owned);
    let expected = why(&of_file, file.to_str().unwrap());
    assert!(expected.as_deref().is_some_and(|why| why.contains("begins at")), "{of_file}");
    assert_eq!(why(&of_cluster, "node b (agent-b)"), expected, "{of_cluster}");
}

#[test]
fn pods_that_are_not_ready_are_agents_that_do_not_answer() {
    let mut pending = agent_pod("agent-b", "b", false);
    pending["status"] =
        json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]});
    for (pod, reason) in
        [(agent_pod("agent-b", "b", false), "its pod is not ready"), (pending, "Pending, ImagePullBackOff")]
    {
        let cluster = Cluster::new(&[agent_pod("agent-a", "a", true), pod]);
        cluster.server.forward("guardrail", "agent-a", http(200, snapshot("a").to_json().into_bytes()));
        b_does_not_answer(&cluster, reason);
    }
    // The next pod of a rolling update stands for its node.
    let pods = [agent_pod("agent-a", "a", true), agent_pod("agent-b", "b", true), agent_pod("agent-old", "b", false)];
    let cluster = Cluster::new(&pods);
    for node in ["a", "b"] {
        cluster.server.forward("guardrail", &format!("agent-{node}"), http(200, snapshot(node).to_json().into_bytes()));
    }
    let graph = cluster.run(&["graph", "kube"]);
    assert_eq!((graph.status.code(), said(&graph).as_str()), (Some(0), ""));
}

#[test]
fn check_and_export_conclude_nothing_from_a_node_that_did_not_answer() {
    let cluster = Cluster::with_b(Forward::Silence);
    cluster.server.forget("guardrail", "agent-b");
    let policy = cluster.file("policy.yaml");
    std::fs::write(
        &policy,
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\nspec:\n  podSelector: {matchLabels: {app: db}}\n  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]\n",
    )
    .unwrap();
    let policy = policy.to_str().unwrap();
    let code = |args: &[&str]| {
        let output = cluster.run(args);
        (output.status.code(), said(&output))
    };
    let (status, text) = code(&["check", "kube", "--policies", policy]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("node b did not answer") && text.contains("--allow-partial"), "{text}");
    let (status, text) = code(&["check", "kube", "--policies", policy, "--allow-partial"]);
    assert_eq!(status, Some(0), "{text}");
    let out = cluster.file("out");
    let export = ["export", "kube", "--phase", "default-deny", "--min-window", "0s", "-d", out.to_str().unwrap()];
    let (status, text) = code(&export);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("node b did not answer") && !out.exists(), "{text}");
    let (status, text) = code(&[&export[..], &["--force"]].concat());
    assert_eq!(status, Some(0), "{text}");
    assert!(out.join("kustomization.yaml").exists());
    let (status, text) = code(&["merge", "kube"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("the merged graph is incomplete: nodes not observed: b"), "{text}");
}

#[test]
fn without_an_answer_there_is_one_sentence_and_exit_code_2() {
    let cluster = Cluster::new(&[agent_pod("agent-a", "a", true)]);
    cluster.server.forward("guardrail", "agent-a", http(200, snapshot("a").to_json().into_bytes()));
    let text = refusal(&cluster.run(&["graph", "kube:elsewhere"]));
    assert!(text.contains("no agent in the namespace elsewhere") && text.contains("kube:NAMESPACE"), "{text}");
    let text = refusal(&cluster.run(&["graph", "kube:No_Namespace"]));
    assert!(text.contains("`No_Namespace` is no name of a namespace"), "{text}");

    let grant = |verbs: &[(&str, &str)]| {
        let rules = verbs.iter().map(|(v, r)| ((*v).to_owned(), (*r).to_owned())).collect();
        cluster.server.manners(|m| m.granted = Some(("guardrail".to_owned(), rules)));
    };
    grant(&[]);
    let text = refusal(&cluster.run(&["graph", "kube"]));
    assert!(text.contains("grant the verb list on pods in the namespace guardrail"), "{text}");
    for missing in ["get", "create"] {
        let rules = [("list", "pods"), ("get", "pods/portforward"), ("create", "pods/portforward")];
        let rest: Vec<_> = rules.into_iter().filter(|rule| *rule != (missing, "pods/portforward")).collect();
        grant(&rest);
        let text = refusal(&cluster.run(&["graph", "kube"]));
        assert!(
            text.contains("grant the verbs get and create on pods/portforward in the namespace guardrail"),
            "{text}"
        );
        assert!(text.contains(&format!("cannot {missing} resource \"pods/portforward\"")), "{text}");
    }
    cluster.server.manners(|m| {
        m.granted = None;
        m.tokens = Some(["secret".to_owned()].into());
    });
    let text = refusal(&cluster.run(&["graph", "kube"]));
    assert!(text.contains("does not accept the credentials"), "{text}");

    let text = refusal(&guardrail(&["graph", "kube"], &cluster.file("none")));
    assert!(text.contains("set KUBECONFIG or give --kubeconfig"), "{text}");
    let broken = cluster.file("broken");
    std::fs::write(&broken, "{").unwrap();
    refusal(&guardrail(&["graph", "kube"], &broken));
    let text = refusal(&cluster.run(&["graph", "kube", "--context", "other"]));
    assert!(text.contains("other"), "{text}");

    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    std::fs::write(&broken, cluster.server.kubeconfig(None).replace(&cluster.server.url(), &url)).unwrap();
    let text = refusal(&guardrail(&["graph", "kube"], &broken));
    assert!(text.contains("the API server did not answer within 2 s"), "{text}");
    drop(silent);
    let text = refusal(&guardrail(&["graph", "kube"], &broken));
    assert!(text.contains("cannot reach the API server") && text.contains("refused"), "{text}");
}

/// deploy/components/audit-only: enough, and nothing too much.
#[test]
fn the_audit_role_grants_exactly_what_the_command_needs() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/audit-only/role.yaml");
    let role: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let list = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert_eq!(rule["apiGroups"], json!([""]));
        for resource in list(&rule["resources"]) {
            granted.extend(list(&rule["verbs"]).into_iter().map(|verb| (verb, resource.clone())));
        }
    }
    let cluster = Cluster::with_b(http(200, snapshot("b").to_json().into_bytes()));
    cluster.server.manners(|m| m.granted = Some(("guardrail".to_owned(), granted.clone())));
    let graph = cluster.run(&["graph", "kube"]);
    assert_eq!((graph.status.code(), said(&graph).as_str()), (Some(0), ""));
    for rule in &granted {
        let rest = granted.iter().filter(|r| *r != rule).cloned().collect();
        cluster.server.manners(|m| m.granted = Some(("guardrail".to_owned(), rest)));
        refusal(&cluster.run(&["graph", "kube"]));
    }
}

#[test]
fn when_nobody_answers_there_is_no_graph() {
    let cluster = Cluster::new(&[agent_pod("agent-a", "a", false), agent_pod("agent-b", "b", true)]);
    let output = cluster.run(&["graph", "kube"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(output.stdout.is_empty());
    for part in [
        "node a did not answer: its pod is not ready",
        "node b did not answer: its pod is gone",
        "error: none of the 2 agents",
    ] {
        assert!(text.contains(part), "no `{part}`: {text}");
    }
}
