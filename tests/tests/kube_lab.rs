//! The lab with its objects behind an API server: the agent's graph is what really happened, also
//! while pods come and go.

use std::{
    net::TcpListener,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use guardrail_graph::Timestamp;
use guardrail_tests::{
    agent::Agent,
    apiserver::{ApiServer, Fault, NoStreaming},
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    cluster::inventory,
    compare::{compare, edges, happened},
    lab::{Lab, wait_until},
    shop::Shop,
    small::{cluster, deployment, eventually, eventually_true, go, lab, start, truth},
};

/// An API server inside a node's network namespace, and a kubeconfig for it.
fn api_server(lab: &Lab, node: usize) -> (ApiServer, PathBuf) {
    let listener = lab.nodes[node].netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let server = ApiServer::serving(listener, &inventory::objects(&lab.cluster)).unwrap();
    let path = lab.directory.join(format!("kubeconfig-{node}"));
    std::fs::write(&path, server.kubeconfig(None)).unwrap();
    (server, path)
}

fn agent(lab: &Lab, node: usize, kubeconfig: &std::path::Path) -> Agent {
    let path = kubeconfig.to_str().unwrap();
    Agent::start(lab, node, &["--inventory", "kube", "--kubeconfig", path]).unwrap()
}

#[test]
fn the_shop_gives_the_true_graph_with_an_api_server_that_fails_now_and_then() {
    if !bins::can_run("the shop with an API server") {
        return;
    }
    let mut shop = Shop::start(&bins::find("guardrail-lab-app"), &["node-a"], 11).unwrap();
    let (server, kubeconfig) = api_server(&shop.lab, 0);
    server.fault("pods", Fault::Status { code: 500, retry_after: None });
    server.fault("services", Fault::CutMidObject { after: 2 });
    let agent = agent(&shop.lab, 0, &kubeconfig);
    server.fault("pods", Fault::Expired);
    server.drop_streams();
    shop.run().unwrap();
    let truth = shop.truth().unwrap();
    let snapshot = eventually_true(&agent, &truth).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    assert!(server.faults_used());
    assert!(agent.metric("guardrail_inventory_failures_total{kind=\"pods\",reason=\"expired\"}").unwrap() >= 1.0);
}

#[test]
fn an_agent_whose_api_server_is_away_keeps_observing_and_recovers() {
    if !bins::can_run("an API server that is away") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let server_pod = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let address = c.pod(&server_pod).addresses.0;
    let lab = lab(c).unwrap();
    let (server, kubeconfig) = api_server(&lab, 0);
    let agent = agent(&lab, 0, &kubeconfig);
    drop(server);
    let calls = vec![Call::new(&format!("{address}:8080"), How::Tcp, 20)];
    let mut processes = start(
        &lab,
        vec![
            (&server_pod, Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() }),
            (&client, Scenario { after: calls, ..Scenario::default() }),
        ],
    )
    .unwrap();
    go(&mut processes).unwrap();
    eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!(agent.get("/readyz").unwrap().0, 200);
}

/// Many clusters give out pod addresses without `spec.podCIDR`: then nothing tells that a caller is
/// a pod until the API server tells of it, which is after its first call.
#[test]
fn a_pod_that_calls_before_the_api_server_tells_of_it_is_no_external_peer_though_no_range_has_its_address() {
    if !bins::can_run("a pod that calls before it is known") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 1);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let from = c.pod(&client).addresses.0;
    let mut lab = lab(c).unwrap();
    let present = |lab: &mut Lab, is_present| {
        lab.cluster.pods.iter_mut().find(|p| p.key() == client).unwrap().present = is_present;
        let mut objects = inventory::objects(&lab.cluster);
        for spec in objects.iter_mut().filter_map(|object| object["spec"].as_object_mut()) {
            spec.remove("podCIDR");
            spec.remove("podCIDRs");
        }
        objects
    };
    let (api, kubeconfig) = api_server(&lab, 0);
    api.sync(&present(&mut lab, false));
    let agent = agent(&lab, 0, &kubeconfig);
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let _server = start(&lab, vec![(&server, serve)]).unwrap();
    let calls = Scenario { after: vec![Call::new(&to, How::Tcp, 5)], ..Scenario::default() };
    go(&mut start(&lab, vec![(&client, calls)]).unwrap()).unwrap();
    let early = |snapshot: &serde_json::Value| {
        let edges: Vec<_> = edges(snapshot).keys().map(ToString::to_string).collect();
        if edges == [format!("external/{from} -> lab/Deployment/server 8080/TCP")] {
            Ok(())
        } else {
            Err(format!("{edges:?}"))
        }
    };
    eventually(Duration::from_secs(20), || agent.snapshot(), early).unwrap();
    api.sync(&present(&mut lab, true));
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!(edges(&snapshot).len(), 1);
}

/// Pods come and go more than a hundred times a minute, every new one with the address of the one
/// before. Two clients take turns, so that each owner of the address has been called by one of them
/// only: an edge from the other would be a wrong name.
#[test]
fn no_edge_gets_a_wrong_name_while_pods_are_recycled_with_immediate_reuse_of_their_address() {
    if bins::can_run("churn") {
        churn(|_| false);
    }
}

/// The API server tells of every third new owner only after its traffic: what was said before must
/// not name the old owner.
#[test]
fn no_edge_gets_a_wrong_name_while_the_api_server_lags_behind() {
    if bins::can_run("churn with a lagging API server") {
        churn(|i| i % 3 == 2);
    }
}

fn churn(lags: impl Fn(usize) -> bool) {
    const RECYCLES: usize = 24;
    let mut c = cluster(&["node-a"]);
    let clients = [deployment(&mut c, "even", 8080, 0), deployment(&mut c, "odd", 8080, 0)];
    let servers: Vec<String> = (0..RECYCLES).map(|i| deployment(&mut c, &format!("w{i}"), 8080, 0)).collect();
    for server in &servers[1..] {
        c.pods.iter_mut().find(|p| &p.key() == server).unwrap().present = false;
    }
    let address = c.pod(&servers[0]).addresses.0;
    let mut lab = lab(c).unwrap();
    let (api, kubeconfig) = api_server(&lab, 0);
    let agent = agent(&lab, 0, &kubeconfig);
    let began = Instant::now();
    for (i, server) in servers.iter().enumerate() {
        if i > 0 {
            let old = &servers[i - 1];
            lab.remove_pod_cgroup(old).unwrap();
            lab.move_addresses(old, server).unwrap();
        }
        let late = lags(i);
        if !late {
            api.sync(&inventory::objects(&lab.cluster));
        }
        let mut serving =
            start(&lab, vec![(server, Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() })]).unwrap();
        let calls = vec![Call::new(&format!("{address}:8080"), How::Tcp, 20).pause(2, 4).timeout(200)];
        let scenario = Scenario { after: calls, ..Scenario::default() };
        let mut caller = lab.start_in_pod(&clients[i % 2], &format!(":{i}"), scenario).unwrap();
        caller.wait_for("ready", Instant::now() + Duration::from_secs(10)).unwrap();
        caller.go().unwrap();
        caller.wait_for("done", Instant::now() + Duration::from_secs(20)).unwrap();
        if late {
            api.sync(&inventory::objects(&lab.cluster));
        }
        serving.iter_mut().try_for_each(guardrail_tests::lab::process::AppProcess::stop).unwrap();
    }
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(60) * u32::try_from(RECYCLES).unwrap() / 100,
        "slower than 100 recycles a minute: {took:?}"
    );
    eprintln!("{RECYCLES} recycles in {took:?}: {:.0} a minute", RECYCLES as f64 * 60.0 / took.as_secs_f64());
    let truth = truth(&lab).unwrap();
    assert_eq!(truth.edges.len(), RECYCLES, "each owner was called");
    // What is missing must have been counted; nothing may be there that did not happen.
    let check = |snapshot: &serde_json::Value| {
        let observed = edges(snapshot);
        let wrong: Vec<_> = observed
            .iter()
            .filter(|(e, v)| happened(v) && !truth.edges.contains_key(*e))
            .map(|(e, _)| e.to_string())
            .collect();
        assert!(wrong.is_empty(), "wrong names: {wrong:?}\n{}", snapshot["coverage"]);
        let missing = truth.edges.keys().filter(|e| !observed.contains_key(*e)).count();
        let unresolved = snapshot["coverage"]["unresolved"].as_array().map_or(0, Vec::len);
        if missing > 0 && unresolved == 0 {
            return Err(format!(
                "{missing} edges are missing and nothing is unresolved: {}",
                compare(snapshot, &truth)
            ));
        }
        Ok(missing)
    };
    let snapshot = eventually(Duration::from_secs(30), || agent.snapshot(), |s| check(s).map(drop)).unwrap();
    eprintln!("{} of {RECYCLES} edges unresolved: {}", check(&snapshot).unwrap(), snapshot["coverage"]["unresolved"]);
}

/// What real clusters do in one test: lists cannot be streamed and end in an error, the address of
/// a pod comes 40 s after its first call, and in between the server is away and has forgotten the
/// version when it comes back.
#[test]
fn an_address_that_comes_40_seconds_late_after_an_outage_and_a_410_names_what_was_called_before() {
    const LATE: Duration = Duration::from_secs(40);
    if !bins::can_run("an API server with a real cluster's habits") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 1);
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let name = c.pod(&client).name.clone();
    let lab = lab(c).unwrap();
    let mut told = inventory::objects(&lab.cluster);
    let is_client = |object: &&mut serde_json::Value| object["metadata"]["name"] == *name;
    for pod in told.iter_mut().filter(is_client) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = Timestamp::from_unix_seconds(i64::try_from(now.as_secs()).unwrap());
        pod["status"]["startTime"] = now.to_string().into();
    }
    let mut untold = told.clone();
    for pod in untold.iter_mut().filter(is_client) {
        let status = pod["status"].as_object_mut().unwrap();
        status.retain(|key, _| key == "phase" || key == "hostIP" || key == "startTime");
    }
    let (api, kubeconfig) = api_server(&lab, 0);
    api.manners(|m| m.stream_no_lists(NoStreaming::Event(500)));
    api.sync(&untold);
    let agent = agent(&lab, 0, &kubeconfig);
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let _server = start(&lab, vec![(&server, serve)]).unwrap();
    let calls = Scenario { after: vec![Call::new(&to, How::Tcp, 5)], ..Scenario::default() };
    go(&mut start(&lab, vec![(&client, calls)]).unwrap()).unwrap();
    let began = Instant::now();
    // Nobody is given a wrong name meanwhile, and it is not forgotten either.
    wait_until(LATE + Duration::from_secs(20), "the address is late enough", || {
        let known: Vec<_> = edges(&agent.snapshot().ok()?).into_keys().map(|edge| edge.to_string()).collect();
        assert!(known.is_empty(), "nobody knows who called: {known:?}");
        let waits = agent.metric("guardrail_flows_pending").ok()?;
        let counted = agent.metric("guardrail_flows_unresolved_total{reason=\"pod_range_no_owner\"}").ok()?;
        (began.elapsed() >= LATE && waits + counted > 0.0).then_some(())
    })
    .unwrap();
    for _ in 0..3 {
        api.fault("pods", Fault::Disconnect);
    }
    api.fault("pods", Fault::Expired);
    api.drop_streams();
    api.sync(&told);
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!((edges(&snapshot).len(), &snapshot["coverage"]["unresolved"]), (1, &serde_json::json!([])));
    assert!(api.faults_used());
}
