//! Services and what stands in their place, under policies on real packets: proxies that do not ask
//! what was dialled, pods that reach themselves, sockets that are given a pod, a DNS cache that is
//! down, the control plane (docs/data-planes.md).

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Onward, Scenario, Serve},
    bins,
    bpf::SocketBalancer,
    cluster::{Cluster, Kind, Port, ServicePort, Target, node_addresses},
    compare::compare,
    enforce::{AskedPlace, Judge, enforce},
    held::{MEMORIES, hold, hold_under_every_judge, merge, ready, settled, told, try_all},
    lab::{
        EXTERNAL_CLIENT, Lab,
        plane::{Hairpin, NodeAnswers, Sidecar},
        process::AppProcess,
    },
    small::{calling, cluster, deployment, eventually, go, go_again, same, serving, start, truth},
    tries::{Trier, Try},
};

const HTTP: ServicePort =
    ServicePort { name: "http", protocol: "TCP", port: 80, target: Target::Number(8080), node_port: None };

/// Adds a Deployment outside any mesh.
fn plain(c: &mut Cluster, namespace: &str, name: &str, node: usize) -> String {
    let port = Port { name: "main", protocol: "TCP", number: 8080 };
    let key = c.workload(namespace, Kind::Deployment, name, &[port], &[node]).remove(0);
    c.workloads.last_mut().unwrap().labels.insert(Sidecar::OUTSIDE.into(), "true".into());
    key
}

fn pod_address(c: &Cluster, key: &str) -> IpAddr {
    c.pod(key).addresses.0.into()
}

/// A try of a pod at an address, judged at a pod's port, and whether it must pass.
fn tried(who: &str, to: SocketAddr, (judged, port): (&str, u16), passes: bool) -> (Try, bool) {
    (Try::tcp(Trier::Pod(who.to_owned()), to).judged(judged, port), passes)
}

/// Starts a process in a pod and waits until it is ready.
fn started(lab: &Lab, pod: &str, suffix: &str, scenario: Scenario) -> AppProcess {
    let process = lab.start_in_pod(pod, suffix, scenario).unwrap();
    ready(std::slice::from_ref(&process));
    process
}

#[test]
fn behind_a_proxy_that_does_not_ask_what_clients_of_other_nodes_dialled_is_open_and_no_other_port() {
    if !bins::can_run("proxies that do not ask under policies") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let (client, near) = (plain(&mut c, "lab", "client", 1), plain(&mut c, "lab", "near", 0));
    let strangers = [plain(&mut c, "lab", "stranger", 1), plain(&mut c, "other", "stranger", 0)];
    let asked = SocketAddr::new(c.service("lab", "asked", "server", &[HTTP]).addresses.0.into(), 80);
    let address = pod_address(&c, &server);
    let lab = Lab::start_on(Sidecar { inbound: 20000, outbound: None }, c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let proxy = serving(vec![Serve::Proxy { port: 20000, on: Onward::Unasked { port: 8080 } }]);
    let _proxy = started(&lab, &server, ":proxy", proxy);
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080)]))]).unwrap();
    let calls = || calling(&[(asked, 4), ((address, 8080).into(), 3)]);
    let mut clients = start(&lab, vec![(&client, calls()), (&near, calling(&[((address, 8080).into(), 2)]))]).unwrap();
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let wanted = [
        "lab/Deployment/client -> lab/Deployment/server 8080/TCP x7 []",
        "lab/Deployment/near -> lab/Deployment/server 8080/TCP x2 []",
    ];
    let snapshot = settled(&lab, &agents, &wanted);
    assert!(snapshot["remote_flows"].as_array().is_some_and(|all| !all.is_empty()), "nobody was told");
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let at = |port| SocketAddr::new(address, port);
    let mut tries = vec![
        tried(&client, at(8080), (&server, 8080), true),
        tried(&client, asked, (&server, 8080), true),
        tried(&client, at(9001), (&server, 9001), false),
        tried(&client, at(20000), (&server, 20000), false),
    ];
    tries.extend(strangers.iter().map(|stranger| tried(stranger, at(8080), (&server, 8080), false)));
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
}

#[test]
fn a_pod_that_calls_its_own_service_reaches_itself_and_its_siblings_and_strangers_reach_neither() {
    if !bins::can_run("pods that reach themselves under policies") {
        return;
    }
    for siblings in [&[0][..], &[0, 1]] {
        let mut c = cluster(&["node-a", "node-b"]);
        let port = Port { name: "main", protocol: "TCP", number: 8080 };
        let pods = c.workload("lab", Kind::Deployment, "server", std::slice::from_ref(&port), siblings);
        let stranger = deployment(&mut c, "stranger", 8080, 1);
        let other = c.workload("other", Kind::Deployment, "other", &[port], &[0]).remove(0);
        let asked = SocketAddr::new(c.service("lab", "own", "server", &[HTTP]).addresses.0.into(), 80);
        let addresses: Vec<_> = pods.iter().map(|pod| pod_address(&c, pod)).collect();
        let lab = Lab::start_on(Hairpin, c, &bins::find("guardrail-lab-app")).unwrap();
        let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
        let serve = || serving(vec![Serve::tcp(8080), Serve::tcp(9001)]);
        let _servers: Vec<_> = pods.iter().map(|pod| started(&lab, pod, "", serve())).collect();
        // Enough for every backend to be chosen.
        let mut clients = vec![started(&lab, &pods[0], ":caller", calling(&[(asked, 40)]))];
        go(&mut clients).unwrap();
        let before = truth(&lab).unwrap();
        let own = "lab/Deployment/server -> lab/Deployment/server 8080/TCP";
        // Without siblings nobody but the pod itself can have answered; none of it needs a rule at
        // the pod's link, but where Services' own addresses are judged.
        let marks = if siblings.len() > 1 { "[]" } else { r#"["via-service"]"# };
        let is_so = |snapshot: &serde_json::Value| {
            let all = told(snapshot);
            let is_own = |edge: &&String| edge.starts_with(own) && edge.ends_with(marks);
            let is_node = |edge: &&String| edge.starts_with("node/node-a -> lab/Deployment/server 8080");
            let counts = (all.iter().filter(is_own).count(), all.iter().filter(is_node).count(), all.len());
            if counts == (1, 1, 2) && snapshot["coverage"]["complete"] == true { Ok(()) } else { Err(all.join("\n")) }
        };
        let merged = lab.directory.join("merged.json");
        let snapshot = eventually(Duration::from_secs(60), || merge(&lab, &agents, &merged), is_so).unwrap();
        agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
        let mut tries = vec![tried(&pods[0], asked, (&pods[0], 8080), true)];
        for (pod, address) in pods.iter().zip(&addresses) {
            let at = |port| SocketAddr::new(*address, port);
            tries.extend([&stranger, &other].map(|who| tried(who, at(8080), (pod, 8080), false)));
            if pod != &pods[0] {
                tries.push(tried(&pods[0], at(8080), (pod, 8080), true));
                tries.push(tried(&pods[0], at(9001), (pod, 9001), false));
            }
        }
        hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
    }
}

#[test]
fn where_sockets_are_given_a_pod_in_a_services_place_the_pod_is_open_to_who_asked() {
    if !bins::can_run("socket load balancing under policies") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 1));
    let strangers = [deployment(&mut c, "stranger", 8080, 0), plain(&mut c, "other", "stranger", 1)];
    let asked = SocketAddrV4::new(c.service("lab", "asked", "server", &[HTTP]).addresses.0, 80);
    let backend = SocketAddrV4::new(c.pod(&server).addresses.0, 8080);
    let lab = Lab::start(c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080), Serve::tcp(9001)]))]).unwrap();
    let mut clients = start(&lab, vec![(&client, calling(&[(asked.into(), 12)]))]).unwrap();
    let _balancers: Vec<_> = strangers
        .iter()
        .chain([&client])
        .map(|pod| {
            let cgroup = lab.pod_cgroup(lab.cluster.pod(pod));
            std::fs::create_dir_all(&cgroup).unwrap();
            SocketBalancer::attach(&cgroup, asked, backend).unwrap()
        })
        .collect();
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let snapshot = settled(&lab, &agents, &["lab/Deployment/client -> lab/Deployment/server 8080/TCP x12 []"]);
    assert_eq!(snapshot["service_flows"], serde_json::json!([]), "no socket has the Service's address");
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let unseen = SocketAddr::new((*backend.ip()).into(), 9001);
    let mut tries =
        vec![tried(&client, asked.into(), (&server, 8080), true), tried(&client, unseen, (&server, 9001), false)];
    for stranger in &strangers {
        tries.push(tried(stranger, asked.into(), (&server, 8080), false));
        tries.push(tried(stranger, backend.into(), (&server, 8080), false));
    }
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
}

#[test]
fn what_was_exported_while_nodes_answered_for_dns_holds_when_the_cache_is_down() {
    if !bins::can_run("a DNS cache that is down under policies") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let client = deployment(&mut c, "client", 8080, 0);
    let never_asked = [deployment(&mut c, "near", 8080, 0), plain(&mut c, "other", "other", 0)];
    let port = Port { name: "dns", protocol: "UDP", number: 53 };
    let dns = c.workload("kube-system", Kind::Deployment, "coredns", &[port], &[1]).remove(0);
    let front = ServicePort { name: "dns", protocol: "UDP", port: 53, target: Target::Number(53), node_port: None };
    let service = IpAddr::from(c.service("kube-system", "kube-dns", "coredns", &[front]).addresses.0);
    let dns_pod = SocketAddr::new(pod_address(&c, &dns), 53);
    let plane = NodeAnswers { addresses: vec![service, [169, 254, 20, 10].into()] };
    let lab = Lab::start_on(plane.clone(), c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let _dns = start(&lab, vec![(&dns, serving(vec![Serve::udp(53)]))]).unwrap();
    let udp_at = |ip| Serve::Udp { bind: SocketAddr::new(ip, 53), reply: true, ignore: false };
    // The cache asks the DNS pods what it does not know.
    let upstream = vec![Call::new(&dns_pod.to_string(), How::UdpConnected, 3)];
    let cache = Scenario { after: upstream, ..serving(plane.addresses.iter().map(|ip| udp_at(*ip)).collect()) };
    let cache = lab.start_on_node(0, "node-cache", cache).unwrap();
    ready(std::slice::from_ref(&cache));
    let asking = plane.addresses.iter().map(|ip| Call::new(&format!("{ip}:53"), How::UdpConnected, 4)).collect();
    let client_process = started(&lab, &client, "", Scenario { after: asking, ..Scenario::default() });
    let mut processes = vec![client_process, cache];
    go(&mut processes).unwrap();
    let before = truth(&lab).unwrap();
    let merged = lab.directory.join("merged.json");
    let is_so = |m: &serde_json::Value| same(&compare(m, &before));
    let snapshot = eventually(Duration::from_secs(60), || merge(&lab, &agents, &merged), is_so).unwrap();
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let asks = |who: &String| Try::udp(Trier::Pod(who.clone()), (service, 53).into()).judged(&dns, 53);
    let tries: Vec<_> = never_asked.iter().chain([&client]).map(|who| (asks(who), true)).collect();
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut processes, round + 1).unwrap());
    drop(processes);
    plane.take_down(&lab.nodes[0].netns).unwrap();
    let tries: Vec<Try> = tries.into_iter().map(|(one, _)| one).collect();
    for (name, egress) in [
        ("constrain", AskedPlace::Backend),
        ("default-deny", AskedPlace::Backend),
        ("default-deny-aws", AskedPlace::Asked),
    ] {
        for memory in MEMORIES {
            enforce(&lab, Judge { egress, memory }, &lab.directory.join(name)).unwrap();
            try_all(&lab, &format!("down-{name}-{memory:?}"), &tries, &vec![true; tries.len()]);
        }
    }
}

#[test]
fn every_api_server_may_call_webhooks_and_be_called_and_no_other_node_may() {
    if !bins::can_run("several API servers under policies") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b", "node-c", "node-d"]);
    let api = Port { name: "https", protocol: "TCP", number: 6443 };
    let servers = c.host_workload("default", Kind::DaemonSet, "apiserver", &[api], &[1, 2]);
    let https = |port, target| ServicePort {
        name: "https",
        protocol: "TCP",
        port,
        target: Target::Number(target),
        node_port: None,
    };
    let kubernetes =
        SocketAddr::new(c.service("default", "kubernetes", "apiserver", &[https(443, 6443)]).addresses.0.into(), 443);
    let (operator, webhook) = (deployment(&mut c, "operator", 8080, 0), deployment(&mut c, "webhook", 8443, 0));
    let strangers = [deployment(&mut c, "near", 8080, 3), plain(&mut c, "other", "other", 3)];
    let hook = SocketAddr::new(c.service("lab", "webhook", "webhook", &[https(443, 8443)]).addresses.0.into(), 443);
    let hook_pod = SocketAddr::new(pod_address(&c, &webhook), 8443);
    let lab = Lab::start(c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..4).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let _apis: Vec<_> = servers.iter().map(|pod| started(&lab, pod, "", serving(vec![Serve::tcp(6443)]))).collect();
    let _webhook = start(&lab, vec![(&webhook, serving(vec![Serve::tcp(8443), Serve::tcp(9001)]))]).unwrap();
    let mut callers = vec![
        // Both API servers are chosen; one of them calls the webhook.
        started(&lab, &operator, "", calling(&[(kubernetes, 40)])),
        started(&lab, &servers[0], ":admission", calling(&[(hook, 5)])),
    ];
    go(&mut callers).unwrap();
    let before = truth(&lab).unwrap();
    assert_eq!(before.edges.len(), 3, "{:?}", before.edges.keys());
    let merged = lab.directory.join("merged.json");
    let is_so = |m: &serde_json::Value| same(&compare(m, &before));
    let snapshot = eventually(Duration::from_secs(60), || merge(&lab, &agents, &merged), is_so).unwrap();
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let node = |index, to: SocketAddr, passes| (Try::tcp(Trier::Node(index), to).judged(&webhook, to.port()), passes);
    // A control plane that is elsewhere: declared, never seen.
    let elsewhere: IpAddr = "100.64.7.7".parse().unwrap();
    let outside = |from: IpAddr, passes| (Try::tcp(Trier::Internet(from), hook_pod).judged(&webhook, 8443), passes);
    let mut tries = vec![
        node(1, hook_pod, true),
        node(2, hook_pod, true),
        node(3, hook_pod, false),
        node(2, (hook_pod.ip(), 9001).into(), false),
        outside(elsewhere, true),
        outside(EXTERNAL_CLIENT.parse().unwrap(), false),
    ];
    for index in [1, 2] {
        let at = SocketAddr::new(node_addresses(index).0.into(), 6443);
        let one = |who: &String, passes| (Try::tcp(Trier::Pod(who.clone()), at), passes);
        tries.push(one(&operator, true));
        tries.extend(strangers.iter().map(|who| one(who, false)));
    }
    let declared = ["--control-plane-range=100.64.7.0/24"];
    hold(&lab, (&snapshot, &before), &tries, &declared, |round| go_again(&mut callers, round + 1).unwrap());
}
