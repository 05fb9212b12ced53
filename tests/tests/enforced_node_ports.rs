//! Node ports and host ports under policies on real packets, asked about by the address and port
//! that were dialled: `guardrail check` says what the packets did (docs/data-planes.md).

use std::net::{IpAddr, SocketAddr};

use guardrail_tests::{
    agent::Agent,
    app::{
        log::now_ns,
        scenario::{AddressRange, Call, How, Scenario, Serve},
    },
    bins,
    cluster::{Cluster, Kind, Port, ServicePort, Target, node_addresses},
    compare::compare,
    enforce::{AskedPlace, Judge, enforce},
    held::{AWS, MEMORIES, export, happened_again, hold_under_every_judge, merge, ready, truth_since, try_all},
    lab::{EXTERNAL_CLIENT, Lab},
    small::{calling, cluster, deployment, eventually, go, go_again, same, serving, start, truth},
    tries::{Trier, Try},
};

/// Somebody outside who never called.
const STRANGER: &str = "100.64.0.7";

fn node_port(number: u16) -> ServicePort {
    ServicePort { name: "http", protocol: "TCP", port: 80, target: Target::Number(8080), node_port: Some(number) }
}

fn at(node: usize, port: u16) -> SocketAddr {
    SocketAddr::new(node_addresses(node).0.into(), port)
}

/// A Deployment of a namespace of its own.
fn other(c: &mut Cluster, name: &str, node: usize) -> String {
    let port = Port { name: "main", protocol: "TCP", number: 8080 };
    c.workload("other", Kind::Deployment, name, &[port], &[node]).remove(0)
}

/// Calls from outside, with this address.
fn from_outside(address: &str, calls: &[(SocketAddr, u32)]) -> Scenario {
    let sources = Some(AddressRange { first: address.parse().unwrap(), count: 1 });
    let call = |(to, times): &(SocketAddr, u32)| Call { sources, ..Call::new(&to.to_string(), How::Tcp, *times) };
    Scenario { after: calls.iter().map(call).collect(), ..Scenario::default() }
}

/// A try of the address that is dialled, about which `check` is asked.
fn tried(trier: &Trier, to: SocketAddr, passes: bool) -> (Try, bool) {
    (Try::tcp(trier.clone(), to), passes)
}

#[test]
fn what_check_says_of_a_node_port_and_of_a_host_port_is_what_becomes_of_packets_to_them() {
    if !bins::can_run("node ports under policies") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let (web, api) = (deployment(&mut c, "web", 8080, 0), deployment(&mut c, "api", 8080, 1));
    let edge = deployment(&mut c, "edge", 8080, 0);
    c.workloads.last_mut().unwrap().host_ports.insert(8080, 8443);
    let (near, stranger) = (deployment(&mut c, "near", 8080, 0), deployment(&mut c, "stranger", 8080, 0));
    let other = other(&mut c, "other", 1);
    c.service("lab", "local", "web", &[node_port(30080)]);
    c.service("lab", "wide", "api", &[node_port(30081)]).hides_clients = true;
    let lab = Lab::start(c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let serve = || serving(vec![Serve::tcp(8080)]);
    let _servers = start(&lab, vec![(&web, serve()), (&api, serve()), (&edge, serve())]).unwrap();
    let mut clients = start(&lab, vec![(&near, calling(&[(at(0, 30080), 5)]))]).unwrap();
    let outside = from_outside(EXTERNAL_CLIENT, &[(at(0, 30080), 3), (at(0, 30081), 4), (at(0, 8443), 2)]);
    clients.push(lab.start_on_internet("caller", outside).unwrap());
    ready(&clients[1..]);
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let merged = lab.directory.join("merged.json");
    let wide = "node/node-a -> lab/Deployment/api 8080/TCP";
    let is_so = |snapshot: &serde_json::Value| {
        let mut difference = compare(snapshot, &before);
        // Whoever hides behind a node is the node.
        difference
            .missing
            .retain(|(e, _)| e.to_string() != format!("external/{EXTERNAL_CLIENT} -> lab/Deployment/api 8080/TCP"));
        difference.invented.retain(|(e, _)| e.to_string() != wide);
        same(&difference)
    };
    let snapshot = eventually(std::time::Duration::from_secs(60), || merge(&lab, &agents, &merged), is_so).unwrap();
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let pod = |key: &String| Trier::Pod(key.clone());
    let internet = |address: &str| Trier::Internet(address.parse::<IpAddr>().unwrap());
    let tries = [
        // Its own node translates.
        tried(&pod(&near), at(0, 30080), true),
        tried(&pod(&stranger), at(0, 30080), false),
        // Another node does.
        tried(&pod(&other), at(0, 30080), false),
        tried(&pod(&other), at(0, 8443), false),
        // From outside, with the own address.
        tried(&internet(EXTERNAL_CLIENT), at(0, 30080), true),
        tried(&internet(STRANGER), at(0, 30080), false),
        tried(&internet(EXTERNAL_CLIENT), at(0, 8443), true),
        tried(&internet(STRANGER), at(0, 8443), false),
        // Whoever hides behind a node cannot be told from others.
        tried(&internet(EXTERNAL_CLIENT), at(0, 30081), true),
        tried(&internet(STRANGER), at(0, 30081), true),
        tried(&internet(STRANGER), at(1, 30081), true),
    ];
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
}

#[test]
fn a_services_addresses_for_clients_outside_are_open_to_who_asked_for_them_inside() {
    if !bins::can_run("external addresses under policies") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let web = deployment(&mut c, "web", 8080, 0);
    let (near, far) = (deployment(&mut c, "near", 8080, 0), deployment(&mut c, "far", 8080, 1));
    let (stranger, other) = (deployment(&mut c, "stranger", 8080, 0), other(&mut c, "other", 1));
    // One of `externalIPs`, and a load balancer's.
    let [external, balanced] = ["203.0.113.40", "203.0.113.41"].map(|address| address.parse::<IpAddr>().unwrap());
    c.service("lab", "front", "web", &[node_port(30080)]).external_ips = vec![external, balanced];
    let lab = Lab::start(c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let _server = start(&lab, vec![(&web, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let asked = [external, balanced].map(|address| SocketAddr::new(address, 80));
    let calls = [(asked[0], 4), (asked[1], 5)];
    let mut clients = start(&lab, vec![(&near, calling(&calls)), (&far, calling(&calls))]).unwrap();
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let merged = lab.directory.join("merged.json");
    let is_so = |snapshot: &serde_json::Value| same(&compare(snapshot, &before));
    let snapshot = eventually(std::time::Duration::from_secs(60), || merge(&lab, &agents, &merged), is_so).unwrap();
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let tries: Vec<_> = [(near, true), (far, true), (stranger, false), (other, false)]
        .into_iter()
        .flat_map(|(who, passes)| asked.map(|to| tried(&Trier::Pod(who.clone()), to, passes)))
        .collect();
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
}

#[test]
fn a_call_through_another_nodes_port_is_open_at_that_node_too() {
    if !bins::can_run("another node's port under policies") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let web = deployment(&mut c, "web", 8080, 0);
    let (far, stranger) = (deployment(&mut c, "far", 8080, 1), deployment(&mut c, "stranger", 8080, 1));
    c.service("lab", "local", "web", &[node_port(30080)]);
    let lab = Lab::start(c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let _server = start(&lab, vec![(&web, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let mut clients = start(&lab, vec![(&far, calling(&[(at(0, 30080), 6)]))]).unwrap();
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let merged = lab.directory.join("merged.json");
    let is_so = |snapshot: &serde_json::Value| same(&compare(snapshot, &before));
    let snapshot = eventually(std::time::Duration::from_secs(60), || merge(&lab, &agents, &merged), is_so).unwrap();
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let file = lab.directory.join("observed.json");
    std::fs::write(&file, snapshot.to_string()).unwrap();
    let tries = [Trier::Pod(far), Trier::Pod(stranger)].map(|trier| Try::tcp(trier, at(0, 30080)));
    let mut rounds = 0;
    for (name, extra, egress) in [
        ("constrain", &["--phase=constrain"][..], AskedPlace::Backend),
        ("default-deny", &["--phase=default-deny", "--egress"], AskedPlace::Backend),
        ("default-deny-aws", &["--phase=default-deny", "--egress", AWS[0], AWS[1]], AskedPlace::Asked),
    ] {
        let directory = export(&lab, &file, name, extra);
        for memory in MEMORIES {
            rounds += 1;
            let judge = Judge { egress, memory };
            enforce(&lab, judge, &directory).unwrap();
            let since = now_ns();
            go_again(&mut clients, rounds + 1).unwrap();
            happened_again(&before, &truth_since(&lab, since), &format!("{name} {judge:?}"));
            // Within the boundary everybody calls everybody.
            try_all(&lab, &rounds.to_string(), &tries, &[true, name == "constrain"]);
        }
    }
}
