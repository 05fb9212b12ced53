//! Which endpoints are known, as Services come, change and go.

mod common;

use common::{Lab, ip, pod};
use guardrail_graph::{
    Protocol,
    inventory::{Change, Kind, ObjectKey},
};

/// A Service of the namespace `shop` with the endpoints of its one slice.
fn service(name: &str, endpoints: &[&str]) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n\
         ---\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         ports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: {endpoints:?}}}]\n"
    )
}

fn knows(lab: &Lab, address: &str) -> bool {
    lab.observer.is_server_address(ip(address), 8080, Protocol::Tcp)
}

#[test]
fn an_endpoint_is_known_as_long_as_any_service_has_it() {
    let (one, two) = ("198.51.100.1", "198.51.100.2");
    let mut lab = Lab::new("node-a", &[service("a", &[one, two]), service("b", &[two])]);
    lab.at(1);
    assert!(knows(&lab, one) && knows(&lab, two));
    lab.apply(&service("a", &[]));
    lab.at(2);
    assert!(!knows(&lab, one) && knows(&lab, two));
    lab.apply(&service("a", &[two]));
    lab.apply(&service("b", &[one]));
    lab.at(3);
    assert!(knows(&lab, one) && knows(&lab, two));
    let key = ObjectKey { kind: Kind::Service, namespace: "shop".into(), name: "a".into() };
    lab.observer.apply(Change::Delete(key), lab.now);
    lab.at(4);
    assert!(knows(&lab, one) && !knows(&lab, two));
    lab.at(4_000);
    lab.apply(&service("a", &[one]));
    lab.at(4_001);
    lab.apply(&service("b", &[]));
    lab.at(4_002);
    assert!(knows(&lab, one), "after the Service that was gone was forgotten");
}

#[test]
fn endpoints_follow_their_pods() {
    let service = "---\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";
    let web = |address| pod("shop", "web", 0, "node-b", address, &[]);
    let mut lab = Lab::new("node-a", &[web("10.244.2.2"), service.into()]);
    lab.at(1);
    assert!(knows(&lab, "10.244.2.2"));
    lab.apply(
        &web("10.244.2.2").replace("phase: Running", "phase: Running, conditions: [{type: Ready, status: \"True\"}]"),
    );
    lab.at(2);
    assert!(knows(&lab, "10.244.2.2"), "it is ready, and that is all");
    lab.apply(&web("10.244.2.3"));
    lab.at(3);
    assert!(!knows(&lab, "10.244.2.2") && knows(&lab, "10.244.2.3"));
    lab.apply(&web("10.244.2.3").replace("app: web", "app: old"));
    lab.at(4);
    assert!(!knows(&lab, "10.244.2.3"));
}
