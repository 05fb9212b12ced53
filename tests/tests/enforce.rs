//! The filters that the lab makes of NetworkPolicies, on policies and packets written by hand: what
//! other tests rest on when they enforce what was exported.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use guardrail_tests::{
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    cluster::{Cluster, Kind, Port, ServicePort, Target, node_addresses},
    enforce::{AskedPlace, Judge, Memory, enforce},
    lab::{EXTERNAL_SERVER, Lab, process::AppProcess},
    small::{cluster, deployment, lab, start},
    tries::{self, Trier, Try},
};

const AFTER: Judge = Judge { egress: AskedPlace::Backend, memory: Memory::Connection };
const BEFORE: Judge = Judge { egress: AskedPlace::Asked, memory: Memory::Connection };
const AFTER_BY_PACKET: Judge = Judge { egress: AskedPlace::Backend, memory: Memory::Packet };
const BEFORE_BY_PACKET: Judge = Judge { egress: AskedPlace::Asked, memory: Memory::Packet };

/// A policy of namespace `lab` for the pods `app: NAME`, with the rest of its `spec`.
fn policy(name: &str, number: usize, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}-{number}, namespace: lab}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {name}}}}}, {spec}}}\n---\n"
    )
}

/// Writes policies, one for each pair of a workload and the rest of a `spec`, and enforces them.
fn force(lab: &Lab, judge: Judge, policies: &[(&str, &str)]) {
    let directory = lab.directory.join("by-hand");
    fs::create_dir_all(&directory).unwrap();
    let text: String = policies.iter().enumerate().map(|(number, (name, spec))| policy(name, number, spec)).collect();
    fs::write(directory.join("all.yaml"), text).unwrap();
    enforce(lab, judge, &directory).unwrap();
}

/// A lab with servers, one pod each with the labels `app: NAME` and `role: NAME`, which listen on
/// 8080 (`main`), 9001 and 5353/UDP.
struct World {
    lab: Lab,
    /// Servers, which end with the lab.
    _servers: Vec<AppProcess>,
}

impl World {
    fn new(mut c: Cluster, servers: &[&str]) -> Self {
        let mut keys = Vec::new();
        for &name in servers {
            keys.push(deployment(&mut c, name, 8080, 0));
            c.workloads.last_mut().unwrap().labels.insert("role".into(), name.into());
        }
        let lab = lab(c).unwrap();
        let serve =
            || Scenario { serve: vec![Serve::tcp(8080), Serve::tcp(9001), Serve::udp(5353)], ..Scenario::default() };
        let _servers = start(&lab, keys.iter().map(|key| (key.as_str(), serve())).collect()).unwrap();
        Self { lab, _servers }
    }

    fn key(&self, name: &str) -> String {
        let c = &self.lab.cluster;
        let found = c.pods.iter().find(|p| c.workloads[p.workload].name == name);
        found.unwrap_or_else(|| panic!("no workload {name}")).key()
    }

    /// Address and port of a workload's pod, IPv6 if the port is written `6:PORT`.
    fn at(&self, name: &str, port: &str) -> SocketAddr {
        let (v4, v6) = self.lab.cluster.pod(&self.key(name)).addresses;
        match port.strip_prefix("6:") {
            Some(port) => SocketAddr::new(v6.into(), port.parse().unwrap()),
            None => SocketAddr::new(v4.into(), port.parse().unwrap()),
        }
    }

    /// A line of a table: `CLIENT SERVER PORT[/UDP] passes|drops`. Clients are workloads, addresses
    /// on the internet, and `node0`, `node1`; servers are workloads and addresses.
    fn line(&self, line: &str) -> (Try, bool) {
        let [client, server, port, what] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("`{line}` has four words")
        };
        let trier = match (client.strip_prefix("node"), client.parse::<IpAddr>()) {
            (Some(node), _) => Trier::Node(node.parse().unwrap()),
            (None, Ok(address)) => Trier::Internet(address),
            _ => Trier::Pod(self.key(client)),
        };
        let (port, udp) = port.strip_suffix("/UDP").map_or((port, false), |port| (port, true));
        let to = match server.parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, port.parse().unwrap()),
            Err(_) => self.at(server, port),
        };
        let passes = match what {
            "passes" => true,
            "drops" => false,
            _ => panic!("`{what}` is neither"),
        };
        (if udp { Try::udp(trier, to) } else { Try::tcp(trier, to) }, passes)
    }

    /// What packets do is what the table says.
    fn holds(&self, round: &str, table: &str) {
        let (tries, expected): (Vec<_>, Vec<_>) =
            table.lines().filter(|l| !l.trim().is_empty()).map(|line| self.line(line)).unzip();
        let reached = tries::run(&self.lab, round, &tries).unwrap();
        let different = tries::differences(&tries, &reached, &expected);
        assert!(different.is_empty(), "{round}:\n{different}");
    }
}

/// `node-a` has the servers, `node-b` a client in the same namespace and two in another one.
fn clients() -> Cluster {
    let mut c = cluster(&["node-a", "node-b"]);
    let none: [Port; 0] = [];
    c.workload("lab", Kind::Deployment, "near", &none, &[0]);
    c.workload("lab", Kind::Deployment, "far", &none, &[1]);
    c.workload("other", Kind::Deployment, "other", &none, &[0]);
    c.workload("other", Kind::Deployment, "another", &none, &[1]);
    c
}

#[test]
fn ingress_rules_admit_what_the_api_says_and_nothing_else() {
    if !bins::can_run("ingress rules by hand") {
        return;
    }
    let servers = [
        "open",
        "closed",
        "any",
        "same",
        "labelled",
        "elsewhere",
        "either",
        "blocks",
        "ports",
        "union",
        "untyped",
        "outward",
        "typed",
    ];
    let world = World::new(clients(), &servers);
    let policies = [
        ("closed", "policyTypes: [Ingress]"),
        ("any", "policyTypes: [Ingress], ingress: [{}]"),
        ("same", "policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]"),
        (
            "labelled",
            "ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [near]}, {key: app, operator: Exists}]}}]}]",
        ),
        (
            "elsewhere",
            "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}, podSelector: {matchLabels: {app: other}}}]}]",
        ),
        (
            "either",
            "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}, {podSelector: {matchLabels: {app: near}}}]}]",
        ),
        (
            "blocks",
            "ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.0/24]}}, {ipBlock: {cidr: 'fd00:10:244:1::/64'}}, {ipBlock: {cidr: 100.64.0.0/24}}]}]",
        ),
        (
            "ports",
            "ingress: [{ports: [{port: main}, {port: nothing}, {port: 9000, endPort: 9002}, {protocol: UDP, port: 5353}]}]",
        ),
        ("union", "ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]"),
        ("union", "ingress: [{from: [{podSelector: {matchLabels: {app: far}}}], ports: [{port: 9001}]}]"),
        ("untyped", "egress: []"),
        ("outward", "policyTypes: [Egress], ingress: []"),
        ("typed", "policyTypes: [Ingress], egress: [], ingress: [{from: [], ports: []}]"),
    ];
    let table = "
        near open 8080 passes
        100.64.0.7 open 8080 passes
        near closed 8080 drops
        far closed 6:8080 drops
        other closed 5353/UDP drops
        100.64.0.7 closed 8080 drops
        node0 closed 8080 passes
        node0 closed 6:8080 passes
        node1 closed 8080 drops
        near any 8080 passes
        another any 6:8080 passes
        100.64.0.7 any 8080 passes
        far any 7/UDP passes
        near same 8080 passes
        far same 6:8080 passes
        other same 8080 drops
        100.64.0.7 same 8080 drops
        near labelled 8080 drops
        far labelled 8080 passes
        other labelled 8080 drops
        other elsewhere 8080 passes
        another elsewhere 8080 drops
        near elsewhere 8080 drops
        other either 8080 passes
        another either 6:8080 passes
        near either 8080 passes
        far either 8080 drops
        near blocks 8080 passes
        near blocks 6:8080 drops
        far blocks 8080 drops
        far blocks 6:8080 passes
        100.64.0.7 blocks 8080 passes
        100.64.1.7 blocks 8080 drops
        near ports 8080 passes
        another ports 6:8080 passes
        near ports 8081 drops
        near ports 8999 drops
        near ports 9000 passes
        near ports 9001 passes
        near ports 9002 passes
        near ports 9003 drops
        near ports 5353/UDP passes
        near ports 5354/UDP drops
        near ports 8080/UDP drops
        near union 8080 passes
        far union 8080 drops
        far union 9001 passes
        other union 9001 drops
        near untyped 8080 drops
        near outward 8080 passes
        near typed 8080 passes
        closed open 8080 passes
        closed open 6:5353/UDP passes
    ";
    force(&world.lab, AFTER, &policies);
    world.holds("by-connection", table);
    // Where egress is judged changes nothing of ingress.
    force(&world.lab, BEFORE_BY_PACKET, &policies);
    world.holds("by-packet", table);
}

#[test]
fn egress_rules_are_judged_at_the_pod_or_at_the_address_that_was_asked_for() {
    if !bins::can_run("egress rules by hand") {
        return;
    }
    let mut c = clients();
    c.workload("other", Kind::Deployment, "named", &[Port { name: "main", protocol: "TCP", number: 9001 }], &[1]);
    let front = |target| ServicePort { name: "main", protocol: "TCP", port: 80, target, node_port: None };
    let same = c.service("lab", "same", "open", &[front(Target::Name("main"))]).addresses;
    let other = c.service("lab", "other", "open", &[front(Target::Number(8080))]);
    other.selector.0 = "role".into();
    let other = other.addresses;
    let world = World::new(c, &["open", "shut", "to-pods", "to-names", "to-blocks", "to-all"]);
    let named = world.lab.start_in_pod(
        &world.key("named"),
        "",
        Scenario { serve: vec![Serve::tcp(8080), Serve::tcp(9001)], ..Scenario::default() },
    );
    let named = named.unwrap();
    let outside = Scenario { serve: vec![Serve::tcp(443)], ..Scenario::default() };
    let outside = world.lab.start_on_internet("outside", outside).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    [&named, &outside].into_iter().for_each(|p| p.wait_for("ready", deadline).unwrap());
    let policies = [
        ("shut", "policyTypes: [Egress]"),
        ("to-pods", "egress: [{to: [{podSelector: {matchLabels: {app: open}}}], ports: [{port: main}]}]"),
        ("to-names", "egress: [{ports: [{port: main}]}]"),
        (
            "to-blocks",
            "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.128/25]}}, {ipBlock: {cidr: '2001:db8::/32'}}], ports: [{port: 443}]}]",
        ),
        ("to-all", "policyTypes: [Egress], egress: [{}]"),
    ];
    let (node, internet) = (node_addresses(0).0, EXTERNAL_SERVER);
    let table = format!(
        "
        shut open 8080 drops
        shut open 6:5353/UDP drops
        shut {internet4} 443 drops
        shut {same4} 80 drops
        shut {node} 10250 passes
        near shut 8080 passes
        near shut 6:8080 passes
        to-pods open 8080 passes
        to-pods open 6:8080 passes
        to-pods open 9001 drops
        to-pods shut 8080 drops
        to-pods {same4} 80 passes
        to-pods {same6} 80 passes
        to-pods {other_node} 10250 drops
        near to-pods 8080 drops
        to-names open 8080 passes
        to-names named 9001 passes
        to-names named 6:9001 passes
        to-names named 8080 drops
        to-names {internet4} 443 drops
        to-blocks {internet4} 443 passes
        to-blocks {internet6} 443 passes
        to-blocks {internet4} 444 drops
        to-blocks 203.0.113.200 443 drops
        to-blocks open 8080 drops
        to-all open 6:8080 passes
        to-all {internet6} 443 passes
        to-all {other4} 80 passes
        ",
        internet4 = internet.0,
        internet6 = internet.1,
        same4 = same.0,
        same6 = same.1,
        other4 = other.0,
        other_node = node_addresses(1).0,
    );
    world.lab.internet.ip("addr add 203.0.113.200/32 dev lo\n").unwrap();
    // The selector of the second Service is not the one that the rule has.
    for (judge, round, passes) in [
        (AFTER, "after-by-connection", "passes"),
        (AFTER_BY_PACKET, "after-by-packet", "passes"),
        (BEFORE, "before-by-connection", "drops"),
        (BEFORE_BY_PACKET, "before-by-packet", "drops"),
    ] {
        force(&world.lab, judge, &policies);
        world.holds(round, &format!("{table}\nto-pods {} 80 {passes}", other.0));
    }
}

#[test]
fn a_connection_that_stands_passes_where_connections_are_judged_and_ends_where_packets_are() {
    if !bins::can_run("standing connections under a policy") {
        return;
    }
    let mut c = clients();
    // A node follows connections once it translates addresses.
    let front = ServicePort { name: "main", protocol: "TCP", port: 80, target: Target::Number(8080), node_port: None };
    c.service("lab", "open", "open", &[front]);
    let world = World::new(c, &["open", "closed"]);
    let held = |name: &str| {
        let to = world.at(name, "8080").to_string();
        Scenario { before: vec![Call::new(&to, How::Held, 1).timeout(1000)], ..Scenario::default() }
    };
    let (near, far) = (world.key("near"), world.key("far"));
    let mut clients = start(&world.lab, vec![(&near, held("closed")), (&far, held("open"))]).unwrap();
    let mut use_again = |index: usize, nth: usize| {
        clients[index].go().unwrap();
        clients[index].wait_for_nth("done", nth, Instant::now() + Duration::from_secs(30))
    };
    let policies = [
        ("closed", "policyTypes: [Ingress]"),
        ("open", "policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: far}}}]}]"),
    ];
    force(&world.lab, AFTER, &policies);
    use_again(0, 1).unwrap();
    use_again(1, 1).unwrap();
    force(&world.lab, AFTER_BY_PACKET, &policies);
    // Answers of the closed direction are of a connection that the other one allows.
    use_again(1, 2).unwrap();
    let error = use_again(0, 2).expect_err("its packets are dropped");
    assert_eq!(error.to_string(), format!("{near} ended before it was done"));
}

#[test]
fn what_the_api_server_would_refuse_is_refused() {
    if !bins::can_run("policies that are none") {
        return;
    }
    let world = World::new(clients(), &["open"]);
    for (spec, why) in [
        ("ingress: [{from: [{}]}]", "a peer without any field"),
        ("ingress: [{to: [{podSelector: {}}]}]", "`from` belongs to ingress and `to` to egress"),
        ("ingress: [{from: [{namespaceselector: {}}]}]", "unknown field `namespaceselector`"),
        ("ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]", "ipBlock stands beside a selector"),
        ("ingress: [{ports: [{port: main, endPort: 9000}]}]", "endPort needs a port, which is a number"),
        ("ingress: [{ports: [{port: 90, endPort: 80}]}]", "endPort needs a port, which is a number"),
        ("ingress: [{ports: [{protocol: ICMP}]}]", "protocol ICMP"),
    ] {
        let file = world.lab.directory.join("bad");
        fs::create_dir_all(&file).unwrap();
        fs::write(file.join("bad.yaml"), policy("open", 0, spec)).unwrap();
        let error = format!("{:#}", enforce(&world.lab, AFTER, &file).expect_err(spec));
        assert!(error.contains(why), "{spec}: {error}");
    }
}
