//! Who asked and who served: UDP, sockets found at start, and what is no conversation between two
//! peers.

mod common;

use common::{Lab, delta, edges, failed, ip, pod, t, tcp_client};
use guardrail_graph::{
    Observation, Protocol,
    observe::{CgroupId, FlowCounts, LossClass, LossReason, NetnsId, Remote, Role},
};

fn web(index: u32, node: &str, address: &str) -> String {
    pod("shop", "web", index, node, address, &[])
}

fn api(index: u32, node: &str, address: &str) -> String {
    pod("shop", "api", index, node, address, &["http:8080"])
}

#[test]
fn gossip_on_one_fixed_port_is_an_edge_each_way_only_where_each_side_sent() {
    let gossip = |index, address| pod("shop", "ring", index, "node-a", address, &["gossip:7946/UDP"]);
    let mut lab =
        Lab::new("node-a", &[gossip(0, "10.244.1.2"), gossip(1, "10.244.1.3"), web(0, "node-a", "10.244.1.4")]);
    lab.pod_cgroup(1, "ring", 0);
    lab.pod_cgroup(2, "ring", 1);
    for (cgroup, local, remote) in [(1, "10.244.1.2", "10.244.1.3"), (2, "10.244.1.3", "10.244.1.2")] {
        let mut sent = delta(cgroup, Role::Client, local, remote, Protocol::Udp, 7946, t(5));
        sent.local_port = Some(7946);
        lab.flow(sent);
    }
    let snapshot = lab.snapshot();
    assert_eq!(edges(&snapshot), ["ring -> ring UDP/7946"]);
    assert_eq!(snapshot.body.edges[0].counts.opened, 2);
}

#[test]
fn a_udp_answer_from_a_served_port_in_an_exchange_older_than_the_agent_is_no_edge() {
    let dns = pod("shop", "dns", 0, "node-a", "10.244.1.3", &["dns:53/UDP"]);
    let mut lab =
        Lab::new("node-a", &[dns, web(0, "node-a", "10.244.1.2"), pod("shop", "odd", 0, "node-a", "10.244.1.5", &[])]);
    lab.pod_cgroup(2, "dns", 0);
    lab.pod_cgroup(5, "odd", 0);
    let mut answer = delta(2, Role::Client, "10.244.1.3", "10.244.1.2", Protocol::Udp, 40_001, t(5));
    (answer.local_port, answer.bind_seen) = (Some(53), false);
    lab.flow(answer);
    assert_eq!((lab.edges().len(), lab.unresolved("role_unknown")), (0, 0), "a declared port answers");
    // Nothing tells whether this one answers or asks: it waits, and is counted.
    let mut unknown = delta(5, Role::Client, "10.244.1.5", "10.244.1.2", Protocol::Udp, 40_001, t(6));
    (unknown.local_port, unknown.bind_seen) = (Some(9999), false);
    lab.flow(unknown.clone());
    assert_eq!((lab.observer.stats().pending, lab.unresolved("role_unknown")), (1, 0));
    lab.at(100);
    assert_eq!((lab.edges().len(), lab.unresolved("role_unknown")), (0, 1));
    // Evidence settles it: a server record on the local port.
    lab.flow(unknown.clone());
    lab.flow(delta(5, Role::Server, "10.244.1.5", "10.244.1.2", Protocol::Udp, 9999, t(101)));
    lab.at(102);
    assert_eq!(lab.edges(), ["web -> odd UDP/9999"]);
    assert_eq!(lab.observer.stats().pending, 0);
    // To a port that is known to be served it is the local side's initiative.
    let mut ask = unknown;
    (ask.remote, ask.server_port) = (Remote::Addr(ip("10.244.1.3")), 53);
    lab.flow(ask);
    assert_eq!(lab.edges(), ["odd -> dns UDP/53", "web -> odd UDP/9999"]);
}

#[test]
fn what_a_gone_pod_served_tells_nothing_of_the_next_owner_of_its_address_and_is_forgotten() {
    let dns = pod("shop", "dns", 0, "node-a", "10.244.1.3", &["dns:53/UDP"]);
    let mut lab = Lab::new("node-a", &[dns, pod("shop", "odd", 0, "node-a", "10.244.1.5", &[])]);
    lab.pod_cgroup(2, "dns", 0);
    lab.pod_cgroup(5, "odd", 0);
    lab.flow(delta(5, Role::Server, "10.244.1.5", "10.244.1.3", Protocol::Udp, 9999, t(5)));
    lab.at(20).delete_pod("shop", "odd-5d9c-0");
    lab.at(40).apply(&pod("shop", "new", 0, "node-a", "10.244.1.5", &[]));
    lab.pod_cgroup(6, "new", 0);
    // The kernel gave the next owner's question just this port, and it is older than the agent's
    // sight of the server's bind.
    let mut answer = delta(2, Role::Client, "10.244.1.3", "10.244.1.5", Protocol::Udp, 9999, t(60));
    (answer.local_port, answer.bind_seen) = (Some(53), false);
    lab.at(60).flow(answer);
    assert_eq!(lab.edges(), ["dns -> odd UDP/9999"]);
    lab.at(120);
    assert_eq!(lab.entries("listener"), 0);
    // What lasts is kept.
    lab.flow(delta(6, Role::Server, "10.244.1.5", "10.244.1.3", Protocol::Udp, 9998, t(120)));
    lab.at(9000);
    assert_eq!(lab.entries("listener"), 1);
}

#[test]
fn the_role_of_a_socket_found_at_start_comes_from_listeners_and_known_ports_only() {
    let mut lab = Lab::new(
        "node-a",
        &[
            web(0, "node-a", "10.244.1.2"),
            api(0, "node-a", "10.244.1.3"),
            pod("shop", "db", 0, "node-a", "10.244.1.4", &[]),
        ],
    );
    for (id, name) in [(1, "web"), (2, "api"), (3, "db")] {
        lab.pod_cgroup(id, name, 0);
    }
    let found = |cgroup, local, local_port, remote, remote_port| {
        let mut d = delta(cgroup, Role::Undecided, local, remote, Protocol::Tcp, remote_port, t(1));
        d.local_port = Some(local_port);
        d.counts = FlowCounts { found: 1, ..FlowCounts::default() };
        d
    };
    lab.observer.observe(
        Observation::Listening {
            cgroup: CgroupId(3),
            netns: NetnsId(3),
            address: ip("::"),
            port: 5432,
            listening: true,
            at: t(1),
        },
        t(1),
    );
    lab.flow(found(3, "10.244.1.4", 5432, "10.244.1.2", 40_000));
    lab.flow(found(1, "10.244.1.2", 41_000, "10.244.1.3", 8080));
    lab.flow(found(1, "10.244.1.2", 42_000, "203.0.113.5", 443));
    lab.at(100);
    assert_eq!(lab.edges(), ["web -> api TCP/8080 [found-at-start]", "web -> db TCP/5432 [found-at-start]"]);
    assert_eq!(lab.unresolved("role_unknown"), 1);
}

fn listening(port: u16, listening: bool) -> Observation {
    let (cgroup, netns) = (CgroupId(3), NetnsId(3));
    Observation::Listening { cgroup, netns, address: ip("::"), port, listening, at: t(1) }
}

#[test]
fn listening_sockets_beyond_the_bound_are_counted_and_what_they_would_have_told_is_unknown() {
    let pods = [pod("shop", "db", 0, "node-a", "10.244.1.4", &[]), web(0, "node-a", "10.244.1.2")];
    let mut lab = Lab::with("node-a", &pods, |config| config.max_listeners = 2);
    lab.pod_cgroup(3, "db", 0);
    // The second socket of one port needs no room, and none is needed to stop listening.
    for (port, starts) in [(5001, true), (5002, true), (5001, true), (5003, true), (5003, false), (5004, true)] {
        lab.observer.observe(listening(port, starts), t(1));
    }
    assert_eq!(lab.lost(LossReason::ListenersFull), 2);
    for port in [5001, 5004] {
        let mut found = delta(3, Role::Undecided, "10.244.1.4", "10.244.1.2", Protocol::Tcp, 40_000, t(1));
        (found.local_port, found.counts) = (Some(port), FlowCounts { found: 1, ..FlowCounts::default() });
        lab.flow(found);
    }
    lab.at(100);
    assert_eq!(lab.edges(), ["web -> db TCP/5001 [found-at-start]"]);
    assert_eq!(lab.unresolved("role_unknown"), 1);
    let coverage = lab.snapshot().body.coverage;
    let lost: Vec<_> = coverage.losses.iter().map(|loss| (loss.reason.as_str(), loss.class, loss.count)).collect();
    assert_eq!(lost, [("listeners_full", LossClass::Hint, 2)]);
    let incomplete: Vec<_> = coverage.workloads.iter().filter(|w| w.reasons.contains("role_unknown")).collect();
    assert_eq!(incomplete.len(), 1, "{incomplete:?}");
}

#[test]
fn udp_ports_beyond_the_bound_are_counted_and_leave_no_question_passing_for_an_answer() {
    for bound in [2, 3] {
        let pods = [("odd", "10.244.1.5"), ("time", "10.244.1.3"), ("web", "10.244.1.2")]
            .map(|(name, address)| pod("shop", name, 0, "node-a", address, &[]));
        let mut lab = Lab::with("node-a", &pods, |config| config.max_listeners = bound);
        lab.pod_cgroup(5, "odd", 0);
        lab.pod_cgroup(3, "time", 0);
        let asked = |cgroup, local, port| delta(cgroup, Role::Server, local, "10.244.1.2", Protocol::Udp, port, t(2));
        let served = [(5, "10.244.1.5", 7001), (5, "10.244.1.5", 7002), (3, "10.244.1.3", 123)];
        for (cgroup, local, port) in served.into_iter().chain(served) {
            lab.flow(asked(cgroup, local, port));
        }
        // A port that is served itself asks one that is, from a bind that nobody saw.
        let mut asks = delta(5, Role::Client, "10.244.1.5", "10.244.1.3", Protocol::Udp, 123, t(3));
        (asks.local_port, asks.bind_seen) = (Some(7001), false);
        lab.flow(asks);
        lab.at(100);
        let (edge, unknown, lost) = if bound == 3 { (1, 0, 0) } else { (0, 1, 2) };
        let edges = lab.edges();
        assert_eq!(edges.iter().filter(|e| e.as_str() == "odd -> time UDP/123").count(), edge, "{bound}: {edges:?}");
        assert_eq!(lab.unresolved("role_unknown"), unknown, "{bound}");
        assert_eq!(lab.lost(LossReason::ListenersFull), lost, "{bound}");
    }
}

#[test]
fn multicast_and_broadcast_support_nothing_and_a_link_local_service_is_a_peer_like_others() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2")]);
    lab.pod_cgroup(1, "web", 0);
    for remote in ["239.1.2.3", "255.255.255.255", "169.254.169.254"] {
        lab.flow(delta(1, Role::Client, "10.244.1.2", remote, Protocol::Udp, 5353, t(5)));
    }
    lab.flow(delta(1, Role::Client, "fd00::2", "fe80::9", Protocol::Udp, 5353, t(5)));
    assert_eq!(
        lab.edges(),
        [
            "web -> external/169.254.169.254 UDP/5353 [link-local]",
            "web -> external/239.1.2.3 UDP/5353 [multicast] unsupported",
            "web -> external/255.255.255.255 UDP/5353 [broadcast] unsupported",
            "web -> external/fe80::9 UDP/5353 [link-local] unsupported",
        ]
    );
}

#[test]
fn udp_needs_an_answer_or_a_receiver_unless_it_is_sent_repeatedly_to_somebody_nobody_observes() {
    let mut lab = Lab::new(
        "node-a",
        &[
            web(0, "node-a", "10.244.1.2"),
            api(0, "node-a", "10.244.1.3"),
            pod("shop", "far", 0, "node-b", "10.244.2.3", &[]),
        ],
    );
    lab.pod_cgroup(1, "web", 0);
    let sent =
        |remote, port, counts| failed(delta(1, Role::Client, "10.244.1.2", remote, Protocol::Udp, port, t(5)), counts);
    let one_way = FlowCounts { opened: 5, bytes_sent: 50, ..FlowCounts::default() };
    lab.flow(sent("10.244.1.3", 1000, one_way));
    lab.flow(sent("10.244.2.3", 1000, one_way));
    lab.flow(sent("203.0.113.9", 514, one_way));
    lab.flow(sent("203.0.113.9", 515, FlowCounts { opened: 1, ..one_way }));
    lab.flow(sent("203.0.113.9", 516, FlowCounts { refused: 1, ..one_way }));
    lab.flow(sent("203.0.113.9", 53, FlowCounts { bytes_received: 1, ..one_way }));
    assert_eq!(
        lab.edges(),
        [
            "web -> api UDP/1000 unsupported",
            "web -> far UDP/1000 [one-way]",
            "web -> external/203.0.113.9 UDP/53",
            "web -> external/203.0.113.9 UDP/514 [one-way]",
            "web -> external/203.0.113.9 UDP/515 unsupported",
            "web -> external/203.0.113.9 UDP/516 unsupported",
        ]
    );
}

#[test]
fn bytes_alone_make_no_edge() {
    let mut lab = Lab::new("node-a", &[web(0, "node-a", "10.244.1.2")]);
    lab.pod_cgroup(1, "web", 0);
    lab.flow(failed(
        tcp_client(1, "10.244.1.2", "203.0.113.7", 443, t(5)),
        FlowCounts { closed: 1, bytes_sent: 9, ..FlowCounts::default() },
    ));
    assert_eq!(lab.edges(), [] as [&str; 0]);
}
