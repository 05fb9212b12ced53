//! What was exported is enforced on real packets: everything that happened works again, what never
//! happened is dropped, and `guardrail check` says the same of each try (docs/data-planes.md).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use guardrail_tests::{
    agent::Agent,
    app::{
        log::now_ns,
        scenario::{Call, How, Onward, Scenario, Serve},
    },
    bins,
    cluster::{Cluster, Kind, Pod, Port, ServicePort, Target, node_addresses},
    compare::{compare, edges},
    enforce::{AskedPlace, Judge, enforce},
    held::{AWS, MEMORIES, export, happened_again, hold_under_every_judge, merge, ready, tried, truth_since, try_all},
    lab::{
        EXTERNAL_CLIENT, EXTERNAL_SERVER, Lab,
        plane::{DataPlane, NodeAnswers, Sidecar, Transparent},
    },
    shop::{Shop, WEB_NODE_PORT},
    small::{cluster, deployment, eventually, eventually_true, go, go_again, same, start, truth},
    tries::{Trier, Try},
};

/// Somebody on the internet who never called.
const STRANGER: &str = "100.64.0.7";
/// A server on the internet that nobody called.
const UNKNOWN_SERVER: &str = "100.64.0.8";

/// The first pod of each workload that has a network of its own.
fn one_of_each(cluster: &Cluster) -> Vec<&Pod> {
    let mut seen = BTreeSet::new();
    cluster.pods.iter().filter(|p| !cluster.workloads[p.workload].host_network && seen.insert(p.workload)).collect()
}

/// Every workload at every port of every other one, at Services, at the node port, outside; and
/// from outside.
fn shop_tries(shop: &Shop) -> Vec<Try> {
    let c = &shop.lab.cluster;
    let mut all = Vec::new();
    // DNS servers answer nothing else than questions.
    let servers: Vec<_> = one_of_each(c).into_iter().filter(|p| c.workloads[p.workload].name != "coredns").collect();
    let dns = c.pod(&shop.pods("coredns")[0]);
    let db = c.pod(&shop.pods("db")[0]).workload;
    for client in one_of_each(c) {
        let trier = || Trier::Pod(client.key());
        for server in servers.iter().filter(|server| server.workload != client.workload) {
            // Of a workload with several pods the last one: on the other node.
            let server = c.pods.iter().rfind(|p| p.workload == server.workload).unwrap();
            for address in [IpAddr::from(server.addresses.0), server.addresses.1.into()] {
                let ports = &c.workloads[server.workload].ports;
                let at = |port| SocketAddr::new(address, port);
                let one = |port, udp| if udp { Try::udp(trier(), at(port)) } else { Try::tcp(trier(), at(port)) };
                all.extend(ports.iter().map(|p| one(p.number, p.protocol == "UDP").judged(&server.key(), p.number)));
                if server.workload == db {
                    all.push(one(9999, false).judged(&server.key(), 9999));
                }
            }
        }
        for service in c.services.iter().filter(|s| !s.headless && s.name != "kube-dns") {
            let reached =
                |pod: &&Pod| service.only_reached.as_ref().is_none_or(|only| *only == c.workloads[pod.workload].name);
            let backend = c.endpoints(service).find(reached).unwrap();
            if backend.workload == client.workload {
                continue;
            }
            for port in &service.ports {
                let target = c.target_port(port, backend).unwrap();
                let at = SocketAddr::new(service.addresses.0.into(), port.port);
                let one = if port.protocol == "UDP" { Try::udp(trier(), at) } else { Try::tcp(trier(), at) };
                all.push(one.judged(&backend.key(), target));
            }
        }
        if client.key() != dns.key() {
            let (to, judged) = ("api.shop.svc.cluster.local".to_owned(), (dns.key(), 53));
            all.push(Try { trier: trier(), to, how: How::DnsMusl, judged });
        }
        let web = c.pod(&shop.pods("web")[0]);
        if client.workload != web.workload {
            let own = node_addresses(client.node).0;
            all.push(Try::tcp(trier(), (own, WEB_NODE_PORT).into()).judged(&web.key(), 8080));
        }
        for (server, port) in
            [(EXTERNAL_SERVER.0, 443), (EXTERNAL_SERVER.1, 443), (EXTERNAL_SERVER.0, 444), (UNKNOWN_SERVER, 443)]
        {
            all.push(Try::tcp(trier(), SocketAddr::new(server.parse().unwrap(), port)));
        }
    }
    for server in servers {
        for port in &c.workloads[server.workload].ports {
            for trier in [STRANGER, EXTERNAL_CLIENT]
                .map(|a| Trier::Internet(a.parse().unwrap()))
                .into_iter()
                .chain([Trier::Node(0), Trier::Node(1)])
            {
                let at = SocketAddr::new(server.addresses.0.into(), port.number);
                let one = if port.protocol == "UDP" { Try::udp(trier, at) } else { Try::tcp(trier, at) };
                all.push(one.judged(&server.key(), port.number));
            }
        }
    }
    all
}

/// Which kinds of connection that nobody had seen were dropped.
fn kinds_dropped(cluster: &Cluster, tries: &[Try], reached: &[bool]) -> BTreeSet<&'static str> {
    let kind = |one: &Try| {
        let (destination, port) = &one.judged;
        let server = cluster.pods.iter().find(|p| p.key() == *destination);
        match (&one.trier, server) {
            (Trier::Internet(_), _) => "from outside",
            (Trier::Node(_), _) => "from another node",
            (Trier::Pod(_), None) => "to the outside",
            (Trier::Pod(_), Some(_)) if *port == 9999 => "to another port",
            (Trier::Pod(client), Some(server)) if cluster.pod(client).namespace == server.namespace => {
                "within the namespace"
            }
            (Trier::Pod(_), Some(_)) => "from another namespace",
        }
    };
    tries.iter().zip(reached).filter(|(_, reached)| !**reached).map(|(one, _)| kind(one)).collect()
}

#[test]
fn the_shop_works_under_what_was_exported_from_it_and_nothing_else_does() {
    if !bins::can_run("the shop under its policies") {
        return;
    }
    let mut shop = Shop::start(&bins::find("guardrail-lab-app"), &["node-a", "node-b"], 11).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&shop.lab, node, &[]).unwrap()).collect();
    shop.run().unwrap();
    let before = shop.truth().unwrap();
    let snapshot = shop.lab.directory.join("merged.json");
    let merge = || merge(&shop.lab, &agents, &snapshot);
    eventually(Duration::from_secs(20), merge, |m| same(&compare(m, &before))).unwrap();
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let tries = shop_tries(&shop);
    // Without policies all of them pass: what is dropped below is dropped by policies.
    try_all(&shop.lab, "open", &tries, &vec![true; tries.len()]);

    let constrain = export(&shop.lab, &snapshot, "constrain", &["--phase=constrain"]);
    let deny = export(&shop.lab, &snapshot, "default-deny", &["--phase=default-deny", "--egress"]);
    let aws = ["--phase=default-deny", "--egress", AWS[0], AWS[1]];
    let aws = export(&shop.lab, &snapshot, "default-deny-aws", &aws);
    let from_elsewhere = ["from another namespace", "from another node", "from outside", "to another port"];
    let (everything, after) = (["to the outside", "within the namespace"], AskedPlace::Backend);
    let mut rounds = 0;
    for (directory, egress, extra, more) in [
        (&constrain, after, &[][..], &[][..]),
        (&deny, after, &[], &everything),
        (&aws, AskedPlace::Asked, &AWS, &everything),
    ] {
        for memory in MEMORIES {
            rounds += 1;
            let judge = Judge { egress, memory };
            enforce(&shop.lab, judge, directory).unwrap();
            let since = now_ns();
            shop.run_again(rounds).unwrap();
            shop.report(&format!(":again-{rounds}")).unwrap();
            happened_again(&before, &truth_since(&shop.lab, since), &format!("{} {judge:?}", directory.display()));
            let verdicts = tried(&shop.lab, &rounds.to_string(), directory, &tries, extra);
            let wanted: BTreeSet<_> = from_elsewhere.iter().chain(more).copied().collect();
            assert_eq!(kinds_dropped(&shop.lab.cluster, &tries, &verdicts), wanted, "{judge:?}");
        }
    }
}

#[test]
fn link_local_services_and_dns_on_the_node_are_open_to_who_asked_and_the_services_closed_to_others() {
    if !bins::can_run("services on the node under policies") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let client = deployment(&mut c, "client", 8080, 0);
    let near = deployment(&mut c, "near", 8080, 0);
    let other = c.workload("other", Kind::Deployment, "other", &[], &[0]).remove(0);
    let port = Port { name: "dns", protocol: "UDP", number: 53 };
    let dns = c.workload("kube-system", Kind::Deployment, "coredns", &[port], &[0]).remove(0);
    let front = ServicePort { name: "dns", protocol: "UDP", port: 53, target: Target::Number(53), node_port: None };
    let service = IpAddr::from(c.service("kube-system", "kube-dns", "coredns", &[front]).addresses.0);
    let (link_local, identity): (IpAddr, IpAddr) = ([169, 254, 20, 10].into(), [169, 254, 170, 23].into());
    let (metadata, metadata6): (IpAddr, IpAddr) = ([169, 254, 169, 254].into(), "fd00:ec2::254".parse().unwrap());
    let plane = NodeAnswers { addresses: vec![service, link_local, identity] };
    let lab = Lab::start_on(plane, c, &bins::find("guardrail-lab-app")).unwrap();
    lab.internet.ip("addr add 169.254.169.254/32 dev lo\naddr add fd00:ec2::254/128 dev lo nodad\n").unwrap();
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let tcp_at = |ip, port| Serve::Tcp {
        bind: SocketAddr::new(ip, port),
        backlog: 16,
        mptcp: false,
        reuse_port: false,
        v6_only: false,
    };
    let udp_at = |ip| Serve::Udp { bind: SocketAddr::new(ip, 53), reply: true, ignore: false };
    let serving = |serve: Vec<Serve>| Scenario { serve, ..Scenario::default() };
    let servers = [
        lab.start_on_internet("metadata", serving(vec![tcp_at(metadata, 80), tcp_at(metadata6, 80)])).unwrap(),
        lab.start_on_node(0, "identity", serving(vec![tcp_at(identity, 80)])).unwrap(),
        lab.start_on_node(0, "node-cache", serving(vec![udp_at(service), udp_at(link_local)])).unwrap(),
        lab.start_in_pod(&dns, "", serving(vec![Serve::udp(53)])).unwrap(),
    ];
    ready(&servers);
    let call = |ip, port, how| Call::new(&SocketAddr::new(ip, port).to_string(), how, 3);
    let mut after: Vec<_> = [metadata, metadata6, identity].map(|ip| call(ip, 80, How::Tcp)).into();
    after.extend([service, link_local].map(|ip| call(ip, 53, How::UdpConnected)));
    let mut client = start(&lab, vec![(&client, Scenario { after, ..Scenario::default() })]).unwrap();
    go(&mut client).unwrap();
    let before = truth(&lab).unwrap();
    let snapshot = eventually_true(&agent, &before).unwrap();
    assert!(agent.terminate().unwrap().success());
    let mut tries = Vec::new();
    for stranger in [&near, &other] {
        let trier = || Trier::Pod(stranger.clone());
        tries.extend([metadata, metadata6, identity].map(|ip| (Try::tcp(trier(), (ip, 80).into()), false)));
        // Everybody may ask for names, and the node answers at both addresses.
        for ip in [link_local, service] {
            tries.push((Try::udp(trier(), (ip, 53).into()).judged(&link_local.to_string(), 53), true));
        }
    }
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut client, round + 1).unwrap());
}

#[test]
fn behind_sidecars_the_ports_that_were_dialled_are_open_and_no_others() {
    if !bins::can_run("sidecars under policies") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 1));
    let meshed_stranger = deployment(&mut c, "meshed-stranger", 8080, 1);
    let mut outside = |namespace: &str, name: &str, node| {
        let port = Port { name: "main", protocol: "TCP", number: 8080 };
        let key = c.workload(namespace, Kind::Deployment, name, &[port], &[node]).remove(0);
        c.workloads.last_mut().unwrap().labels.insert(Sidecar::OUTSIDE.into(), "true".into());
        key
    };
    let (plain_server, plain_client) = (outside("lab", "plain-server", 1), outside("lab", "plain-client", 0));
    let strangers = [outside("lab", "stranger", 0), outside("other", "stranger", 1)];
    let http = ServicePort { name: "http", protocol: "TCP", port: 80, target: Target::Number(8080), node_port: None };
    let meshed = c.service("lab", "meshed", "server", std::slice::from_ref(&http)).addresses;
    let plain = c.service("lab", "plain", "plain-server", &[http]).addresses;
    let lab = Lab::start_on(Sidecar { inbound: 15006, outbound: Some(15001) }, c, &bins::find("guardrail-lab-app"));
    let lab = lab.unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let serving = |serve: Vec<Serve>| Scenario { serve, ..Scenario::default() };
    let proxies = [&server, &client, &meshed_stranger].map(|pod| {
        let inbound = Serve::Proxy { port: 15006, on: Onward::Inside { inner: 8080 } };
        let outbound = Serve::Proxy { port: 15001, on: Onward::Outside { endpoints: BTreeMap::new() } };
        lab.start_in_pod(pod, ":proxy", serving(vec![inbound, outbound])).unwrap()
    });
    ready(&proxies);
    let serve = || serving(vec![Serve::tcp(8080), Serve::tcp(9001)]);
    let _servers = start(&lab, vec![(&server, serve()), (&plain_server, serve())]).unwrap();
    let (pod, plain_pod) = (lab.cluster.pod(&server).addresses, lab.cluster.pod(&plain_server).addresses);
    let calls: Vec<SocketAddr> = vec![
        (meshed.0, 80).into(),
        (meshed.1, 80).into(),
        (pod.0, 8080).into(),
        (pod.1, 8080).into(),
        (plain.0, 80).into(),
    ];
    let after: Vec<_> = calls.iter().map(|to| Call::new(&to.to_string(), How::Tcp, 5)).collect();
    let calling = || Scenario { after: after.clone(), ..Scenario::default() };
    let mut clients = start(&lab, vec![(&client, calling()), (&plain_client, calling())]).unwrap();
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let merged = lab.directory.join("merged.json");
    let snapshot =
        eventually(Duration::from_secs(30), || merge(&lab, &agents, &merged), |m| same(&compare(m, &before)));
    let snapshot = snapshot.unwrap();
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let mut tries = Vec::new();
    for stranger in strangers.iter().chain([&meshed_stranger]) {
        let trier = || Trier::Pod(stranger.clone());
        let at = |pod: &str, to: SocketAddr, port| (Try::tcp(trier(), to).judged(pod, port), false);
        tries.extend([
            at(&server, (pod.0, 8080).into(), 8080),
            at(&server, (pod.1, 8080).into(), 8080),
            at(&server, (meshed.0, 80).into(), 8080),
            at(&server, (pod.0, 9001).into(), 9001),
            at(&plain_server, (plain_pod.0, 8080).into(), 8080),
            at(&plain_server, (plain.1, 80).into(), 8080),
        ]);
    }
    for trier in [Trier::Pod(plain_client.clone()), Trier::Internet(STRANGER.parse().unwrap())] {
        // A port that nobody dialled, and the proxy's own, which nobody dialled either.
        for port in [9001, 15006] {
            tries.push((Try::tcp(trier.clone(), (pod.0, port).into()).judged(&server, port), false));
        }
    }
    let allowed = Try::tcp(Trier::Pod(plain_client), (pod.1, 8080).into()).judged(&server, 8080);
    tries.push((allowed, true));
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
}

/// One node with a server behind a proxy, a client without one that calls ports, and strangers
/// that try some: what was dialled is open to the client alone.
fn open_to_who_dialled(plane: impl DataPlane + 'static, proxy: Serve, dialled: &[u16], tried: [u16; 2]) {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let port = Port { name: "main", protocol: "TCP", number: 8080 };
    let [client, near, other] = [("lab", "client"), ("lab", "near"), ("other", "other")].map(|(namespace, name)| {
        let key = c.workload(namespace, Kind::Deployment, name, std::slice::from_ref(&port), &[0]).remove(0);
        c.workloads.last_mut().unwrap().labels.insert(Sidecar::OUTSIDE.into(), "true".into());
        key
    });
    let address = c.pod(&server).addresses.0;
    let lab = Lab::start_on(plane, c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let serving = |serve: Serve| Scenario { serve: vec![serve], ..Scenario::default() };
    let processes =
        [lab.start_in_pod(&server, ":proxy", serving(proxy)), lab.start_in_pod(&server, "", serving(Serve::tcp(8080)))];
    let processes = processes.map(Result::unwrap);
    ready(&processes);
    let after = dialled.iter().map(|port| Call::new(&format!("{address}:{port}"), How::Tcp, 5)).collect();
    let mut clients = start(&lab, vec![(&client, Scenario { after, ..Scenario::default() })]).unwrap();
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let snapshot = eventually(
        Duration::from_secs(30),
        || agent.snapshot(),
        |snapshot| {
            let ports: Vec<_> = edges(snapshot).into_keys().map(|edge| edge.port).collect();
            if ports == dialled && snapshot["coverage"]["complete"] == true {
                Ok(())
            } else {
                Err(format!("{ports:?}"))
            }
        },
    );
    let snapshot = snapshot.unwrap();
    assert!(agent.terminate().unwrap().success());
    let mut tries = Vec::new();
    for port in tried {
        let at = |trier| Try::tcp(trier, (address, port).into()).judged(&server, port);
        tries.push((at(Trier::Pod(client.clone())), dialled.contains(&port)));
        tries.extend([&near, &other].map(|stranger| (at(Trier::Pod(stranger.clone())), false)));
        tries.push((at(Trier::Internet(STRANGER.parse().unwrap())), false));
    }
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
}

#[test]
fn a_proxys_own_port_is_open_to_who_dialled_it() {
    if bins::can_run("a tunnel under policies") {
        let proxy = Serve::Proxy { port: 15006, on: Onward::Inside { inner: 8080 } };
        open_to_who_dialled(Sidecar { inbound: 15006, outbound: None }, proxy, &[8080, 15006], [8080, 15006]);
    }
}

#[test]
fn behind_a_transparent_proxy_the_port_that_was_dialled_is_open_and_no_other() {
    if bins::can_run("a transparent proxy under policies") {
        let proxy = Serve::Proxy { port: 15006, on: Onward::Transparent };
        open_to_who_dialled(Transparent { inbound: 15006, port: 8080 }, proxy, &[8080], [8080, 9001]);
    }
}
