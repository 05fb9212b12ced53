//! Sidecars: what arrives at a proxy's port dialled another one, and what an application calls ends
//! at its proxy. The graph is what really happened (docs/data-planes.md).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Onward, Scenario, Serve},
    bins,
    cluster::{Cluster, ServicePort, Target},
    compare::{compare, edges, has_mark, number},
    lab::{
        EXTERNAL_CLIENT, Lab,
        bpffs::BpfFs,
        plane::{Sidecar, Transparent},
        process::AppProcess,
        wait_until,
    },
    small::{cluster, deployment, eventually, eventually_true, go, same, start, truth},
    truth::Truth,
};

const ISTIO: Sidecar = Sidecar { inbound: 15006, outbound: Some(15001) };

/// Adds a workload without a sidecar.
fn outside(c: &mut Cluster, name: &str, node: usize) -> String {
    let key = deployment(c, name, 8080, node);
    c.workloads.last_mut().unwrap().labels.insert(Sidecar::OUTSIDE.into(), "true".into());
    key
}

fn service(c: &mut Cluster, name: &str, selects: &str) -> (IpAddr, IpAddr) {
    let http = ServicePort { name: "http", protocol: "TCP", port: 80, target: Target::Number(8080), node_port: None };
    let addresses = c.service("lab", name, selects, &[http]).addresses;
    (addresses.0.into(), addresses.1.into())
}

fn serving(serve: Vec<Serve>) -> Scenario {
    Scenario { serve, ..Scenario::default() }
}

fn calling(after: Vec<Call>) -> Scenario {
    Scenario { after, ..Scenario::default() }
}

/// Starts the sidecars of these pods.
fn sidecars(lab: &Lab, pods: &[&str], endpoints: &BTreeMap<SocketAddr, SocketAddr>) -> Vec<AppProcess> {
    let proxies = || {
        let (inside, outside) = (Onward::Inside { inner: 8080 }, Onward::Outside { endpoints: endpoints.clone() });
        serving(vec![Serve::Proxy { port: 15006, on: inside }, Serve::Proxy { port: 15001, on: outside }])
    };
    let processes: Vec<_> = pods.iter().map(|pod| lab.start_in_pod(pod, ":proxy", proxies()).unwrap()).collect();
    ready(&processes);
    processes
}

fn ready(processes: &[AppProcess]) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    processes.iter().for_each(|process| process.wait_for("ready", deadline).unwrap());
}

/// The graph, once nothing waits any more and it equals the truth.
fn settled(agent: &Agent, truth: &Truth) -> serde_json::Value {
    eventually_true(agent, truth).unwrap();
    wait_until(Duration::from_secs(60), "nothing waits", || {
        (agent.metric("guardrail_flows_pending").ok()? == 0.0).then_some(())
    })
    .unwrap();
    let snapshot = agent.snapshot().unwrap();
    same(&compare(&snapshot, truth)).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    assert_eq!(snapshot["coverage"]["unresolved"], serde_json::json!([]));
    snapshot
}

#[test]
fn with_a_sidecar_in_every_pod_the_graph_has_the_ports_that_were_dialled_and_the_services_asked_for() {
    if !bins::can_run("sidecars") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 0));
    let (plain_server, plain_client) = (outside(&mut c, "plain-server", 0), outside(&mut c, "plain-client", 0));
    let meshed = service(&mut c, "meshed", "server");
    let plain = service(&mut c, "plain", "plain-server");
    let pod = c.pod(&server).addresses;
    let lab = Lab::start_on(ISTIO, c, &bins::find("guardrail-lab-app")).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let _proxies = sidecars(&lab, &[&server, &client], &BTreeMap::new());
    let serve = || serving(vec![Serve::tcp(8080)]);
    let _servers = start(&lab, vec![(&server, serve()), (&plain_server, serve())]).unwrap();
    let call = |to: SocketAddr, times| Call::new(&to.to_string(), How::Tcp, times);
    let calls = vec![
        call(SocketAddr::new(meshed.0, 80), 30),
        call(SocketAddr::new(meshed.1, 80), 7),
        call(SocketAddr::new(pod.0.into(), 8080), 11),
        call(SocketAddr::new(pod.1.into(), 8080), 5),
        call(SocketAddr::new(plain.0, 80), 9),
    ];
    let mut clients = start(&lab, vec![(&client, calling(calls.clone())), (&plain_client, calling(calls))]).unwrap();
    go(&mut clients).unwrap();
    let truth = truth(&lab).unwrap();
    let snapshot = settled(&agent, &truth);
    assert_eq!(truth.edges.len(), 4);
    for (edge, value) in edges(&snapshot) {
        // The ends of connections, too, belong to the port that was dialled.
        let bytes: u64 = truth.edges[&edge].records.iter().map(|record| record.sent).sum();
        assert!(number(&value, "bytes_sent") >= bytes && bytes > 0, "{edge}: {value} has less than {bytes} bytes");
        assert_eq!(value["marks"], serde_json::json!([]), "{edge}");
    }
}

#[test]
fn of_thousands_of_connections_in_a_hurry_none_is_left_at_a_proxys_port_and_none_is_unresolved() {
    if !bins::can_run("sidecars in a hurry") {
        return;
    }
    const CALLERS: usize = 4;
    const TIMES: u32 = 500;
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 0));
    let plain_client = outside(&mut c, "plain-client", 0);
    let asked = SocketAddr::new(service(&mut c, "meshed", "server").0, 80);
    let lab = Lab::start_on(ISTIO, c, &bins::find("guardrail-lab-app")).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let _proxies = sidecars(&lab, &[&server, &client], &BTreeMap::new());
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let calls = || calling(vec![Call::new(&asked.to_string(), How::Tcp, TIMES); CALLERS]);
    let mut clients = start(&lab, vec![(&client, calls()), (&plain_client, calls())]).unwrap();
    go(&mut clients).unwrap();
    let truth = truth(&lab).unwrap();
    let times: Vec<u64> = truth.edges.values().flat_map(|e| e.records.iter().map(|record| record.at_ns)).collect();
    let took = times.iter().max().unwrap() - times.iter().min().unwrap();
    // What a call through two proxies is: three connections.
    println!("{:.0} calls a second", times.len() as f64 / (took as f64 / 1e9));
    let snapshot = settled(&agent, &truth);
    let opened: Vec<_> =
        edges(&snapshot).into_iter().map(|(edge, v)| (edge.to_string(), number(&v, "opened"))).collect();
    let all = u64::from(TIMES) * CALLERS as u64;
    let expected = ["client", "plain-client"]
        .map(|client| (format!("lab/Deployment/{client} -> lab/Deployment/server 8080/TCP"), all));
    assert_eq!(opened, expected);
}

#[test]
fn agents_that_crash_while_proxies_are_called_leave_nothing_at_their_ports_and_lose_no_connection() {
    if !bins::can_run("crashes beside sidecars") {
        return;
    }
    const TIMES: u32 = 400;
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 0));
    let plain_client = outside(&mut c, "plain-client", 0);
    let meshed = service(&mut c, "meshed", "server");
    let lab = Lab::start_on(ISTIO, c, &bins::find("guardrail-lab-app")).unwrap();
    let pins = BpfFs::mount(&lab.directory).unwrap().pins();
    let pinned = ["--pin", pins.to_str().unwrap(), "--state-interval", "1"];
    let mut agent = Agent::start(&lab, 0, &pinned).unwrap();
    let _proxies = sidecars(&lab, &[&server, &client], &BTreeMap::new());
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let asked = [SocketAddr::new(meshed.0, 80), SocketAddr::new(meshed.1, 80)];
    let calls = || calling(asked.map(|to| Call::new(&to.to_string(), How::Tcp, TIMES).pause(5, 25)).into());
    let mut clients = start(&lab, vec![(&client, calls()), (&plain_client, calls())]).unwrap();
    clients.iter_mut().for_each(|process| process.go().unwrap());
    // Whatever arrived at a proxy waits for its answer then, and so does what an application calls.
    for share in [1, 2, 3] {
        let opened = |snapshot: &serde_json::Value| -> u64 {
            edges(snapshot).values().map(|value| number(value, "opened")).sum()
        };
        wait_until(Duration::from_secs(60), "more calls", || {
            let so_far = agent.snapshot().ok().map(|snapshot| opened(&snapshot))?;
            (so_far >= share * u64::from(TIMES) / 2).then_some(())
        })
        .unwrap();
        agent.crash().unwrap();
        drop(agent);
        agent = Agent::start(&lab, 0, &pinned).unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    clients.iter().for_each(|process| process.wait_for("done", deadline).unwrap());
    let snapshot = settled(&agent, &truth(&lab).unwrap());
    assert_eq!(edges(&snapshot).len(), 2, "{:?}", edges(&snapshot).keys());
    let window = &snapshot["window"]["nodes"]["node-a"];
    assert_eq!(window.as_array().map(Vec::len), Some(1), "the hooks were there all the time: {window}");
}

#[test]
fn a_proxy_that_chooses_the_pod_itself_leaves_the_service_that_was_asked_for_on_the_edge() {
    if !bins::can_run("sidecars that balance") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 0));
    let asked = SocketAddr::new(service(&mut c, "meshed", "server").0, 80);
    let chosen = SocketAddr::new(c.pod(&server).addresses.0.into(), 8080);
    let lab = Lab::start_on(ISTIO, c, &bins::find("guardrail-lab-app")).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let _proxies = sidecars(&lab, &[&server, &client], &BTreeMap::from([(asked, chosen)]));
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let calls = calling(vec![Call::new(&asked.to_string(), How::Tcp, 20)]);
    go(&mut start(&lab, vec![(&client, calls)]).unwrap()).unwrap();
    settled(&agent, &truth(&lab).unwrap());
}

#[test]
fn the_proxys_own_port_is_an_edge_only_where_it_was_dialled_and_then_a_tunnel() {
    if !bins::can_run("a tunnel") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), outside(&mut c, "client", 0));
    let address = c.pod(&server).addresses.0;
    let lab = Lab::start_on(ISTIO, c, &bins::find("guardrail-lab-app")).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let _proxy = sidecars(&lab, &[&server], &BTreeMap::new());
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let call = |port, times| Call::new(&format!("{address}:{port}"), How::Tcp, times);
    go(&mut start(&lab, vec![(&client, calling(vec![call(15006, 4), call(8080, 6)]))]).unwrap()).unwrap();
    let wanted = |snapshot: &serde_json::Value| {
        let all: Vec<_> = edges(snapshot)
            .into_iter()
            .map(|(edge, value)| {
                (edge.port, number(&value, "opened"), has_mark(&value, "tunnel"), value["seen_by"].clone())
            })
            .collect();
        let both = serde_json::json!(["client", "server"]);
        if all == [(8080, 6, false, both.clone()), (15006, 4, true, both)] { Ok(()) } else { Err(format!("{all:?}")) }
    };
    let snapshot = eventually(Duration::from_secs(30), || agent.snapshot(), wanted).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
}

#[test]
fn where_the_proxy_does_not_ask_the_clients_own_record_decides_and_without_one_it_is_counted() {
    if !bins::can_run("a proxy that does not ask") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), outside(&mut c, "client", 0));
    let address = c.pod(&server).addresses.0;
    let plane = Sidecar { inbound: 20000, outbound: None };
    let lab = Lab::start_on(plane, c, &bins::find("guardrail-lab-app")).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let proxy = serving(vec![Serve::Proxy { port: 20000, on: Onward::Unasked { port: 8080 } }]);
    let proxy = lab.start_in_pod(&server, ":proxy", proxy).unwrap();
    ready(std::slice::from_ref(&proxy));
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let call = || calling(vec![Call::new(&format!("{address}:8080"), How::Tcp, 6)]);
    go(&mut start(&lab, vec![(&client, call())]).unwrap()).unwrap();
    settled(&agent, &truth(&lab).unwrap());
    // A client of which there is no record.
    let mut elsewhere = lab.start_on_internet(EXTERNAL_CLIENT, call()).unwrap();
    ready(std::slice::from_ref(&elsewhere));
    go(std::slice::from_mut(&mut elsewhere)).unwrap();
    let series = "guardrail_flows_unresolved_total{reason=\"redirected\"}";
    let counted = |_: &serde_json::Value| match agent.metric(series) {
        Ok(6.0) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    let snapshot = eventually(Duration::from_secs(30), || agent.snapshot(), counted).unwrap();
    assert!(edges(&snapshot).keys().all(|edge| edge.port == 8080), "{:?}", edges(&snapshot).keys());
}

#[test]
fn where_proxies_take_connections_without_translation_their_sockets_have_the_port_that_was_dialled() {
    if !bins::can_run("transparent proxies") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8081, 0));
    let address = c.pod(&server).addresses.0;
    let plane = Transparent { inbound: 15006, port: 8080 };
    let lab = Lab::start_on(plane, c, &bins::find("guardrail-lab-app")).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let proxy = serving(vec![Serve::Proxy { port: 15006, on: Onward::Transparent }]);
    let proxy = lab.start_in_pod(&server, ":proxy", proxy).unwrap();
    ready(std::slice::from_ref(&proxy));
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let calls = calling(vec![Call::new(&format!("{address}:8080"), How::Tcp, 12)]);
    go(&mut start(&lab, vec![(&client, calls)]).unwrap()).unwrap();
    settled(&agent, &truth(&lab).unwrap());
}
