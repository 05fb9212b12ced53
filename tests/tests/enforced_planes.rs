//! Data planes on which the network judges another thing than sockets see: the graph, and its
//! policies on real packets (docs/data-planes.md).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use guardrail_tests::{
    agent::Agent,
    app::scenario::{Onward, Serve},
    bins,
    cluster::{Cluster, Kind, Port, ServicePort, Target},
    held::{hold, hold_under_every_judge, ready, settled},
    lab::{
        Lab,
        plane::{Ambient, Ipvs, Masquerade, SecondNetwork, Sidecar},
        process::AppProcess,
    },
    small::{calling, cluster, deployment, go, go_again, serving, start, truth},
    tries::{Trier, Try},
};

/// Adds a Deployment outside any mesh.
fn plain(c: &mut Cluster, namespace: &str, name: &str, node: usize) -> String {
    let port = Port { name: "main", protocol: "TCP", number: 8080 };
    let key = c.workload(namespace, Kind::Deployment, name, &[port], &[node]).remove(0);
    c.workloads.last_mut().unwrap().labels.insert(Sidecar::OUTSIDE.into(), "true".into());
    key
}

fn service(c: &mut Cluster, name: &str, selects: &str) -> IpAddr {
    let http = ServicePort { name: "http", protocol: "TCP", port: 80, target: Target::Number(8080), node_port: None };
    c.service("lab", name, selects, &[http]).addresses.0.into()
}

fn pod_address(c: &Cluster, key: &str) -> IpAddr {
    c.pod(key).addresses.0.into()
}

/// Starts the sockets of the node's proxy in the namespaces of pods. Tunnels lead to these ends.
fn ztunnel(lab: &Lab, proxy: &str, pods: &[&str], ends: &BTreeMap<SocketAddr, SocketAddr>) -> Vec<AppProcess> {
    let [outbound, inbound, tunnels] = Ambient::PORTS;
    let serve = || {
        serving(vec![
            Serve::Proxy { port: outbound, on: Onward::Tunnel { ends: ends.clone() } },
            Serve::Proxy { port: inbound, on: Onward::InTheNameOf },
            Serve::Proxy { port: tunnels, on: Onward::Unpack },
        ])
    };
    let all: Vec<_> = pods.iter().map(|pod| lab.start_in_namespace_of(pod, proxy, serve()).unwrap()).collect();
    ready(&all);
    all
}

#[test]
fn in_an_ambient_mesh_tunnels_are_edges_and_rules_and_what_applications_see_stays_inside() {
    if !bins::can_run("an ambient mesh") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 1));
    let near = deployment(&mut c, "near", 8080, 0);
    let stranger = deployment(&mut c, "stranger", 8080, 1);
    let (plain_server, plain_client) =
        (plain(&mut c, "lab", "plain-server", 1), plain(&mut c, "lab", "plain-client", 0));
    let outsider = plain(&mut c, "other", "outsider", 1);
    let proxies = c.workload("mesh", Kind::DaemonSet, "ztunnel", &[], &[0, 1]);
    c.workloads.last_mut().unwrap().labels.insert(Sidecar::OUTSIDE.into(), "true".into());
    let (meshed, plain_service) = (service(&mut c, "meshed", "server"), service(&mut c, "plain", "plain-server"));
    let address = pod_address(&c, &server);
    let end = SocketAddr::new(address, 8080);
    let ends = BTreeMap::from([
        (SocketAddr::new(meshed, 80), end),
        (end, end),
        (SocketAddr::new(address, 9001), SocketAddr::new(address, 9001)),
    ]);
    let lab = Lab::start_on(Ambient, c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let _ztunnels = [
        ztunnel(&lab, &proxies[0], &[&server, &near], &ends),
        ztunnel(&lab, &proxies[1], &[&client, &stranger], &ends),
    ];
    let serve = || serving(vec![Serve::tcp(8080), Serve::tcp(9001)]);
    let _servers = start(&lab, vec![(&server, serve()), (&plain_server, serve())]).unwrap();
    let mut callers = start(
        &lab,
        vec![
            (&client, calling(&[((meshed, 80).into(), 7), (end, 4), ((plain_service, 80).into(), 3)])),
            (&near, calling(&[(end, 6)])),
            (&plain_client, calling(&[((meshed, 80).into(), 5)])),
        ],
    )
    .unwrap();
    // The kubelet probes.
    callers.push(lab.start_on_node(0, "kubelet", calling(&[(end, 2)])).unwrap());
    ready(&callers[3..]);
    go(&mut callers).unwrap();
    let before = truth(&lab).unwrap();
    let snapshot = settled(
        &lab,
        &agents,
        &[
            r#"external/169.254.7.127 -> lab/Deployment/server 8080/TCP x2 ["link-local"]"#,
            r#"lab/Deployment/client -> lab/Deployment/plain-server 8080/TCP x3 ["proxied"]"#,
            r#"lab/Deployment/client -> lab/Deployment/server 8080/TCP x11 ["inside"], no rule"#,
            r#"lab/Deployment/client -> lab/Deployment/server 15008/TCP x11 ["proxied", "tunnel"]"#,
            r#"lab/Deployment/near -> lab/Deployment/server 8080/TCP x6 ["inside"], no rule"#,
            r#"lab/Deployment/near -> lab/Deployment/server 15008/TCP x6 ["proxied", "tunnel"]"#,
            r#"lab/Deployment/plain-client -> lab/Deployment/server 8080/TCP x5 ["proxied"]"#,
            r#"node/node-a -> lab/Deployment/server 8080/TCP x2 []"#,
        ],
    );
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    // A pod of the mesh goes by the tunnel, others by the port.
    let tried = |who: &str, port, judged, passes| {
        (Try::tcp(Trier::Pod(who.to_owned()), (address, port).into()).judged(&server, judged), passes)
    };
    let mut tries = vec![
        tried(&client, 8080, 15008, true),
        tried(&plain_client, 8080, 8080, true),
        tried(&plain_client, 9001, 9001, false),
        tried(&outsider, 8080, 8080, false),
        tried(&outsider, 9001, 9001, false),
        tried(&stranger, 8080, 15008, false),
        // The network does not see what stands inside.
        tried(&client, 9001, 15008, true),
    ];
    let to_plain = (pod_address(&lab.cluster, &plain_server), 8080).into();
    for (who, passes) in [(&client, true), (&stranger, false), (&outsider, false)] {
        tries.push((Try::tcp(Trier::Pod(who.clone()), to_plain).judged(&plain_server, 8080), passes));
    }
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut callers, round + 1).unwrap());
}

#[test]
fn a_network_beside_the_first_is_reported_and_gets_no_rule() {
    if !bins::can_run("a second network") {
        return;
    }
    for annotated in [true, false] {
        let mut c = cluster(&["node-a"]);
        let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 0));
        let stranger = deployment(&mut c, "stranger", 8080, 0);
        if annotated {
            [&server, &client].into_iter().for_each(|key| SecondNetwork::annotate(&mut c, key));
        }
        let (first, beside) = (pod_address(&c, &server), IpAddr::from(SecondNetwork::address(&c, &server)));
        let lab = Lab::start_on(SecondNetwork, c, &bins::find("guardrail-lab-app")).unwrap();
        let mut agents = vec![Agent::start(&lab, 0, &[]).unwrap()];
        let serve = serving(vec![Serve::tcp(8080), Serve::tcp(9000)]);
        let _server = start(&lab, vec![(&server, serve)]).unwrap();
        let calls = [(SocketAddr::new(first, 8080), 5), ((beside, 8080).into(), 7), ((beside, 9000).into(), 4)];
        let mut clients = start(&lab, vec![(&client, calling(&calls))]).unwrap();
        go(&mut clients).unwrap();
        let before = truth(&lab).unwrap();
        let snapshot = settled(
            &lab,
            &agents,
            &[
                // Seen on the first network, this is what the edge counts.
                "lab/Deployment/client -> lab/Deployment/server 8080/TCP x5 []",
                r#"lab/Deployment/client -> lab/Deployment/server 9000/TCP x4 ["secondary-network"], no rule"#,
            ],
        );
        agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
        let tried = |who: &str, port, passes| {
            (Try::tcp(Trier::Pod(who.to_owned()), (first, port).into()).judged(&server, port), passes)
        };
        let tries = [tried(&client, 8080, true), tried(&client, 9000, false), tried(&stranger, 8080, false)];
        hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
    }
}

#[test]
fn where_services_are_masqueraded_the_export_stops_until_nodes_may_call_and_then_everything_works() {
    if !bins::can_run("masquerading") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 1), deployment(&mut c, "client", 8080, 0));
    let stranger = deployment(&mut c, "stranger", 8080, 0);
    let asked = SocketAddr::new(service(&mut c, "asked", "server"), 80);
    let address = pod_address(&c, &server);
    let lab = Lab::start_on(Masquerade, c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let serve = serving(vec![Serve::tcp(8080), Serve::tcp(9001)]);
    let _server = start(&lab, vec![(&server, serve)]).unwrap();
    let mut clients = start(&lab, vec![(&client, calling(&[(asked, 9)]))]).unwrap();
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let snapshot = settled(
        &lab,
        &agents,
        &[
            r#"lab/Deployment/client -> lab/Deployment/server 8080/TCP x9 ["inferred", "masqueraded"]"#,
            "node/node-a -> lab/Deployment/server 8080/TCP x9 []",
        ],
    );
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let file = lab.directory.join("observed.json");
    std::fs::write(&file, snapshot.to_string()).unwrap();
    let inventory = lab.inventory();
    let args = ["export".as_ref(), file.as_os_str(), "--phase=default-deny".as_ref(), "--min-window=0s".as_ref()];
    let args = args.into_iter().chain(["--inventory".as_ref(), inventory.as_os_str()]);
    let output = guardrail_tests::agent::guardrail(args).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() != Some(0) && said.contains("masqueraded") && said.contains("--accept-inferred"),
        "{said}"
    );
    let tried = |who: &str, port, passes| {
        (Try::tcp(Trier::Pod(who.to_owned()), (address, port).into()).judged(&server, port), passes)
    };
    // What nobody translates is judged by who calls.
    let tries = [tried(&client, 8080, true), tried(&client, 9001, false), tried(&stranger, 8080, false)];
    let accepted = ["--accept-inferred"];
    hold(&lab, (&snapshot, &before), &tries, &accepted, |round| go_again(&mut clients, round + 1).unwrap());
}

#[test]
fn where_every_node_has_every_services_address_names_stay_right_and_exports_small() {
    if !bins::can_run("addresses of Services on nodes") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 1), deployment(&mut c, "client", 8080, 0));
    let stranger = deployment(&mut c, "stranger", 8080, 0);
    let asked = SocketAddr::new(service(&mut c, "asked", "server"), 80);
    for number in 0..40 {
        service(&mut c, &format!("other-{number}"), "nobody");
    }
    let address = pod_address(&c, &server);
    let lab = Lab::start_on(Ipvs, c, &bins::find("guardrail-lab-app")).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&lab, node, &[]).unwrap()).collect();
    let _server = start(&lab, vec![(&server, serving(vec![Serve::tcp(8080), Serve::tcp(9001)]))]).unwrap();
    let mut clients = start(&lab, vec![(&client, calling(&[(asked, 9), ((address, 8080).into(), 2)]))]).unwrap();
    clients.push(lab.start_on_node(0, "agent", calling(&[(asked, 4)])).unwrap());
    ready(&clients[1..]);
    go(&mut clients).unwrap();
    let before = truth(&lab).unwrap();
    let wanted = [
        "lab/Deployment/client -> lab/Deployment/server 8080/TCP x11 []",
        "node/node-a -> lab/Deployment/server 8080/TCP x4 []",
    ];
    let snapshot = settled(&lab, &agents, &wanted);
    agents.iter_mut().for_each(|agent| assert!(agent.terminate().unwrap().success()));
    let tried = |who: &str, port, passes| {
        (Try::tcp(Trier::Pod(who.to_owned()), (address, port).into()).judged(&server, port), passes)
    };
    let tries = [tried(&client, 8080, true), tried(&client, 9001, false), tried(&stranger, 8080, false)];
    hold_under_every_judge(&lab, (&snapshot, &before), &tries, |round| go_again(&mut clients, round + 1).unwrap());
    let ingress =
        std::fs::read_to_string(lab.directory.join("default-deny/lab.guardrail-allow-deployment-server.yaml"));
    let blocks: Vec<String> =
        ingress.unwrap().lines().filter(|l| l.contains("cidr:")).map(|l| l.trim().to_owned()).collect();
    assert!(blocks.len() <= 6 && !blocks.iter().any(|block| block.contains("10.96.")), "{blocks:?}");
}
