//! `guardrail ui` as a browser meets it: who gets the page, and what it is told.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

mod common;

use common::{data, guardrail};

/// A server, ended when dropped.
struct Ui {
    child: Child,
    /// `127.0.0.1:PORT`.
    host: String,
    token: String,
}

impl Ui {
    fn start(directory: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_guardrail"))
            .arg("ui")
            .args(args)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let rest = line.trim_end().strip_prefix("http://").unwrap().strip_suffix('/').unwrap();
        let (host, token) = rest.split_once('/').unwrap();
        Self { child, host: host.to_owned(), token: token.to_owned() }
    }

    /// Status and everything behind it, of a request with these lines.
    fn ask(&self, method: &str, path: &str, host: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (first, rest) = answer.split_once("\r\n").unwrap();
        (first.split(' ').nth(1).unwrap().parse().unwrap(), rest.to_owned())
    }

    fn get(&self, name: &str) -> (u16, String) {
        self.ask("GET", &format!("/{}/{name}", self.token), &self.host)
    }

    fn document(&self) -> Value {
        let (status, rest) = self.get("document.json");
        assert_eq!(status, 200, "{rest}");
        serde_json::from_str(rest.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// The document once it is as wanted.
    fn until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            let document = self.document();
            if wanted(&document) {
                return document;
            }
            assert!(Instant::now() < limit, "the page stays {document}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _code = self.child.wait();
    }
}

/// A directory with the shop's snapshot and its policies of default-deny.
fn shop() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let policies = directory.path().join("policies");
    let args = ["export", "shop.json", "--phase", "default-deny", "--min-window", "0s", "--accept-inferred", "-d"];
    let (code, _, stderr) = guardrail(&[&args[..], &[policies.to_str().unwrap()]].concat());
    assert_eq!(code, 0, "{stderr}");
    fs::copy(data().join("shop.json"), directory.path().join("shop.json")).unwrap();
    (directory, policies)
}

fn name(peer: &Value) -> String {
    let part = |key: &str| peer[key].as_str().map(str::to_owned);
    match peer["kind"].as_str().unwrap() {
        "Workload" => {
            format!("{}/{}/{}", part("namespace").unwrap(), part("owner").unwrap(), part("name").unwrap())
        }
        "Node" => format!("node/{}", part("name").unwrap()),
        _ => format!("external/{}", part("address").unwrap()),
    }
}

#[test]
fn only_who_knows_the_address_gets_the_page() {
    let (directory, _) = shop();
    let ui = Ui::start(directory.path(), &["shop.json"]);
    assert!(ui.host.starts_with("127.0.0.1:"), "{}", ui.host);
    assert_eq!(ui.token.len(), 32);
    for path in ["", "page.js", "page.css", "document.json"] {
        let (status, rest) = ui.get(path);
        assert_eq!(status, 200, "{path}");
        let head = rest.split_once("\r\n\r\n").unwrap().0.to_ascii_lowercase();
        assert!(head.contains("content-security-policy: default-src 'self';"), "{head}");
        assert!(head.contains("referrer-policy: no-referrer"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        let other = format!("/{}/{path}", "0".repeat(32));
        for path in [format!("/{path}"), other, format!("/{}{path}", &ui.token[..31])] {
            let (status, rest) = ui.ask("GET", &path, &ui.host);
            assert_eq!(status, 404, "{path}");
            assert!(!rest.contains("postgres"));
        }
    }
    let path = format!("/{}/document.json", ui.token);
    let port = ui.host.rsplit_once(':').unwrap().1;
    for host in
        ["attacker.example".to_owned(), format!("attacker.example:{port}"), "127.0.0.1".to_owned(), String::new()]
    {
        assert_eq!(ui.ask("GET", &path, &host).0, 421, "{host}");
    }
    assert_eq!(ui.ask("GET", &path, &format!("localhost:{port}")).0, 200);
    assert_eq!(ui.ask("POST", &path, &ui.host).0, 405);
    assert_eq!(ui.get("../document.json").0, 404);
    assert_ne!(Ui::start(directory.path(), &["shop.json"]).token, ui.token);
}

#[test]
fn the_page_says_of_policies_what_the_commands_say() {
    let (directory, policies) = shop();
    // One caller loses its rule.
    let file = policies.join("data.guardrail-allow-statefulset-postgres.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let changed = text.replacen("app: cart", "app: somebody-else", 1);
    assert_ne!(changed, text);
    fs::write(&file, changed).unwrap();
    let policies = policies.to_str().unwrap();
    let ui = Ui::start(directory.path(), &["shop.json", "--policies", policies, "--now", "2026-03-01T12:00:00Z"]);
    let document = ui.document();

    let (_, checked, _) = guardrail(&["check", "shop.json", "--policies", policies, "-o", "json", "--allow-partial"]);
    let checked: Value = serde_json::from_str(&checked).unwrap();
    let (peers, edges) = (document["peers"].as_array().unwrap(), document["edges"].as_array().unwrap());
    let mut denied = 0;
    for flow in checked["flows"].as_array().unwrap() {
        let edge = edges.iter().find(|edge| {
            let end = |key: &str| name(&peers[usize::try_from(edge[key].as_u64().unwrap()).unwrap()]);
            end("client") == flow["src"]
                && end("server") == flow["dst"]
                && edge["port"] == flow["port"]
                && edge["protocol"] == flow["protocol"]
                && edge["supported"] == true
        });
        let edge = edge.unwrap_or_else(|| panic!("{flow} is no edge of the page"));
        assert_eq!(edge["verdict"]["verdict"], flow["verdict"], "{flow}");
        let by = edge["verdict"]["ingress"]["by"].as_array().cloned().unwrap_or_default();
        let by: Vec<&str> = by.iter().filter_map(Value::as_str).collect();
        match flow["ingress_by"].as_str().unwrap() {
            "-" => assert_eq!(edge["verdict"]["ingress"]["state"], "open"),
            "deny" => {
                assert_eq!(edge["verdict"]["ingress"]["state"], "denied");
                assert!(!by.is_empty() && by.iter().all(|by| !by.contains('#')), "{by:?}");
            }
            rules => assert_eq!(by.join(";"), rules),
        }
        denied += usize::from(flow["verdict"] == "denied");
        // All of it was seen and is supported: default-deny keeps it.
        assert_eq!(edge["after_default_deny"], true, "{flow}");
    }
    assert_eq!(denied, 1, "{checked}");
    assert!(edges.iter().any(|edge| edge["supported"] == false && edge["after_default_deny"] == false));

    let now = ["--now", "2026-03-01T12:00:00Z"];
    let (_, status, _) =
        guardrail(&[&["status", "shop.json", "--policies", policies, "-o", "json"][..], &now].concat());
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(document["status"], status["namespaces"]);
    let (_, drift, _) = guardrail(&["drift", "shop.json", "--policies", policies, "-o", "json", "--allow-partial"]);
    let drift: Value = serde_json::from_str(&drift).unwrap();
    assert_eq!(document["drift"]["findings"], drift["findings"]);
    let (_, blocked, _) = guardrail(&["blocked", "shop.json", "--policies", policies, "-o", "json", "--allow-partial"]);
    let blocked: Value = serde_json::from_str(&blocked).unwrap();
    assert_eq!(document["blocked"], blocked["blocked"]);
    assert!(!document["blocked"].as_array().unwrap().is_empty());
    let postgres = peers.iter().find(|peer| peer["name"] == "postgres").unwrap();
    assert_eq!(postgres["policies"]["ingress_isolated"], postgres["policies"]["pods"]);
}

#[test]
fn what_is_named_is_read_again_and_a_source_that_fails_keeps_what_it_gave() {
    let (directory, _) = shop();
    let copy = directory.path().join("other.json");
    fs::copy(directory.path().join("shop.json"), &copy).unwrap();
    let ui = Ui::start(directory.path(), &["shop.json", "other.json", "--refresh", "1"]);
    let first = ui.document();
    assert_eq!(first["sources"].as_array().unwrap().len(), 2);
    let edges = first["edges"].as_array().unwrap().len();
    fs::write(&copy, "{ broken").unwrap();
    let failed = ui.until(|document| document["sources"][1]["problem"].is_string());
    assert_eq!(failed["edges"].as_array().unwrap().len(), edges);
    assert!(failed["sources"][0]["problem"].is_null(), "{failed}");
    let since = failed["sources"][1]["read"].as_str().unwrap().to_owned();
    let later = ui.until(|document| document["sources"][0]["read"].as_str() > Some(since.as_str()));
    assert_eq!(later["sources"][1]["read"], since.as_str());
    fs::copy(directory.path().join("shop.json"), &copy).unwrap();
    ui.until(|document| document["sources"][1]["problem"].is_null());
}

#[test]
fn what_cannot_be_read_at_the_start_is_an_error() {
    let (code, stdout, stderr) = guardrail(&["ui", "no-such-file.json"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("no-such-file.json"), "{stderr}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, stdout, stderr) = guardrail(&["ui", "shop.json", "--port", &port]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains(&format!("cannot listen on 127.0.0.1:{port} (--port)")), "{stderr}");
}

/// Signals are the way to end it: that is no failure.
#[cfg(unix)]
#[test]
fn it_ends_when_it_is_asked_to() {
    let (directory, _) = shop();
    for signal in ["-INT", "-TERM"] {
        let mut ui = Ui::start(directory.path(), &["shop.json"]);
        // Signals are handled once it serves.
        ui.document();
        let killed = Command::new("kill").args([signal, &ui.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(ui.child.wait().unwrap().code(), Some(0), "{signal}");
    }
}
