//! A real Prometheus scrapes the agent.

use std::{os::fd::AsFd as _, time::Duration};

use guardrail_tests::{
    agent::{self, Agent},
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    lab::wait_until,
    prometheus::Prometheus,
    small::{cluster, deployment, go, lab, start},
};
use serde_json::Value;

#[test]
fn a_real_prometheus_answers_a_query_for_a_known_edge() {
    if !bins::can_run("Prometheus") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let address = c.pod(&server).addresses.0;
    let lab = lab(c).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let mut prometheus = Prometheus::start(&lab, 0).unwrap();
    let calls = vec![Call::new(&format!("{address}:8080"), How::Tcp, 17)];
    let mut processes = start(
        &lab,
        vec![
            (&server, Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() }),
            (&client, Scenario { after: calls, ..Scenario::default() }),
        ],
    )
    .unwrap();
    go(&mut processes).unwrap();
    let query = r#"guardrail_flow_connections_total{client_namespace="lab",server_namespace="lab",port="8080",protocol="TCP",outcome="opened"}"#;
    let mut last = Value::Null;
    wait_until(Duration::from_secs(30), "Prometheus knows the edge with its 17 connections", || {
        last = prometheus.query(query).ok()?;
        let series = last.as_array()?;
        (series.len() == 1 && series[0]["value"][1] == "17").then_some(())
    })
    .unwrap_or_else(|e| {
        panic!("{e}: {last}\n{}", agent.get("/metrics").map_or_else(|e| e.to_string(), |(_, page)| page))
    });
    for (label, name) in [("client_workload", "client"), ("server_workload", "server")] {
        assert!(last[0]["metric"][label].as_str().is_some_and(|v| v.ends_with(name)), "{last}");
    }
    prometheus.stop().unwrap();
    let (status, _) = agent::get(
        &lab.nodes[0].netns.as_fd().try_clone_to_owned().unwrap(),
        agent::LISTEN.parse().unwrap(),
        "/healthz",
    )
    .unwrap();
    assert_eq!(status, 200);
}
