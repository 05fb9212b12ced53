//! `check`, `explain`, `lint`, `graph` and `merge` as a user meets them: outputs, exit codes, bad
//! input.

mod common;

use std::{fs, io::Write as _, process::Command};

use common::{data, file};

const DENY_ALL: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {}\n";

struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs in `tests/data`, so that messages name files without the machine's paths.
fn guardrail(args: &[&str]) -> Answer {
    with_stdin(args, "")
}

fn with_stdin(args: &[&str], stdin: &str) -> Answer {
    let (code, stdout, stderr) = common::run(&data(), args, stdin);
    Answer { code, stdout, stderr }
}

fn shown(answer: &Answer) -> String {
    let Answer { code, stdout, stderr } = answer;
    for line in stdout.lines() {
        assert!(line.chars().count() <= 100, "longer than 100 columns: {line}");
        assert!(!line.contains('\u{1b}'), "colour without a terminal: {line:?}");
    }
    format!("exit {code}\n--- stdout\n{stdout}--- stderr\n{stderr}")
}

/// A file of its own for one test.
#[test]
fn graph_as_a_table() {
    insta::assert_snapshot!(shown(&guardrail(&["graph", "shop.json"])));
}

#[test]
fn graph_of_one_namespace_as_mermaid() {
    insta::assert_snapshot!(shown(&guardrail(&["graph", "shop.json", "-n", "data", "-o", "mermaid"])));
}

#[test]
fn graph_of_one_namespace_as_dot() {
    insta::assert_snapshot!(shown(&guardrail(&["graph", "shop.json", "-n", "data", "-o", "dot"])));
}

#[test]
fn a_graph_of_agents_that_never_heard_of_the_cluster_is_printed_and_exits_with_2() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("deaf.json");
    let mut snapshot = guardrail_graph::Snapshot::empty();
    for (state, code) in [
        (None, 0),
        (Some(guardrail_graph::snapshot::InventoryState::Partial), 0),
        (Some(guardrail_graph::snapshot::InventoryState::Missing), 2),
    ] {
        snapshot.body.coverage.inventory = state;
        fs::write(&file, snapshot.to_json()).unwrap();
        for command in ["graph", "merge"] {
            let answer = guardrail(&[command, file.to_str().unwrap()]);
            assert_eq!(answer.code, code, "{command} {state:?}");
            assert!(!answer.stdout.is_empty());
            assert_eq!(answer.stderr.contains("no list of the cluster was ever heard"), code == 2, "{}", answer.stderr);
        }
    }
}

#[test]
fn graph_of_an_incomplete_snapshot_warns_and_is_fine() {
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(data().join("shop.json")).unwrap();
    let partial = text
        .replace("\"complete\": true", "\"complete\": false")
        .replace("\"expected\": [\n    \"node-a\"\n   ]", "\"expected\": [\"node-a\", \"node-b\"]");
    let partial = file(&directory, "partial.json", partial);
    let answer = guardrail(&["graph", &partial]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert_eq!(answer.stderr, "warning: the graph is incomplete: nodes not observed: node-b\n");
    // check asks for a flag instead
    let check = ["check", &partial, "--policies", "shop-policies.yaml"];
    let answer = guardrail(&check);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("--allow-partial"), "{}", answer.stderr);
    assert_eq!(guardrail(&[&check[..], &["--allow-partial"]].concat()).code, 1);
}

#[test]
fn merge_is_idempotent_and_graph_json_is_the_merged_snapshot() {
    let merged = guardrail(&["merge", "shop.json"]);
    assert_eq!(merged.code, 0, "{}", merged.stderr);
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out.json");
    let again = guardrail(&["merge", "shop.json", "shop.json", "--output", out.to_str().unwrap()]);
    assert_eq!((again.code, again.stdout.as_str()), (0, ""), "{}", again.stderr);
    assert_eq!(fs::read_to_string(&out).unwrap(), merged.stdout);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    assert_eq!(with_stdin(&["graph", "-", "-o", "json"], &merged.stdout).stdout, merged.stdout);
}

#[test]
fn merge_writes_into_a_fifo_and_through_a_link_and_removes_neither() {
    let merged = guardrail(&["merge", "shop.json"]).stdout;
    let directory = tempfile::tempdir().unwrap();
    let [fifo, link, real] = ["fifo", "link", "real"].map(|name| directory.path().join(name));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read_to_string(fifo).unwrap()
    });
    let answer = guardrail(&["merge", "shop.json", "--output", fifo.to_str().unwrap()]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fs::symlink_metadata(&fifo).unwrap().file_type()));
    assert_eq!(reader.join().unwrap(), merged);

    fs::write(&real, "old").unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    let answer = guardrail(&["merge", "shop.json", "--output", link.to_str().unwrap()]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&real).unwrap(), merged);

    // /dev/stdout is a link to what this process has open, here a pipe.
    assert_eq!(guardrail(&["merge", "shop.json", "--output", "/dev/stdout"]).stdout, merged);
    let answer = guardrail(&["merge", "shop.json", "--output", directory.path().to_str().unwrap()]);
    assert_eq!(answer.code, 2, "a directory is no place for it");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3, "no temporary file is left");
}

#[test]
fn check_of_a_snapshot_as_a_table() {
    insta::assert_snapshot!(shown(&guardrail(&["check", "shop.json", "--policies", "shop-policies.yaml"])));
}

#[test]
fn check_of_a_snapshot_as_csv() {
    let answer = guardrail(&["check", "shop.json", "--policies", "shop-policies.yaml", "-o", "csv"]);
    insta::assert_snapshot!(answer.stdout);
    assert_eq!(answer.code, 1);
}

#[test]
fn check_of_flows_as_json() {
    let flows = "src,dst,protocol,port\nshop/frontend-1,shop/cart-1,TCP,8080\nshop/cart-1,shop/frontend-1,TCP,8443\n192.168.0.10,shop/cart-1,TCP,8080\n";
    let args =
        ["check", "--flows", "-", "--policies", "shop-policies.yaml", "--inventory", "cluster.yaml", "-o", "json"];
    insta::assert_snapshot!(shown(&with_stdin(&args, flows)));
}

#[test]
fn explain_a_denied_flow() {
    let args =
        ["explain", "--policies", "shop-policies.yaml", "--inventory", "cluster.yaml", "--from", "data/postgres-0"];
    insta::assert_snapshot!(shown(&guardrail(&[&args[..], &["--to", "shop/cart-1", "--port", "8081"]].concat())));
}

#[test]
fn explain_an_allowed_flow() {
    let args =
        ["explain", "--policies", "shop-policies.yaml", "--inventory", "cluster.yaml", "--from", "shop/frontend-1"];
    insta::assert_snapshot!(shown(&guardrail(&[&args[..], &["--to", "10.1.0.11", "--port", "8080"]].concat())));
}

#[test]
fn lint_as_a_table() {
    insta::assert_snapshot!(shown(&guardrail(&["lint", "lint.yaml", "--inventory", "cluster.yaml"])));
}

#[test]
fn lint_without_an_inventory_is_silent_about_what_it_cannot_know() {
    let answer = guardrail(&["lint", "shop-policies.yaml"]);
    insta::assert_snapshot!(shown(&answer));
}

#[test]
fn lint_as_sarif_names_rules_that_exist_and_lines() {
    let answer = guardrail(&["lint", "lint.yaml", "-o", "sarif"]);
    assert_eq!(answer.code, 1);
    let log: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    let results = run["results"].as_array().unwrap();
    assert!(!results.is_empty());
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        let location = &result["locations"][0]["physicalLocation"];
        assert_eq!(location["artifactLocation"]["uri"], "lint.yaml");
        assert!(location["region"]["startLine"].as_u64().unwrap() > 0);
    }
}

#[test]
fn an_unevaluated_policy_kind_makes_every_verdict_unproven_unless_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let calico = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: c, namespace: shop}\n";
    let policies = file(&directory, "p.yaml", format!("{DENY_ALL}---\n{calico}"));
    let flows = file(&directory, "f.csv", "src,dst,protocol,port\ndata/postgres-0,shop/cart-1,TCP,1\n");
    let args = ["check", "--flows", &flows, "--policies", &policies, "--inventory", "cluster.yaml", "-o", "csv"];
    let answer = guardrail(&args);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains("NetworkPolicy shop/c"), "{}", answer.stderr);
    assert_eq!(answer.stdout.lines().nth(1), Some("data/postgres-0,shop/cart-1,TCP,1,unproven,deny,-"));
    let answer = guardrail(&[&args[..], &["--allow-unproven"]].concat());
    assert_eq!(
        (answer.code, answer.stdout.lines().nth(1)),
        (1, Some("data/postgres-0,shop/cart-1,TCP,1,denied,deny,-"))
    );
    let explain = [
        "explain",
        "--policies",
        &policies,
        "--inventory",
        "cluster.yaml",
        "--from",
        "data/postgres-0",
        "--to",
        "shop/cart-1",
        "--port",
        "1",
    ];
    assert_eq!(guardrail(&explain).code, 2);
}

#[test]
fn flows_to_service_addresses_are_judged_at_the_pods_behind_and_those_to_finished_pods_are_unproven() {
    let flows = "src,dst,protocol,port\nshop/frontend-1,10.96.0.7,TCP,80\nshop/frontend-1,shop/report-1,TCP,80\n";
    let args =
        ["check", "--flows", "-", "--policies", "shop-policies.yaml", "--inventory", "cluster.yaml", "-o", "csv"];
    let answer = with_stdin(&args, flows);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    let rows: Vec<&str> = answer.stdout.lines().skip(1).collect();
    assert_eq!(
        rows,
        ["shop/frontend-1,10.96.0.7,TCP,80,allowed,shop/cart#1,-", "shop/frontend-1,shop/report-1,TCP,80,unproven,-,-"]
    );
    assert!(answer.stderr.contains("10.96.0.7 is the address of Service shop/cart: judged at the pods behind it"));
}

#[test]
fn policies_of_the_inventory_apply_unless_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = fs::read_to_string(data().join("cluster.yaml")).unwrap();
    let inventory = file(&directory, "i.yaml", format!("{cluster}---\n{DENY_ALL}"));
    let flows = "src,dst,protocol,port\ndata/postgres-0,shop/frontend-1,TCP,1\n";
    let nothing = file(&directory, "none.yaml", "");
    let check = |policies: &str| {
        with_stdin(&["check", "--flows", "-", "--policies", policies, "--inventory", &inventory], flows)
    };
    let answer = check(&nothing);
    assert_eq!(answer.code, 1, "{}", answer.stdout);
    assert!(answer.stderr.contains("1 NetworkPolicy of the inventory"), "{}", answer.stderr);
    let open = file(&directory, "open.yaml", DENY_ALL.replace("{}\n", "{ingress: [{}]}\n"));
    assert_eq!(check(&open).code, 0);
}

#[test]
fn policies_are_found_below_directories() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("shop")).unwrap();
    file(&directory, "shop/deny.yml", DENY_ALL);
    file(&directory, "kustomization.yaml", "resources: [shop/deny.yml]\n");
    file(&directory, "evidence.json", "{\"rules\": []}\n");
    file(&directory, "notes.txt", "not: [yaml\n");
    let args = [
        "check",
        "--flows",
        "-",
        "--policies",
        directory.path().to_str().unwrap(),
        "--inventory",
        "cluster.yaml",
        "-o",
        "csv",
    ];
    let answer = with_stdin(&args, "src,dst,protocol,port\n1.2.3.4,shop/cart-1,UDP,9\n");
    assert_eq!(
        (answer.code, answer.stdout.lines().nth(1)),
        (1, Some("1.2.3.4,shop/cart-1,UDP,9,denied,deny,-")),
        "{}",
        answer.stderr
    );
}

#[test]
fn bad_policy_files_exit_2_with_file_and_line_and_print_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let spec = |spec: &str| {
        format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
    };
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(",")));
    }
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("malformed.yaml", b"spec: [\n  {".to_vec()),
        ("kind.yaml", b"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n".to_vec()),
        ("selector.yaml", spec("{podSelector: {matchExpressions: [{key: a, operator: Like}]}}").into_bytes()),
        ("cidr.yaml", spec("{ingress: [{from: [{ipBlock: {cidr: 10.0.0/8}}]}]}").into_bytes()),
        ("zero.yaml", spec("{ingress: [{ports: [{port: 0}]}]}").into_bytes()),
        ("large.yaml", spec("{ingress: [{ports: [{port: 70000}]}]}").into_bytes()),
        ("quoted.yaml", spec("{ingress: [{ports: [{port: \"80\"}]}]}").into_bytes()),
        ("conflict.yaml", format!("{}---\n{}", spec("{}"), spec("{ingress: [{}]}")).into_bytes()),
        ("deep.yaml", vec![b'['; 1 << 20]),
        ("bomb.yaml", bomb.into_bytes()),
        ("binary.yaml", (0..=255).cycle().take(4096).collect()),
        (
            "huge.yaml",
            b"# filler filler filler filler filler filler filler filler filler filler filler filler filler filler\n"
                .repeat(1 << 20),
        ),
    ];
    let flows = file(&directory, "f.csv", "src,dst,protocol,port\n1.1.1.1,2.2.2.2,TCP,1\n");
    for (name, content) in cases {
        let policies = file(&directory, name, content);
        let answer = guardrail(&["check", "--flows", &flows, "--policies", &policies, "-o", "csv"]);
        assert_eq!((answer.code, answer.stdout.as_str()), (2, ""), "{name}: {}", answer.stderr);
        let place = answer
            .stderr
            .strip_prefix(&format!("error: {policies}:"))
            .unwrap_or_else(|| panic!("{name}: {}", answer.stderr));
        let line: u32 = place.split(':').next().unwrap().parse().unwrap();
        assert!(line > 0 && answer.stderr.len() < 700, "{name}: {}", answer.stderr);
        if name != "quoted.yaml" {
            assert_eq!(guardrail(&["lint", &policies]).code, 2, "{name}");
        }
        fs::remove_file(&policies).unwrap();
    }
}

#[test]
fn bad_flows_snapshots_and_arguments_exit_2() {
    let directory = tempfile::tempdir().unwrap();
    let check = |flows: &str| {
        let args =
            ["check", "--flows", "-", "--policies", "shop-policies.yaml", "--inventory", "cluster.yaml", "-o", "csv"];
        let answer = with_stdin(&args, flows);
        assert_eq!((answer.code, answer.stdout.as_str()), (2, ""), "{flows}: {}", answer.stderr);
        answer.stderr
    };
    let unknown = check("src,dst,protocol,port\nshop/cart-1,shop/nobody,TCP,1\n");
    assert!(unknown.starts_with("error: stdin:2: the inventory has no pod `shop/nobody`"), "{unknown}");
    let malformed = check("src,dst,protocol,port\nshop/cart-1,cart,TCP,1\n");
    assert!(malformed.starts_with("error: stdin:2: `cart` is neither namespace/pod nor an IP address"), "{malformed}");
    check("");
    check("a,b\n");
    check("src,dst,protocol,port\nshop/cart-1,shop/cart-1,TCP,80000\n");

    let truncated = file(&directory, "t.json", "{\"apiVersion\": \"guardrail.dev/v2\",\n");
    for bad in [truncated.as_str(), "cluster.yaml", "nowhere.json", "http://127.0.0.1:1/v1/graph"] {
        for command in [&["graph", bad][..], &["merge", bad], &["check", bad, "--policies", "shop-policies.yaml"]] {
            let answer = guardrail(command);
            assert_eq!((answer.code, answer.stdout.as_str()), (2, ""), "{command:?}: {}", answer.stderr);
            assert!(answer.stderr.starts_with("error: ") && answer.stderr.contains(bad), "{}", answer.stderr);
        }
    }
    for usage in [&["check"][..], &["check", "shop.json"], &["graph"], &["nonsense"], &["explain", "--port", "0"]] {
        assert_eq!(guardrail(usage).code, 2, "{usage:?}");
    }
    let missing = directory.path().join("no/such/directory/out.json");
    assert_eq!(guardrail(&["merge", "shop.json", "--output", missing.to_str().unwrap()]).code, 2);
}

#[test]
fn a_snapshot_is_read_from_a_url() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/graph", listener.local_addr().unwrap());
    let body = fs::read_to_string(data().join("shop.json")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
            request.push(byte[0]);
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
        String::from_utf8(request).unwrap()
    });
    let answer = guardrail(&["graph", &url, "-o", "json"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(server.join().unwrap().starts_with("GET /v1/graph?since=1970-01-01&facts "));
    assert_eq!(answer.stdout, guardrail(&["graph", "shop.json", "-o", "json"]).stdout);
}

#[test]
fn every_help_page_fits_and_every_shell_gets_completions() {
    for command in ["graph", "merge", "check", "explain", "lint", "export", "completions"] {
        let answer = guardrail(&[command, "--help"]);
        assert_eq!(answer.code, 0);
        assert!(answer.stdout.lines().all(|l| l.chars().count() <= 100), "{}", answer.stdout);
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let answer = guardrail(&["completions", shell]);
        assert!(answer.code == 0 && answer.stdout.contains("guardrail"), "{shell}");
    }
}
