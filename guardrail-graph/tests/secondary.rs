//! Networks beside the first (Multus): pods keep their names there, and nothing that happens on
//! them supports a rule.

mod common;

use common::{Lab, delta, edges, failed, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Protocol,
    observe::{FlowCounts, Role},
    snapshot::merge,
};

const WEB: &str = "10.244.1.2";
const API: &str = "10.244.1.3";
const WEB_BESIDE: &str = "192.168.99.2";
const API_BESIDE: &str = "192.168.99.3";

/// A pod that Multus has given one more interface.
fn with_network(pod: String, first: &str, beside: &str) -> String {
    let status = format!(
        r#"[{{"name":"cbr0","ips":["{first}"],"default":true}},{{"name":"lab/storage","interface":"net1","ips":["{beside}"]}}]"#
    );
    pod.replace("  labels:", &format!("  annotations: {{k8s.v1.cni.cncf.io/network-status: '{status}'}}\n  labels:"))
}

fn web() -> String {
    pod("shop", "web", 0, "node-a", WEB, &[])
}

fn api(node: &str, address: &str) -> String {
    pod("shop", "api", 0, node, address, &["http:8080"])
}

fn lab(inventory: &[String]) -> Lab {
    let mut lab = Lab::new("node-a", inventory);
    lab.pod_cgroup(1, "web", 0);
    lab.pod_cgroup(2, "api", 0);
    lab
}

const BESIDE: &str = "web -> api TCP/8080 [secondary-network] unsupported";

#[test]
fn what_pods_do_on_another_network_has_their_names_and_supports_no_rule() {
    for annotated in [true, false] {
        let (mut web, mut api) = (web(), api("node-a", API));
        if annotated {
            (web, api) = (with_network(web, WEB, WEB_BESIDE), with_network(api, API, API_BESIDE));
        }
        let mut lab = lab(&[web, api]);
        lab.flow(tcp_client(1, WEB_BESIDE, API_BESIDE, 8080, t(5)));
        lab.flow(tcp_server(2, API_BESIDE, WEB_BESIDE, 8080, t(5)));
        lab.flow(delta(2, Role::Client, API_BESIDE, "192.168.99.200", Protocol::Udp, 514, t(5)));
        lab.at(30);
        let snapshot = lab.snapshot();
        let elsewhere = "api -> external/192.168.99.200 UDP/514 [secondary-network] unsupported";
        assert_eq!(edges(&snapshot), [elsewhere, BESIDE], "annotated: {annotated}");
        // That node-b has no agent is all that is missing.
        let coverage = &snapshot.body.coverage;
        assert_eq!((&coverage.unresolved[..], &coverage.losses[..]), (&[][..], &[][..]));
        assert_eq!(coverage.workloads, []);
        let beside = |a: &&guardrail_graph::snapshot::AddressEntry| a.address.to_string().starts_with("192.168.");
        assert_eq!(snapshot.body.addresses.iter().filter(beside).count(), 0, "no peer's address on the first network");
    }
}

#[test]
fn the_same_pair_on_the_first_network_supports_its_rule_whichever_came_first() {
    for beside_first in [true, false] {
        let mut lab = lab(&[with_network(web(), WEB, WEB_BESIDE), with_network(api("node-a", API), API, API_BESIDE)]);
        let beside =
            [tcp_client(1, WEB_BESIDE, API_BESIDE, 8080, t(5)), tcp_server(2, API_BESIDE, WEB_BESIDE, 8080, t(5))];
        let first = [tcp_client(1, WEB, API, 8080, t(6)), tcp_server(2, API, WEB, 8080, t(6))];
        let all = if beside_first { [beside, first] } else { [first, beside] };
        all.into_iter().flatten().for_each(|flow| lab.flow(flow));
        let snapshot = lab.snapshot();
        assert_eq!(edges(&snapshot), ["web -> api TCP/8080"]);
        assert_eq!(snapshot.body.edges[0].counts.opened, 1);
    }
}

#[test]
fn a_service_is_never_taken_for_answered_by_what_came_on_another_network() {
    let service = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.7, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}\n";
    let mut here = lab(&[
        with_network(web(), WEB, WEB_BESIDE),
        with_network(api("node-b", "10.244.2.3"), "10.244.2.3", API_BESIDE),
        service.to_owned(),
    ]);
    here.flow(tcp_client(1, WEB_BESIDE, API_BESIDE, 8080, t(5)));
    here.flow(tcp_client(1, WEB, "10.96.0.7", 80, t(6)));
    // Nobody observes the server's node: the flow stands by inference, not as the other's.
    assert_eq!(here.edges(), ["web -> api TCP/8080 via shop/api:80 [inferred]"]);
}

#[test]
fn addresses_that_several_networks_give_out_are_nobodys_and_no_hole_in_the_evidence() {
    let other = pod("shop", "db", 0, "node-a", "10.244.1.4", &[]);
    let mut lab = lab(&[
        with_network(web(), WEB, WEB_BESIDE),
        with_network(api("node-a", API), API, API_BESIDE),
        with_network(other, "10.244.1.4", API_BESIDE),
    ]);
    lab.flow(tcp_client(1, WEB_BESIDE, API_BESIDE, 8080, t(5)));
    lab.at(30);
    let unnamed = "web -> external/192.168.99.3 TCP/8080 [secondary-network] unsupported";
    assert_eq!(lab.edges(), [unnamed]);
    // By the first network the address is somebody's outside, and needs its rule.
    lab.flow(tcp_client(1, WEB, API_BESIDE, 8080, t(31)));
    assert_eq!(lab.edges(), ["web -> external/192.168.99.3 TCP/8080"]);
}

#[test]
fn failed_attempts_on_another_network_stay_there_and_merging_is_in_any_order() {
    let inventory = [with_network(web(), WEB, WEB_BESIDE), with_network(api("node-a", API), API, API_BESIDE)];
    let mut beside = lab(&inventory);
    let refused = FlowCounts { refused: 2, ..FlowCounts::default() };
    beside.flow(failed(tcp_client(1, WEB_BESIDE, API_BESIDE, 8080, t(5)), refused));
    assert_eq!(beside.edges(), [BESIDE]);
    let mut first = Lab::with("node-b", &inventory, |_| ());
    first.pod_cgroup(1, "web", 0);
    let (beside, first) = (beside.snapshot(), first.snapshot());
    let one = merge(vec![beside.clone(), first.clone()]);
    assert_eq!(one.to_json(), merge(vec![first, beside]).to_json());
}
