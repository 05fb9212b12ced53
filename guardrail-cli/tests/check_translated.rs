//! Flows to addresses that a node translates: node ports, addresses of load balancers, host ports.
//! What every network makes of them is the verdict; what depends on the network is unproven.

mod common;

use std::fs;

use common::{data, run};

/// Two nodes; `web` on both, `api` on the second, `edge` with a host port on the first; clients on
/// both. `local` and `cloud-local` leave clients their address.
const CLUSTER: &str = "
{apiVersion: v1, kind: Node, metadata: {name: a}, status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: b}, status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web}}, spec: {nodeName: a, containers: [{name: c}]}, status: {phase: Running, podIP: 10.244.1.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-2, namespace: shop, labels: {app: web}}, spec: {nodeName: b, containers: [{name: c}]}, status: {phase: Running, podIP: 10.244.2.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: api, namespace: shop, labels: {app: api}}, spec: {nodeName: b, containers: [{name: c}]}, status: {phase: Running, podIP: 10.244.2.6}}
---
{apiVersion: v1, kind: Pod, metadata: {name: edge, namespace: shop, labels: {app: edge}}, spec: {nodeName: a, containers: [{name: c, ports: [{containerPort: 8443, hostPort: 443}]}]}, status: {phase: Running, podIP: 10.244.1.7}}
---
{apiVersion: v1, kind: Pod, metadata: {name: near, namespace: shop, labels: {app: client}}, spec: {nodeName: a, containers: [{name: c}]}, status: {phase: Running, podIP: 10.244.1.8}}
---
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: shop, labels: {app: client}}, spec: {nodeName: b, containers: [{name: c}]}, status: {phase: Running, podIP: 10.244.2.8}}
---
{apiVersion: v1, kind: Service, metadata: {name: local, namespace: shop}, spec: {type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: wide, namespace: shop}, spec: {type: NodePort, clusterIP: 10.96.0.2, selector: {app: api}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: cloud, namespace: shop}, spec: {type: LoadBalancer, clusterIP: 10.96.0.3, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}, status: {loadBalancer: {ingress: [{ip: 198.51.100.3}]}}}
---
{apiVersion: v1, kind: Service, metadata: {name: cloud-local, namespace: shop}, spec: {type: LoadBalancer, externalTrafficPolicy: Local, clusterIP: 10.96.0.4, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}, status: {loadBalancer: {ingress: [{ip: 198.51.100.4}]}}}
---
{apiVersion: v1, kind: Service, metadata: {name: second, namespace: shop}, spec: {type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.96.0.5, selector: {app: api}, ports: [{port: 80, targetPort: 8080, nodePort: 30082}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: shop}, spec: {type: NodePort, clusterIP: 10.96.0.6, selector: {app: gone}, ports: [{port: 80, nodePort: 30083}]}}
---
";

/// `web`, `api` and `edge` are closed but for these peers; clients but for calls of `web`, and what
/// stands in `egress`.
fn policies(from: &str, egress: &str) -> String {
    format!(
        "
{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: servers, namespace: shop}}, spec: {{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [web, api, edge]}}]}}, policyTypes: [Ingress], ingress: [{{from: [{from}]}}]}}}}
---
{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: clients, namespace: shop}}, spec: {{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], egress: [{{to: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{{port: 8080}}]}}{egress}]}}}}
"
    )
}

const CLIENTS: &str = "{podSelector: {matchLabels: {app: client}}}";
const OFFICE: &str = "{ipBlock: {cidr: 203.0.113.0/24}}";
const ANYBODY: &str = "{ipBlock: {cidr: 0.0.0.0/0}}";
const NODES: &str = "{ipBlock: {cidr: 192.0.2.0/24}}";

/// The verdicts on flows, and what was said.
fn check(policies: &str, flows: &[(&str, &str)], more: &[&str]) -> (Vec<String>, String) {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (policies, inventory) = (write("p.yaml", policies), write("i.yaml", CLUSTER));
    let lines: String = flows
        .iter()
        .map(|(from, to)| {
            let (address, port) = to.split_once(':').unwrap();
            format!("{from},{address},TCP,{port}\n")
        })
        .collect();
    let args = ["check", "--flows", "-", "--policies", &policies, "--inventory", &inventory, "-o", "csv"];
    let (_, rows, said) = run(&data(), &[&args, more].concat(), &format!("src,dst,protocol,port\n{lines}"));
    let verdict = |line: &str| line.split(',').nth(4).unwrap().to_owned();
    (rows.lines().skip(1).map(verdict).collect(), said)
}

#[test]
fn what_every_network_makes_of_a_translated_address_is_the_verdict_and_what_depends_on_it_is_unproven() {
    // (from, to, verdict if clients, the office, anybody, nodes may call).
    for (from, to, expected) in [
        // The client's own node translates: egress is judged at the pods, and nobody hides it.
        ("shop/near", "192.0.2.11:30080", ["allowed", "denied", "allowed", "denied"]),
        // Another node does: its address is what the client's egress may be judged at.
        ("shop/far", "192.0.2.11:30080", ["unproven", "denied", "unproven", "unproven"]),
        // Egress of a client allows no call of `api`, by whichever address it comes.
        ("shop/near", "192.0.2.11:30081", ["denied", "denied", "denied", "denied"]),
        ("shop/near", "198.51.100.3:80", ["denied", "denied", "denied", "denied"]),
        ("shop/near", "198.51.100.4:80", ["allowed", "denied", "allowed", "denied"]),
        // From outside, with the client's address: the node's own pods.
        ("203.0.113.9", "192.0.2.11:30080", ["denied", "allowed", "allowed", "denied"]),
        ("203.0.113.9", "198.51.100.4:80", ["denied", "allowed", "allowed", "denied"]),
        // None of them is there: nobody answers.
        ("203.0.113.9", "192.0.2.11:30082", ["unproven", "unproven", "unproven", "unproven"]),
        ("203.0.113.9", "192.0.2.12:30082", ["denied", "allowed", "allowed", "denied"]),
        // As the node that took it: another one than the pod's.
        ("203.0.113.9", "192.0.2.11:30081", ["denied", "unproven", "allowed", "unproven"]),
        // The pod's own node, which no policy keeps out.
        ("203.0.113.9", "192.0.2.12:30081", ["unproven", "allowed", "allowed", "unproven"]),
        // Any node may have taken it.
        ("203.0.113.9", "198.51.100.3:80", ["unproven", "unproven", "allowed", "unproven"]),
        ("192.0.2.11", "192.0.2.12:30081", ["unproven", "unproven", "allowed", "allowed"]),
        // A host port leaves clients their address.
        ("203.0.113.9", "192.0.2.11:443", ["denied", "allowed", "allowed", "denied"]),
        ("192.0.2.12", "192.0.2.11:443", ["denied", "denied", "allowed", "allowed"]),
        ("shop/near", "192.0.2.11:443", ["denied", "denied", "denied", "denied"]),
        // Nothing stands behind it.
        ("203.0.113.9", "192.0.2.11:30083", ["unproven", "unproven", "unproven", "unproven"]),
    ] {
        for (peers, expected) in [CLIENTS, OFFICE, ANYBODY, NODES].into_iter().zip(expected) {
            let (verdicts, said) = check(&policies(peers, ""), &[(from, to)], &[]);
            assert_eq!(verdicts, [expected], "{from} -> {to} where {peers} may call: {said}");
        }
    }
}

#[test]
fn where_a_rule_names_the_node_that_is_asked_too_no_network_cuts_the_call() {
    let node = ", {to: [{ipBlock: {cidr: 192.0.2.11/32}}], ports: [{port: 30080}]}";
    let both = format!("{CLIENTS}, {NODES}");
    let flows = [("shop/far", "192.0.2.11:30080"), ("shop/near", "192.0.2.11:30080")];
    let (verdicts, said) = check(&policies(&both, node), &flows, &[]);
    assert_eq!(verdicts, ["allowed", "allowed"], "{said}");
    assert!(said.contains("192.0.2.11 is the node port of Service shop/local: judged at the pods behind it"), "{said}");
    let (verdicts, said) = check(&policies(&both, ""), &flows, &[]);
    assert_eq!(verdicts, ["unproven", "allowed"]);
    let why = "egress is denied at 192.0.2.11 port 30080 and allowed at shop/web-1 port 8080, and which of them is judged depends on the network";
    assert!(said.contains(why), "{said}");
    // A network that judges what was asked knows the node alone, which for its own pods is open.
    let aws = ["--dataplane", "aws-vpc-cni"];
    assert_eq!(check(&policies(&both, ""), &flows, &aws).0, ["denied", "allowed"]);
    assert_eq!(check(&policies(&both, node), &flows, &aws).0, ["allowed", "allowed"]);
}

#[test]
fn a_workload_that_calls_a_node_port_is_judged_at_the_worst_of_its_pods() {
    let controlled = CLUSTER.replace(
        "labels: {app: client}}",
        "labels: {app: client}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: client, uid: u, controller: true}]}",
    );
    let directory = tempfile::tempdir().unwrap();
    let (inventory, rules) = (directory.path().join("i.yaml"), directory.path().join("p.yaml"));
    fs::write(&inventory, controlled).unwrap();
    fs::write(&rules, policies(CLIENTS, "")).unwrap();
    let args = ["check", "--flows", "-", "--policies", rules.to_str().unwrap(), "--inventory"];
    let args = [&args[..], &[inventory.to_str().unwrap(), "-o", "csv"]].concat();
    let flow = "src,dst,protocol,port\nshop/StatefulSet/client,192.0.2.11,TCP,30080\n";
    let (code, rows, said) = run(&data(), &args, flow);
    assert_eq!(code, 2, "{said}");
    let row = rows.lines().nth(1).unwrap();
    assert!(row.starts_with("shop/StatefulSet/client,192.0.2.11,TCP,30080,unproven,"), "{row}");
    assert!(said.contains("is a workload of 2 pods"), "{said}");
    let (code, _, said) = run(&data(), &[&args[..], &["--allow-unproven"]].concat(), flow);
    assert_eq!(code, 0, "{said}");
}
