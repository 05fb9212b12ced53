//! A pod that reaches everything: it costs itself its details, and nobody else anything; the export
//! names it.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use guardrail_tests::{
    agent::{Agent, guardrail},
    app::scenario::{Call, How, Measured, Scenario, Serve},
    bins,
    cluster::inventory,
    compare::{edges, happened, number, peer},
    policies,
    small::{cluster, deployment, eventually, go, lab, start, truth},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// Who is incomplete, and why: a pair for each reason.
fn reasons(snapshot: &Value) -> BTreeSet<(String, String)> {
    let all = snapshot["coverage"]["workloads"].as_array().cloned().unwrap_or_default();
    let of = |w: &Value| w["reasons"].as_array().cloned().unwrap_or_default();
    all.iter()
        .flat_map(|w| of(w).into_iter().map(|r| (peer(&w["peer"]), r.as_str().unwrap_or_default().to_owned())))
        .collect()
}

/// `count` targets from `first` on, each connected to once and reset at once, by `threads` threads,
/// without a log.
fn scan(first: Ipv4Addr, count: u32, threads: u32) -> impl Iterator<Item = Call> {
    (0..threads).map(move |part| {
        let from = Ipv4Addr::from(u32::from(first) + part * (count / threads));
        let mut call = Call::new(&format!("{from}:443"), How::Measured(Measured::Reset), count / threads).pause(0, 0);
        call.spread = count / threads;
        call
    })
}

#[test]
fn a_scanner_of_50_000_targets_costs_only_itself_its_details() {
    if !bins::can_run("a scanner") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let scanner = deployment(&mut c, "scanner", 8080, 0);
    let steady = deployment(&mut c, "steady", 8080, 0);
    let newcomer = deployment(&mut c, "newcomer", 8080, 0);
    let api = deployment(&mut c, "api", 8080, 0);
    let to = format!("{}:8080", c.pod(&api).addresses.0);
    let lab = lab(c).unwrap();
    // Half of the targets are on the internet, half in the cluster's own pod range, where nobody
    // has these addresses; something answers everywhere.
    lab.internet.ip("route add local 10.244.128.0/17 dev lo\n").unwrap();
    let wide = inventory::yaml(&lab.cluster).replace("10.244.0.0/24", "10.244.0.0/16");
    fs::write(lab.inventory(), wide).unwrap();
    let everything = Serve::Measured { bind: "[::]:443".parse().unwrap() };
    let internet =
        lab.start_on_internet("everything", Scenario { serve: vec![everything], ..Scenario::default() }).unwrap();
    internet.wait_for("ready", Instant::now() + LIMIT).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let calls = |times| Scenario { after: vec![Call::new(&to, How::Tcp, times).pause(2, 6)], ..Scenario::default() };
    let targets = scan(Ipv4Addr::new(100, 64, 0, 0), 25_000, 2).chain(scan(Ipv4Addr::new(10, 244, 128, 0), 25_000, 2));
    let scanning = Scenario { after: targets.collect(), ..Scenario::default() };
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let mut processes = start(&lab, vec![(&api, serve), (&steady, calls(400)), (&scanner, scanning)]).unwrap();
    processes.iter_mut().for_each(|p| p.go().unwrap());
    // In the middle of it all somebody new.
    let mut late = start(&lab, vec![(&newcomer, calls(50))]).unwrap();
    go(&mut late).unwrap();
    for process in &processes[1..] {
        process.wait_for("done", Instant::now() + LIMIT).unwrap();
    }
    let truth = truth(&lab).unwrap();
    assert_eq!(truth.edges.values().map(|e| e.opened).collect::<Vec<_>>(), [50, 400]);
    let whole = |s: &Value| {
        let observed = edges(s);
        for (edge, evidence) in &truth.edges {
            let opened = observed.get(edge).map_or(0, |v| number(v, "opened"));
            if opened != evidence.opened {
                return Err(format!("{edge}: {opened}, not {}", evidence.opened));
            }
        }
        let pending = agent.metric("guardrail_flows_pending").map_err(|e| e.to_string())?;
        if pending > 0.0 { Err(format!("{pending} flows wait")) } else { Ok(()) }
    };
    let snapshot = eventually(LIMIT, || agent.snapshot(), whole).unwrap();
    let blamed = reasons(&snapshot);
    assert!(blamed.iter().all(|(workload, _)| workload == "lab/Deployment/scanner"), "{blamed:?}");
    assert!(blamed.iter().any(|(_, reason)| reason == "coarse_client"), "{blamed:?}");
    // Nothing is invented, nothing inside the pod range became an address.
    for (edge, _) in edges(&snapshot).iter().filter(|(e, v)| happened(v) && !truth.edges.contains_key(*e)) {
        assert_eq!(edge.client, "lab/Deployment/scanner", "{edge}");
        assert!(edge.server.starts_with("external/100.") || edge.server == "external/*", "{edge}");
    }
    let unresolved: u64 =
        snapshot["coverage"]["unresolved"].as_array().unwrap().iter().map(|u| number(u, "count")).sum();
    let entries = agent.metric("guardrail_kernel_map_entries").unwrap();
    let peak = agent.memory_kib("VmHWM").unwrap() / 1024;
    eprintln!("{} edges, {unresolved} unresolved, {entries} map entries, peak {peak} MiB", edges(&snapshot).len());
    assert!(entries <= agent.metric("guardrail_kernel_map_capacity").unwrap() * 0.9, "{entries}");
    assert!(peak < 160, "{peak} MiB");
}

#[test]
fn a_pod_that_completes_handshakes_with_everything_is_reported_and_can_be_left_out_of_the_policies() {
    const PORTS: u16 = 30;
    if !bins::can_run("a client of everything") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let intruder = deployment(&mut c, "intruder", 8080, 0);
    let server = deployment(&mut c, "server", 9000, 0);
    let clients: Vec<_> = (0..3).map(|i| deployment(&mut c, &format!("client-{i}"), 8080, 0)).collect();
    let address = c.pod(&server).addresses.0;
    let lab = lab(c).unwrap();
    let to = |port: u16| Call::new(&format!("{address}:{port}"), How::Tcp, 1);
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let serve = Scenario { serve: (0..PORTS).map(|n| Serve::tcp(9000 + n)).collect(), ..Scenario::default() };
    let everywhere = Scenario { after: (0..PORTS).map(|n| to(9000 + n)).collect(), ..Scenario::default() };
    let mut all = vec![(server.as_str(), serve), (&intruder, everywhere)];
    all.extend(clients.iter().map(|c| (c.as_str(), Scenario { after: vec![to(9000)], ..Scenario::default() })));
    let mut processes = start(&lab, all).unwrap();
    go(&mut processes).unwrap();
    let truth = truth(&lab).unwrap();
    let complete = |s: &Value| guardrail_tests::small::same(&guardrail_tests::compare::compare(s, &truth));
    let snapshot = eventually(LIMIT, || agent.snapshot(), complete).unwrap();
    let file = lab.directory.join("graph.json");
    fs::write(&file, snapshot.to_string()).unwrap();

    let export = |name: &str, more: &[&str]| {
        let directory = lab.directory.join(name);
        let (file, out) = (file.to_str().unwrap(), directory.to_str().unwrap());
        let fixed = ["export", file, "--phase", "default-deny", "--min-window", "0s", "-d", out];
        let output = guardrail(fixed.iter().chain(more)).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (policies::read(&directory).unwrap(), fs::read_to_string(directory.join("REPORT.md")).unwrap())
    };
    let lets_in = |files: &[(String, Vec<Value>)], client: &str, port: u16| {
        let (client, server) = (("lab", vec![("app", client)]), ("lab", vec![("app", "server")]));
        policies::allows_ingress(files, &client, &server, "TCP", port, "main")
    };
    let (files, report) = export("all", &[]);
    let section = report.split("## ").find(|s| s.starts_with("Clients with unusually many servers")).unwrap();
    let lines: Vec<_> = section.lines().filter(|l| l.starts_with("- ")).collect();
    assert_eq!(lines.len(), 1, "{section}");
    assert!(lines[0].contains("lab/Deployment/intruder") && lines[0].contains(" 30 "), "{section}");
    assert!(lets_in(&files, "intruder", 9000) && lets_in(&files, "client-0", 9000));

    let (files, report) = export("without", &["--ignore-client", "lab/intruder"]);
    assert!((0..PORTS).all(|n| !lets_in(&files, "intruder", 9000 + n)), "the intruder is let in");
    assert!(lets_in(&files, "client-0", 9000) && lets_in(&files, "client-2", 9000));
    assert!(!lets_in(&files, "client-0", 9001), "what only the intruder used is closed");
    assert!(report.contains("client ignored"), "{report}");
}
