//! The whole path on real traffic: what the agent shows and writes is what really happened, no more
//! and no less.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, TcpListener},
    path::Path,
};

use guardrail_tests::{
    agent::{self, Agent, guardrail},
    apiserver::{ApiServer, Forward, agent_pod},
    bins,
    cluster::inventory,
    compare::{compare, edges, has_mark, peer},
    lab::BLACK_HOLE,
    policies,
    shop::Shop,
    small::{eventually, eventually_true, same, state},
    truth::Truth,
};
use serde_json::{Value, json};

/// Everything that holds for the graph of a finished shop, whoever made it.
fn check_graph(snapshot: &Value, truth: &Truth) {
    same(&compare(snapshot, truth)).unwrap_or_else(|difference| panic!("{difference}\n{}", snapshot["coverage"]));
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    let observed = edges(snapshot);
    assert!(observed.values().any(|v| has_mark(v, "multicast")), "the multicast sender is reported");
    let true_ports: BTreeSet<u16> = truth.edges.keys().chain(truth.failed.keys()).map(|e| e.port).collect();
    for (edge, value) in &observed {
        assert!(true_ports.contains(&edge.port) || has_mark(value, "multicast"), "{edge}: nobody serves that port");
    }
    let named = observed.iter().find(|(e, _)| e.server == "external/203.0.113.10" && e.port == 443);
    let (_, payments) = named.expect("a true edge");
    assert_eq!(payments["server"]["names"][0], "payments.example.com", "{payments}");
    let of_pool: Vec<_> =
        observed.iter().filter(|(_, v)| has_mark(v, "found-at-start")).map(|(e, _)| e.to_string()).collect();
    for pool in [
        "shop/Deployment/api -> data/StatefulSet/db 5432/TCP",
        "data/Deployment/worker -> data/Deployment/queue 5672/TCP",
    ] {
        assert!(of_pool.iter().any(|e| e == pool), "{pool} is not among {of_pool:?}");
    }
}

/// Everything that holds for the policies of a finished shop.
fn check_policies(directory: &Path, shop: &Shop, truth: &Truth) {
    let files = policies::read(directory).unwrap();
    assert!(policies::network_policies(&files).count() > 0, "no policy in {}", directory.display());
    let cluster = &shop.lab.cluster;
    let pod_ports: BTreeSet<String> = cluster
        .workloads
        .iter()
        .flat_map(|w| &w.ports)
        .flat_map(|p| [p.name.to_owned(), p.number.to_string()])
        .collect();
    for (port, protocol) in policies::ports(&files) {
        assert!(
            pod_ports.contains(&port),
            "{port}/{protocol} is no pod port: an ephemeral, node or Service port in a policy"
        );
    }
    let find = |name: &str| cluster.workloads.iter().find(|w| w.peer() == name);
    for edge in truth.edges.keys() {
        let (Some(client), Some(server)) = (find(&edge.client), find(&edge.server)) else { continue };
        let label = |w: &'_ guardrail_tests::cluster::Workload| (w.namespace.clone(), w.name.clone());
        let (client, server_name) = (label(client), label(server));
        let name = server.ports.iter().find(|p| p.number == edge.port).map_or("", |p| p.name);
        assert!(
            policies::allows_ingress(
                &files,
                &(&client.0, vec![("app", &client.1)]),
                &(&server_name.0, vec![("app", &server_name.1)]),
                &edge.protocol,
                edge.port,
                name
            ),
            "{edge} really happened, and no policy allows it"
        );
    }
    for (client, server, port, name) in [
        (("ops", "probe"), ("data", "db"), 5433, ""),
        (("ops", "probe"), ("data", "db"), 5432, "postgres"),
        (("shop", "web"), ("shop", "checkout-v2"), 8080, "http"),
        (("shop", "web"), ("data", "db"), 5432, "postgres"),
    ] {
        assert!(
            !policies::allows_ingress(
                &files,
                &(client.0, vec![("app", client.1)]),
                &(server.0, vec![("app", server.1)]),
                "TCP",
                port,
                name
            ),
            "{client:?} never reached {server:?} on port {port}, yet a policy allows it"
        );
    }
    for (text, documents) in &files {
        assert!(!text.contains(BLACK_HOLE), "an address that never answered is in a policy:\n{text}");
        for block in blocks(documents) {
            let address: IpAddr = block.split('/').next().unwrap().parse().unwrap();
            let inside = match address {
                IpAddr::V4(a) => a.octets()[..2] == [10, 244] || a.octets()[..2] == [10, 96],
                IpAddr::V6(a) => a.segments()[..2] == [0xfd00, 0x10],
            };
            assert!(!inside || is_tunnel(address), "ipBlock {block} lies inside the cluster:\n{text}");
        }
    }
}

/// A node's own addresses in its pod range: the network and the first host (what flannel.1 and cni0
/// have). Host processes reach pods from there.
fn is_tunnel(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.octets()[..2] == [10, 244] && a.octets()[3] < 2,
        IpAddr::V6(a) => {
            a.segments()[..3] == [0xfd00, 0x10, 0x244] && a.segments()[4..7] == [0; 3] && a.segments()[7] < 2
        }
    }
}

fn blocks(documents: &[Value]) -> Vec<String> {
    fn walk(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                out.extend(map.get("cidr").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|v| walk(v, out));
            }
            Value::Array(list) => list.iter().for_each(|v| walk(v, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    documents.iter().for_each(|d| walk(d, &mut out));
    out
}

/// Each agent watches the pods of its own node, and `merge` names the others: the same truth.
#[test]
fn agents_that_know_their_own_nodes_pods_only_merge_to_the_truth() {
    if !bins::can_run("the shop on two nodes, each agent with its own node's pods") {
        return;
    }
    let mut shop = Shop::start(&bins::find("guardrail-lab-app"), &["node-a", "node-b"], 9).unwrap();
    let objects = inventory::objects(&shop.lab.cluster);
    let mut servers = Vec::new();
    let mut agents = Vec::new();
    for (index, node) in shop.lab.nodes.iter().enumerate() {
        let listener = node.netns.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        let server = ApiServer::serving(listener, &objects).unwrap();
        let config = shop.lab.directory.join(format!("kubeconfig-{}", node.name));
        fs::write(&config, server.kubeconfig(None)).unwrap();
        let config = config.to_str().unwrap();
        let args = ["--inventory", "kube", "--kubeconfig", config, "--inventory-scope", "node"];
        agents.push(Agent::start(&shop.lab, index, &args).unwrap());
        let own = "/api/v1/pods?watch=1&allowWatchBookmarks=true";
        assert!(server.requests(own) > 0 && server.requests(&format!("spec.nodeName%3D{}", node.name)) > 0);
        assert_eq!(
            server.requests("/api/v1/pods?"),
            server.requests("spec.nodeName%3D"),
            "no other pods are asked for"
        );
        servers.push(server);
    }
    shop.run().unwrap();
    let truth = shop.truth().unwrap();
    let merged_file = shop.lab.directory.join("merged.json");
    let merge = || {
        let mut files = Vec::new();
        for (index, agent) in agents.iter().enumerate() {
            let file = shop.lab.directory.join(format!("graph-{index}.json"));
            fs::write(&file, agent.get("/v1/graph")?.1)?;
            files.push(file);
        }
        agent::merge(&files, &merged_file)
    };
    let merged = eventually(std::time::Duration::from_secs(20), merge, |m| same(&compare(m, &truth))).unwrap();
    check_graph(&merged, &truth);
    for agent in &agents {
        let alone = agent.snapshot().unwrap();
        assert_eq!(alone["coverage"]["complete"], false, "one node alone has names for its own pods only");
    }
}

/// `guardrail graph kube` shows what `guardrail merge` makes of the same agents' answers, and names
/// an agent that is gone.
fn check_kube(agents: &[Agent], shop: &Shop, merged: &Value) {
    let pods: Vec<Value> =
        shop.lab.nodes.iter().map(|n| agent_pod(&format!("agent-{}", n.name), &n.name, true)).collect();
    let server = ApiServer::serving(TcpListener::bind("127.0.0.1:0").unwrap(), &pods).unwrap();
    for (node, agent) in shop.lab.nodes.iter().zip(agents) {
        server.forward("guardrail", &format!("agent-{}", node.name), agent.forward().unwrap());
    }
    let config = shop.lab.directory.join("kubeconfig");
    fs::write(&config, server.kubeconfig(None)).unwrap();
    let graph = || {
        let output = guardrail(["graph", "kube", "-o", "json", "--kubeconfig", config.to_str().unwrap()]).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        (serde_json::from_slice::<Value>(&output.stdout).unwrap(), said)
    };
    let (whole, said) = graph();
    assert_eq!(said, "");
    // The window goes on; what was seen in it does not change any more.
    for part in ["edges", "coverage", "service_flows", "sources"] {
        assert_eq!(whole[part], merged[part], "{part}");
    }
    server.forward(
        "guardrail",
        "agent-node-b",
        Forward::To(Box::new(|_| Err(std::io::ErrorKind::ConnectionRefused.into()))),
    );
    let (half, said) = graph();
    assert!(
        said.contains("node node-b did not answer: the port-forward failed: ") && said.contains("refused"),
        "{said}"
    );
    assert_eq!(half["coverage"]["nodes"], json!({"observed": ["node-a"], "expected": ["node-a", "node-b"]}));
    assert_eq!(half["coverage"]["complete"], false);
}

fn shop_on_one_node(seed: u64) {
    if !bins::can_run("the shop under an agent") {
        return;
    }
    let mut shop = Shop::start(&bins::find("guardrail-lab-app"), &["node-a"], seed).unwrap();
    let mut agent = Agent::start(&shop.lab, 0, &[]).unwrap();
    let held = agent.bpf_ids().unwrap();
    assert!(!held.programs.is_empty(), "the agent holds programs");
    shop.run().unwrap();
    let truth = shop.truth().unwrap();
    let snapshot = eventually_true(&agent, &truth).unwrap();
    check_graph(&snapshot, &truth);
    shop.stop().unwrap();
    let status = agent.terminate().unwrap();
    assert_eq!(status.code(), Some(0), "{}", agent.said());
    // The last sweep must neither lose nor invent anything, and the files are those of the end.
    check_graph(&state(&agent.state_dir).unwrap(), &truth);
    check_policies(&agent.export_dir, &shop, &truth);
    for (text, _) in policies::read(&agent.export_dir).unwrap() {
        assert!(!text.contains("not for applying"), "this node hosts every pod:\n{text}");
    }
    let left = held.still_there().unwrap();
    assert!(left.programs.is_empty() && left.links.is_empty(), "left in the kernel: {left:?}");
}

#[test]
fn every_true_edge_of_the_shop_is_found_and_none_invented_with_seed_1() {
    shop_on_one_node(1);
}

#[test]
fn every_true_edge_of_the_shop_is_found_and_none_invented_with_seed_2() {
    shop_on_one_node(2);
}

#[test]
fn every_true_edge_of_the_shop_is_found_and_none_invented_with_seed_3() {
    shop_on_one_node(3);
}

#[test]
fn two_nodes_agents_merge_to_the_truth_and_the_merged_policies_are_for_applying() {
    if !bins::can_run("the shop on two nodes") {
        return;
    }
    let mut shop = Shop::start(&bins::find("guardrail-lab-app"), &["node-a", "node-b"], 7).unwrap();
    let mut agents: Vec<_> = (0..2).map(|node| Agent::start(&shop.lab, node, &[]).unwrap()).collect();
    shop.run().unwrap();
    let truth = shop.truth().unwrap();
    let directory = shop.lab.directory.clone();
    let merged_file = directory.join("merged.json");
    let merge = || {
        let mut files = Vec::new();
        for (index, agent) in agents.iter().enumerate() {
            let file = directory.join(format!("graph-{index}.json"));
            fs::write(&file, agent.get("/v1/graph")?.1)?;
            files.push(file);
        }
        let one = agent::merge(&files, &merged_file)?;
        files.reverse();
        let other = agent::merge(&files, &directory.join("merged-reversed.json"))?;
        assert_eq!(one, other, "the order of the files does not matter");
        Ok(one)
    };
    let merged = eventually(std::time::Duration::from_secs(20), merge, |m| same(&compare(m, &truth))).unwrap();
    check_graph(&merged, &truth);
    check_kube(&agents, &shop, &merged);
    for agent in &mut agents {
        assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
    }
    // web has pods on both nodes: neither node may speak for it alone.
    for agent in &agents {
        let files = policies::read(&agent.export_dir).unwrap();
        let marked = files.iter().filter(|(text, _)| text.contains("not for applying")).count();
        assert!(marked > 0, "no file in {} says that it is one node's view", agent.export_dir.display());
    }
    let out = directory.join("merged-policies");
    let file = merged_file.to_str().unwrap();
    let args = ["export", file, "--phase", "default-deny", "--min-window", "0s", "-d", out.to_str().unwrap()];
    let output = guardrail(
        args.map(str::to_owned).into_iter().chain(["--inventory".into(), shop.lab.inventory().display().to_string()]),
    )
    .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    check_policies(&out, &shop, &truth);
    for (text, _) in policies::read(&out).unwrap() {
        assert!(!text.contains("not for applying"), "both nodes are in:\n{text}");
    }
    let both = edges(&merged);
    let cross =
        both.iter().find(|(e, _)| e.client.ends_with("/web") && e.server.ends_with("/api")).expect("a true edge").1;
    assert_eq!(peer(&cross["client"]), "shop/Deployment/web");
}
