//! Data planes on which applications see another thing than the network judges: what is written
//! for them (docs/data-planes.md).

#[path = "../../guardrail-graph/tests/common/mod.rs"]
mod common;

use common::{Lab, ip, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation,
    inventory::read,
    observe::{CgroupId, FlowDelta, NetnsId},
    snapshot::merge,
};
use guardrail_policy::{
    evaluate::Cluster,
    export::{Exported, export},
    generate::{Options, Phase},
};

const WEB: &str = "10.244.1.2";
const API: &str = "10.244.1.3";

fn pods() -> [String; 3] {
    [
        pod("shop", "web", 0, "node-a", WEB, &[]),
        pod("shop", "api", 0, "node-a", API, &["http:8080"]),
        pod("mesh", "ztunnel", 0, "node-a", "10.244.1.9", &[]),
    ]
}

fn lab() -> Lab {
    let mut lab = Lab::new("node-a", &pods());
    for (cgroup, deployment) in [(1, "web"), (2, "api"), (3, "ztunnel")] {
        lab.pod_cgroup(cgroup, deployment, 0);
    }
    lab
}

/// What is exported when the other node has seen nothing.
fn exported(lab: &mut Lab) -> Exported {
    let mut options = Options::new(Phase::DefaultDeny);
    options.egress = true;
    options.cluster = Cluster::from_objects(&read::objects(common::CLUSTER, "cluster").unwrap().objects);
    let mut other = Lab::new("node-b", &pods());
    other.now = lab.now;
    export(&merge(vec![lab.snapshot(), other.snapshot()]), &options)
}

/// The ports and ranges of a namespace's policies.
fn opened(exported: &Exported, workload: &str) -> Vec<String> {
    let file = format!("shop.guardrail-allow-deployment-{workload}.yaml");
    let text = exported.files.get(&file).map_or("", String::as_str);
    let lines = text.lines().map(str::trim).filter_map(|line| line.trim_start_matches("- ").split_once(": "));
    let mut all: Vec<String> = lines
        .filter(|(key, _)| ["port", "cidr"].contains(key))
        .map(|(_, value)| value.trim_matches('"').to_owned())
        .collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn in_an_ambient_mesh_the_tunnels_and_probes_have_rules_and_what_is_inside_has_none() {
    let mut lab = lab();
    for netns in [NetnsId(1), NetnsId(2)] {
        let (cgroup, at) = (CgroupId(3), lab.now);
        let listening = Observation::Listening { cgroup, netns, address: ip("::"), port: 15008, listening: true, at };
        lab.observer.observe(listening, at);
    }
    let proxys = |flow: FlowDelta, netns| FlowDelta { cgroup: CgroupId(3), netns: Some(NetnsId(netns)), ..flow };
    lab.flow(proxys(tcp_client(3, WEB, API, 15008, t(5)), 1));
    lab.flow(proxys(tcp_server(3, API, WEB, 15008, t(5)), 2));
    lab.flow(proxys(tcp_client(3, WEB, API, 8080, t(5)), 2));
    lab.flow(tcp_server(2, API, WEB, 8080, t(5)));
    lab.flow(tcp_server(2, API, "169.254.7.127", 8080, t(5)));
    // The application called its way out itself: that shows whose the namespace is.
    lab.flow(FlowDelta { local_port: Some(15001), ..tcp_client(1, WEB, API, 8080, t(5)) });
    lab.at(15).at(30).at(70);
    let exported = exported(&mut lab);
    assert!(exported.stopped.is_empty(), "{:?}", exported.problems);
    assert_eq!(opened(&exported, "api"), ["15008", "169.254.7.127/32", "8080"]);
    assert_eq!(opened(&exported, "web"), ["15008"]);
    let report = exported.files.values().map(String::as_str).collect::<String>();
    assert!(report.contains("opens every port of the server that its proxy serves"), "{report}");
    assert!(report.contains("| inside a tunnel, or on a secondary network: no policy judges it |"), "{report}");
}

#[test]
fn on_a_network_beside_the_first_nothing_is_written_nothing_stops_and_the_report_says_so() {
    let mut lab = lab();
    lab.flow(tcp_client(1, "192.168.99.2", "192.168.99.3", 8080, t(5)));
    lab.flow(tcp_server(2, "192.168.99.3", "192.168.99.2", 8080, t(5)));
    lab.at(30);
    let exported = exported(&mut lab);
    assert!(exported.stopped.is_empty(), "{:?}", exported.problems);
    assert_eq!([opened(&exported, "api"), opened(&exported, "web")], [[""; 0]; 2]);
    let report = exported.files.values().map(String::as_str).collect::<String>();
    assert!(report.contains("| inside a tunnel, or on a secondary network: no policy judges it |"), "{report}");
}
