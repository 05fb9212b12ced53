//! Data planes beside plain kube-proxy: the graph is what really happened, on each of them
//! (docs/data-planes.md).

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    bpf::SocketBalancer,
    cluster::{Kind, Port, ServicePort, Target},
    compare::edges,
    lab::{Lab, plane::NodeAnswers, process::AppProcess},
    small::{cluster, deployment, eventually_true, go, start, truth},
};

fn bound(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn tcp_at(address: &str) -> Serve {
    Serve::Tcp { bind: bound(address), backlog: 16, mptcp: false, reuse_port: false, v6_only: false }
}

fn udp_at(address: &str) -> Serve {
    Serve::Udp { bind: bound(address), reply: true, ignore: false }
}

fn ready(processes: &[AppProcess]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    processes.iter().for_each(|process| process.wait_for("ready", deadline).unwrap());
}

#[test]
fn metadata_services_at_link_local_addresses_are_external_peers_and_those_that_the_node_serves_are_the_node() {
    if !bins::can_run("link-local services") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let client = deployment(&mut c, "client", 8080, 0);
    // The cloud's metadata service, which is nowhere in the cluster, and an agent on the node.
    let (cloud, agent_of_node) = ("169.254.169.254:80", "169.254.170.23:80");
    let plane = NodeAnswers { addresses: vec!["169.254.170.23".parse().unwrap()] };
    let lab = Lab::start_on(plane, c, &bins::find("guardrail-lab-app")).unwrap();
    lab.internet.ip("addr add 169.254.169.254/32 dev lo\naddr add fd00:ec2::254/128 dev lo nodad\n").unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let serve = |all: &[&str]| Scenario { serve: all.iter().map(|a| tcp_at(a)).collect(), ..Scenario::default() };
    let servers = [
        lab.start_on_internet("metadata", serve(&[cloud, "[fd00:ec2::254]:80"])).unwrap(),
        lab.start_on_node(0, "identity", serve(&[agent_of_node])).unwrap(),
    ];
    ready(&servers);
    let calls = [cloud, agent_of_node, "[fd00:ec2::254]:80"].map(|to| Call::new(to, How::Tcp, 5));
    let mut client = start(&lab, vec![(&client, Scenario { after: calls.to_vec(), ..Scenario::default() })]).unwrap();
    go(&mut client).unwrap();
    let truth = truth(&lab).unwrap();
    let snapshot = eventually_true(&agent, &truth).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    let servers: Vec<_> = edges(&snapshot).into_keys().map(|edge| edge.server).collect();
    assert_eq!(servers, ["external/169.254.169.254", "external/fd00:ec2::254", "node/node-a"]);
}

#[test]
fn names_that_the_node_answers_make_an_edge_to_the_node_and_none_to_the_pods_behind_the_dns_service() {
    if !bins::can_run("DNS on the node") {
        return;
    }
    let mut c = cluster(&["node-a", "node-b"]);
    let client = deployment(&mut c, "client", 8080, 0);
    let ports = [Port { name: "dns", protocol: "UDP", number: 53 }];
    c.workload("kube-system", Kind::Deployment, "coredns", &ports, &[1]);
    let dns = ServicePort { name: "dns", protocol: "UDP", port: 53, target: Target::Number(53), node_port: None };
    let service = IpAddr::from(c.service("kube-system", "kube-dns", "coredns", &[dns]).addresses.0);
    let link_local: IpAddr = "169.254.20.10".parse().unwrap();
    let plane = NodeAnswers { addresses: vec![service, link_local] };
    let lab = Lab::start_on(plane, c, &bins::find("guardrail-lab-app")).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let asked = [service, link_local].map(|address| format!("{address}:53"));
    let serve = asked.iter().map(|address| udp_at(address)).collect();
    let cache = lab.start_on_node(0, "node-cache", Scenario { serve, ..Scenario::default() }).unwrap();
    ready(std::slice::from_ref(&cache));
    let after = asked.iter().map(|to| Call::new(to, How::UdpConnected, 5)).collect();
    let mut client = start(&lab, vec![(&client, Scenario { after, ..Scenario::default() })]).unwrap();
    go(&mut client).unwrap();
    let truth = truth(&lab).unwrap();
    let snapshot = eventually_true(&agent, &truth).unwrap();
    let all: Vec<_> = edges(&snapshot).into_keys().map(|edge| edge.to_string()).collect();
    assert_eq!(all, ["lab/Deployment/client -> node/node-a 53/UDP"], "node-b, where CoreDNS runs, has no agent");
}

#[test]
fn what_a_socket_was_given_in_a_services_place_is_an_edge_to_the_pod_that_asks_for_no_service() {
    if !bins::can_run("socket load balancing") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let (server, client) = (deployment(&mut c, "server", 8080, 0), deployment(&mut c, "client", 8080, 0));
    let http = ServicePort { name: "http", protocol: "TCP", port: 80, target: Target::Number(8080), node_port: None };
    let asked = SocketAddrV4::new(c.service("lab", "asked", "server", &[http]).addresses.0, 80);
    let backend = SocketAddrV4::new(c.pod(&server).addresses.0, 8080);
    let lab = Lab::start(c, &bins::find("guardrail-lab-app")).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let _server = start(&lab, vec![(&server, Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() })]);
    let after = vec![Call::new(&asked.to_string(), How::Tcp, 12)];
    let mut client_process = start(&lab, vec![(&client, Scenario { after, ..Scenario::default() })]).unwrap();
    let _balancer = SocketBalancer::attach(&lab.pod_cgroup(lab.cluster.pod(&client)), asked, backend).unwrap();
    go(&mut client_process).unwrap();
    let mut truth = truth(&lab).unwrap();
    assert_eq!(truth.edges.len(), 1);
    // The log has what the application asked for, of which its socket knows nothing.
    truth.edges.values_mut().for_each(|evidence| evidence.via.clear());
    let snapshot = eventually_true(&agent, &truth).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    assert_eq!(snapshot["service_flows"], serde_json::json!([]));
}
