//! What names pods goes away or becomes nonsense: what was known stays, what cannot be named is
//! counted, and it recovers by itself.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use guardrail_tests::{
    agent::Agent,
    apiserver::{ApiServer, Fault},
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    cluster::inventory,
    compare::{edges, happened, number},
    lab::{Lab, wait_until},
    small::{cluster, deployment, eventually, eventually_true, go, lab, pair, start, truth},
};

const LIMIT: Duration = Duration::from_secs(40);

/// An address in the node's namespace where an API server may come to be, and a kubeconfig that
/// names it.
fn nobody_there(lab: &Lab) -> (SocketAddr, PathBuf) {
    let (server, kubeconfig) = api_server(lab, 0, "127.0.0.1:0".parse().unwrap());
    let address = server.url()["http://".len()..].parse().unwrap();
    drop(server);
    (address, kubeconfig)
}

fn api_server(lab: &Lab, node: usize, address: SocketAddr) -> (ApiServer, PathBuf) {
    api_server_with(lab, node, address, &inventory::objects(&lab.cluster))
}

fn api_server_with(lab: &Lab, node: usize, address: SocketAddr, objects: &[serde_json::Value]) -> (ApiServer, PathBuf) {
    // The port of one that ended may be waiting out its last connections.
    let listener = || lab.nodes[node].netns.run(|| TcpListener::bind(address)).ok();
    let listener = wait_until(LIMIT, "the API server's address is free", listener).unwrap();
    let server = ApiServer::serving(listener, objects).unwrap();
    let path = lab.directory.join("kubeconfig");
    fs::write(&path, server.kubeconfig(None)).unwrap();
    (server, path)
}

#[test]
fn an_inventory_file_that_becomes_nonsense_or_goes_away_is_counted_and_the_last_good_one_kept() {
    if !bins::can_run("an inventory that becomes nonsense") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let failures = |why: &str| {
        agent.metric(&format!(r#"guardrail_inventory_failures_total{{kind="file",reason="{why}"}}"#)).unwrap()
    };
    assert_eq!((failures("malformed"), failures("unreadable")), (0.0, 0.0));
    fs::write(lab.inventory(), b"kind: Pod\nmetadata: [unclosed\n").unwrap();
    wait_until(LIMIT, "the nonsense is counted", || (failures("malformed") > 0.0).then_some(())).unwrap();
    go(&mut processes).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    fs::remove_file(lab.inventory()).unwrap();
    wait_until(LIMIT, "its absence is counted, each time it is looked for", || {
        (failures("unreadable") >= 2.0).then_some(())
    })
    .unwrap();
    processes[1].go().unwrap();
    processes[1].wait_for_nth("done", 2, Instant::now() + LIMIT).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    // Said once each, however often it is tried.
    let said = || agent.said().lines().filter(|l| l.contains("keeping the inventory known before")).count();
    assert_eq!(said(), 2, "{}", agent.said());
    lab.write_inventory().unwrap();
    wait_until(LIMIT, "the good one is taken", || agent.said().contains("inventory changed").then_some(())).unwrap();
}

#[test]
fn an_inventory_file_that_cannot_be_read_for_a_moment_is_read_again_although_it_does_not_change() {
    if !bins::can_run("an inventory that cannot be read for a moment") {
        return;
    }
    let (mut processes, mut lab) = pair().unwrap();
    // The client is not in the first inventory.
    lab.cluster.pods[1].present = false;
    lab.write_inventory().unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    lab.cluster.pods[1].present = true;
    // Files without their bytes: a directory of that name is as unreadable for root as for anybody.
    let (there, aside) = (lab.inventory(), lab.directory.join("aside"));
    fs::rename(&there, &aside).unwrap();
    lab.write_inventory().unwrap();
    let whole = fs::read(&there).unwrap();
    fs::remove_file(&there).unwrap();
    fs::create_dir(&there).unwrap();
    let series = r#"guardrail_inventory_failures_total{kind="file",reason="unreadable"}"#;
    wait_until(LIMIT, "the failure is counted", || agent.metric(series).ok().filter(|n| *n >= 1.0)).unwrap();
    fs::remove_dir(&there).unwrap();
    fs::write(&there, whole).unwrap();
    go(&mut processes).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap_or_else(|e| panic!("{e:#}\n{}", agent.said()));
}

/// Started while the API server is away: pods cannot be named, and no address of theirs may pass
/// for somebody outside the cluster.
#[test]
fn an_agent_that_starts_without_its_api_server_invents_no_name_and_recovers_when_it_comes() {
    if !bins::can_run("a start without the API server") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c).unwrap();
    let (address, kubeconfig) = nobody_there(&lab);
    let args = ["--inventory", "kube", "--kubeconfig", kubeconfig.to_str().unwrap()];
    let agent = Agent::spawn(&lab, 0, &args).unwrap();
    wait_until(LIMIT, "it answers, and is not ready", || {
        let (status, page) = agent.get("/readyz").ok()?;
        (status == 503 && page.contains("list of pods pending")).then_some(())
    })
    .unwrap();
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let calls = |times| Scenario { after: vec![Call::new(&to, How::Tcp, times)], ..Scenario::default() };
    // A pod, and a process of the node itself as kubelet is one.
    let mut processes = start(&lab, vec![(&server, serve), (&client, calls(7))]).unwrap();
    let probe = lab.start_on_node(0, "kubelet", calls(5)).unwrap();
    probe.wait_for("ready", Instant::now() + LIMIT).unwrap();
    processes.push(probe);
    go(&mut processes).unwrap();
    // Every wait is over before the API server comes.
    let counted = |snapshot: &serde_json::Value| {
        let invented: Vec<_> = edges(snapshot).keys().map(ToString::to_string).collect();
        assert!(invented.is_empty(), "{invented:?}");
        let unresolved = snapshot["coverage"]["unresolved"].as_array().cloned().unwrap_or_default();
        let sum: u64 = unresolved.iter().map(|u| number(u, "count")).sum();
        // Seven seen at both ends, five by the node at its own and at the server's.
        if sum == 24 { Ok(()) } else { Err(format!("{unresolved:?}")) }
    };
    let snapshot = eventually(LIMIT, || agent.snapshot(), counted).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], false, "{}", snapshot["coverage"]);
    assert_eq!(agent.metric("guardrail_flows_pending").unwrap(), 0.0);
    let failed = agent.metric(r#"guardrail_inventory_failures_total{kind="pods",reason="transport"}"#).unwrap();
    assert!(failed >= 1.0, "{failed}");

    let (_server, _) = api_server(&lab, 0, address);
    wait_until(LIMIT, "it is ready", || (agent.get("/readyz").ok()?.0 == 200).then_some(())).unwrap();
    for process in &mut processes[1..] {
        process.go().unwrap();
        process.wait_for_nth("done", 2, Instant::now() + LIMIT).unwrap();
    }
    let wanted = [("lab/Deployment/client", 7), ("node/node-a", 5)];
    eventually(
        LIMIT,
        || agent.snapshot(),
        |snapshot| {
            let observed = edges(snapshot);
            let found: Vec<_> = observed
                .iter()
                .filter(|(_, v)| happened(v))
                .map(|(e, v)| (e.client.as_str(), e.server.as_str(), number(v, "opened")))
                .collect();
            let expected: Vec<_> = wanted.iter().map(|(c, n)| (*c, "lab/Deployment/server", *n)).collect();
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        },
    )
    .unwrap();
}

/// The list of nodes, by whose ranges another node's pod is told from an external peer, comes long
/// after all others.
#[test]
fn another_nodes_pod_is_no_external_peer_while_the_list_of_nodes_is_awaited() {
    if !bins::can_run("a list of nodes that comes late") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 1);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c).unwrap();
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let _server = start(&lab, vec![(&server, serve)]).unwrap();
    let calls = Scenario {
        before: vec![Call::new(&to, How::Held, 2)],
        after: vec![Call::new(&to, How::Tcp, 3)],
        ..Scenario::default()
    };
    let mut processes = start(&lab, vec![(&client, calls)]).unwrap();
    let (api, kubeconfig) = api_server(&lab, 1, "127.0.0.1:0".parse().unwrap());
    api.fault("nodes", Fault::Status { code: 503, retry_after: Some(4) });
    let args = ["--inventory", "kube", "--kubeconfig", kubeconfig.to_str().unwrap(), "--inventory-scope", "node"];
    let agent = Agent::spawn(&lab, 1, &args).unwrap();
    wait_until(LIMIT, "only the nodes are awaited", || {
        let (_, page) = agent.get("/readyz").ok()?;
        let pending: Vec<_> = page.lines().filter(|line| line.starts_with("[-] list of ")).collect();
        (pending == ["[-] list of nodes pending"]).then_some(())
    })
    .unwrap();
    go(&mut processes).unwrap();
    let remote = |snapshot: &serde_json::Value| {
        let invented: Vec<_> = edges(snapshot).keys().map(ToString::to_string).collect();
        assert!(invented.is_empty(), "{invented:?}");
        let flows = snapshot["remote_flows"].as_array().cloned().unwrap_or_default();
        let sources = || flows.iter().flat_map(|flow| flow["sources"].as_array().into_iter().flatten());
        let sum = |key| sources().map(|source| number(source, key)).sum::<u64>();
        (sum("found"), sum("opened"))
    };
    assert_eq!(remote(&agent.snapshot().unwrap()), (0, 0));
    wait_until(LIMIT, "it is ready", || (agent.get("/readyz").ok()?.0 == 200).then_some(())).unwrap();
    let all = |snapshot: &serde_json::Value| match remote(snapshot) {
        (2, 3) => Ok(()),
        other => Err(format!("{other:?}: {snapshot}")),
    };
    eventually(LIMIT, || agent.snapshot(), all).unwrap();
    assert_eq!(agent.metric(r#"guardrail_flows_unresolved_total{reason="cluster_unknown"}"#).unwrap(), 0.0);
}

/// Away for longer than any request waits: pods that come meanwhile are not known, those that were
/// stay, and nothing has to be restarted.
#[test]
fn an_api_server_that_is_long_away_costs_the_names_of_new_pods_only_and_for_that_time_only() {
    if !bins::can_run("an API server that is long away") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let young = deployment(&mut c, "young", 8080, 0);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let mut lab = lab(c).unwrap();
    let index = lab.cluster.pods.iter().position(|p| p.key() == young).unwrap();
    lab.cluster.pods[index].present = false;
    let (api, kubeconfig) = api_server(&lab, 0, "127.0.0.1:0".parse().unwrap());
    let address: SocketAddr = api.url()["http://".len()..].parse().unwrap();
    let agent = Agent::start(&lab, 0, &["--inventory", "kube", "--kubeconfig", kubeconfig.to_str().unwrap()]).unwrap();
    drop(api);
    lab.cluster.pods[index].present = true;
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let calls = || Scenario { after: vec![Call::new(&to, How::Tcp, 10)], ..Scenario::default() };
    let mut processes = start(&lab, vec![(&server, serve), (&client, calls()), (&young, calls())]).unwrap();
    go(&mut processes).unwrap();
    let observed = |snapshot: &serde_json::Value| -> Vec<(String, u64)> {
        let all = edges(snapshot);
        all.iter().filter(|(_, v)| happened(v)).map(|(e, v)| (e.client.clone(), number(v, "opened"))).collect()
    };
    let known = ("lab/Deployment/client".to_owned(), 10);
    eventually(
        LIMIT,
        || agent.snapshot(),
        |snapshot| {
            let (found, unresolved) = (observed(snapshot), &snapshot["coverage"]["unresolved"]);
            let counted: u64 = unresolved.as_array().into_iter().flatten().map(|u| number(u, "count")).sum();
            // The young pod's ten, at both ends.
            if found == [known.clone()] && counted == 20 { Ok(()) } else { Err(format!("{found:?}, {unresolved}")) }
        },
    )
    .unwrap();
    // What was known before is still what it was, and says so.
    assert_eq!(agent.get("/readyz").unwrap().0, 200);
    let age = agent.metric(r#"guardrail_inventory_age_seconds{kind="pods"}"#).unwrap();
    assert!(age >= 5.0, "{age}");

    let (_api, _) = api_server(&lab, 0, address);
    wait_until(LIMIT, "it hears of the young pod", || {
        (agent.metric(r#"guardrail_inventory_age_seconds{kind="pods"}"#).ok()? < age).then_some(())
    })
    .unwrap();
    processes[2].go().unwrap();
    processes[2].wait_for_nth("done", 2, Instant::now() + LIMIT).unwrap();
    let young = ("lab/Deployment/young".to_owned(), 10);
    eventually(
        LIMIT,
        || agent.snapshot(),
        |snapshot| {
            let found = observed(snapshot);
            if found == [known.clone(), young.clone()] { Ok(()) } else { Err(format!("{found:?}")) }
        },
    )
    .unwrap();
}

/// An address passes on while nobody tells of it: what the API server said last names nobody after
/// that, and what is called meanwhile is nobody's before it is told whose.
#[test]
fn an_address_that_passes_on_while_the_api_server_is_away_is_not_its_old_owner_s() {
    if !bins::can_run("an address that passes on while the API server is away") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let client = deployment(&mut c, "client", 8080, 0);
    let old = deployment(&mut c, "old", 8080, 1);
    let new = deployment(&mut c, "new", 8080, 1);
    c.pods.iter_mut().find(|p| p.key() == new).unwrap().present = false;
    let to = format!("{}:8080", c.pod(&old).addresses.0);
    let mut lab = lab(c).unwrap();
    let (api, kubeconfig) = api_server(&lab, 0, "127.0.0.1:0".parse().unwrap());
    let often = |api: &ApiServer| api.manners(|manners| manners.bookmarks = Duration::from_millis(500));
    often(&api);
    let address: SocketAddr = api.url()["http://".len()..].parse().unwrap();
    let agent = Agent::start(&lab, 0, &["--inventory", "kube", "--kubeconfig", kubeconfig.to_str().unwrap()]).unwrap();
    let serve = || Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let mut first = start(&lab, vec![(&old, serve())]).unwrap();
    let calls = vec![Call::new(&to, How::Tcp, u32::MAX).pause(2, 4).timeout(200)];
    let mut caller = start(&lab, vec![(&client, Scenario { after: calls, ..Scenario::default() })]).unwrap();
    caller[0].go().unwrap();
    let answered =
        |lab: &Lab, key: &str| lab.records().unwrap().iter().filter(|r| r.process == key && r.id.is_some()).count();
    let reached = |lab: &Lab, key: &str, more: usize| {
        let before = answered(lab, key);
        wait_until(LIMIT, "calls arrive", || (answered(lab, key) >= before + more).then_some(())).unwrap();
    };
    let opened = |snapshot: &serde_json::Value, server: &str| -> u64 {
        let all = edges(snapshot);
        let of = |name: &str| format!("lab/Deployment/{name}");
        let to = all.iter().filter(|(e, _)| e.client == of("client") && e.server == of(server));
        to.map(|(_, v)| number(v, "opened")).sum()
    };
    reached(&lab, &old, 50);
    let named = |snapshot: &serde_json::Value| match opened(snapshot, "old") {
        0 => Err(snapshot["edges"].to_string()),
        _ => Ok(()),
    };
    eventually(LIMIT, || agent.snapshot(), named).unwrap();
    drop(api);
    let series = r#"guardrail_inventory_failures_total{kind="pods",reason="transport"}"#;
    wait_until(LIMIT, "the watch is known to be broken", || agent.metric(series).ok().filter(|n| *n >= 1.0)).unwrap();
    let before = inventory::objects(&lab.cluster);
    first[0].stop().unwrap();
    lab.move_addresses(&old, &new).unwrap();
    let _second = start(&lab, vec![(&new, serve())]).unwrap();
    reached(&lab, &new, 100);
    let held = |snapshot: &serde_json::Value| match snapshot["remote_flows"].as_array() {
        Some(flows) if !flows.is_empty() => Ok(()),
        _ => Err(snapshot["edges"].to_string()),
    };
    eventually(LIMIT, || agent.snapshot(), held).unwrap();
    // The one that comes back goes on where it was: its versions say what changed meanwhile.
    let (api, _) = api_server_with(&lab, 0, address, &before);
    often(&api);
    api.sync(&inventory::objects(&lab.cluster));
    let named = |snapshot: &serde_json::Value| match opened(snapshot, "new") {
        0 => Err(snapshot["edges"].to_string()),
        _ => Ok(()),
    };
    eventually(LIMIT, || agent.snapshot(), named).unwrap();
    caller[0].enough().unwrap();
    caller[0].wait_for("done", Instant::now() + LIMIT).unwrap();
    let [at_old, at_new] = [&old, &new].map(|key| u64::try_from(answered(&lab, key)).unwrap());
    let all_named = |snapshot: &serde_json::Value| {
        let (of_old, of_new) = (opened(snapshot, "old"), opened(snapshot, "new"));
        assert!(of_old <= at_old, "{of_old} of {at_old}: the old owner has the calls of the new one");
        assert!(of_new <= at_new, "{of_new} of {at_new}");
        let unresolved = snapshot["coverage"]["unresolved"].as_array().cloned().unwrap_or_default();
        let in_doubt: u64 = unresolved.iter().filter(|u| u["reason"] == "ip_reuse").map(|u| number(u, "count")).sum();
        // One that was cut off by the move may be counted at the client alone.
        if in_doubt > 0 && of_old + of_new + in_doubt >= at_old + at_new {
            Ok(())
        } else {
            Err(format!("{of_old} of {at_old}, {of_new} of {at_new}, {in_doubt} in doubt: {unresolved:?}"))
        }
    };
    eventually(LIMIT, || agent.snapshot(), all_named).unwrap();
}
