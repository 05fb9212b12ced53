//! A cluster of 10,000 pods behind 1,000 Services over the API: memory while it is listed and
//! after, and the price of its news.

use std::{
    net::TcpListener,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use guardrail_tests::{
    agent::Agent,
    apiserver::{ApiServer, generated},
    lab::{Lab, wait_until},
    small::{cluster, deployment, lab},
};
use serde_json::Value;

use crate::{
    LIMIT,
    measure::{cpu_seconds, forget_peak, peak_mib, row, settled_rss_mib},
};

const PODS: u32 = 10_000;
const SERVICES: u32 = 1_000;
/// Changes of pods that are sent.
const EVENTS: u32 = 10_000;
/// Between two scrapes that ask whether all were taken: each is work of the agent's, too, which
/// grows with the pods.
const POLL: Duration = Duration::from_millis(200);

pub(crate) fn run() -> Result<()> {
    let mut c = cluster(&["node-0"]);
    deployment(&mut c, "nobody", 8080, 0);
    let lab = lab(c)?;
    let (_nothing, kubeconfig) = serve(&lab, "empty", &[])?;
    let agent = start(&lab, &kubeconfig)?;
    let (empty, empty_peak) = (settled_rss_mib(agent.pid())?, peak_mib(agent.pid())?);
    drop(agent);

    let objects = generated::cluster(PODS, SERVICES)?;
    let bytes: usize = objects.iter().map(|o| o.to_string().len()).sum();
    let (server, kubeconfig) = serve(&lab, "full", &objects)?;
    // Lists, as an agent that starts gets them.
    server.compact();
    let began = Instant::now();
    let agent = start(&lab, &kubeconfig)?;
    let ready = began.elapsed();
    let requests = server.requests("");
    let listing_cpu = cpu_seconds(agent.pid())?;
    let listing_peak = peak_mib(agent.pid())?;
    let full = settled_rss_mib(agent.pid())?;
    row(
        &format!("{PODS} pods, {SERVICES} Services ({} MiB of JSON): ready after", bytes >> 20),
        &format!("{:.1} s, {listing_cpu:.1} s of CPU, {requests} requests", ready.as_secs_f64()),
        "",
    );
    row("  resident memory with an empty cluster (peak)", &format!("{empty:.1} ({empty_peak:.1}) MiB"), "");
    row("  … peak while listing", &format!("{listing_peak:.1} MiB"), "≤ 60 MiB");
    row("  … afterwards", &format!("{full:.1} MiB"), "≤ 60 MiB");
    let per_pod = (full - empty) * f64::from(1 << 20) / f64::from(PODS);
    row("  state per pod, with its part of everything else", &format!("{per_pod:.0} bytes"), "");

    // Every pod changes once: a label that is kept, so that none of it can be skipped.
    forget_peak(agent.pid())?;
    let taken = || agent.metric("guardrail_inventory_events_total{kind=\"pods\",outcome=\"applied\"}");
    let before = taken()?;
    let (cpu, began) = (cpu_seconds(agent.pid())?, Instant::now());
    for mut pod in objects.into_iter().filter(|o| o["kind"] == "Pod").take(EVENTS as usize) {
        pod["metadata"]["labels"]["changed"] = Value::from("yes");
        server.put("pods", pod);
    }
    wait_until(LIMIT, "every change was taken", || {
        thread::sleep(POLL);
        taken().ok().filter(|n| *n - before >= f64::from(EVENTS))
    })?;
    let (elapsed, spent) = (began.elapsed().as_secs_f64(), cpu_seconds(agent.pid())? - cpu);
    row(&format!("{EVENTS} changes of pods"), &format!("{:.0}/s taken", f64::from(EVENTS) / elapsed), "");
    row("  agent CPU per change", &format!("{:.0} µs", spent * 1e6 / f64::from(EVENTS)), "");
    row("  peak meanwhile", &format!("{:.1} MiB", peak_mib(agent.pid())?), "≤ 60 MiB");
    forget_peak(agent.pid())?;
    agent.snapshot()?;
    row("  peak of /v1/graph", &format!("{:.1} MiB", peak_mib(agent.pid())?), "≤ 60 MiB");
    row("  afterwards", &format!("{:.1} MiB", settled_rss_mib(agent.pid())?), "≤ 60 MiB");
    Ok(())
}

fn serve(lab: &Lab, name: &str, objects: &[Value]) -> Result<(ApiServer, PathBuf)> {
    let listener = lab.nodes[0].netns.run(|| TcpListener::bind("127.0.0.1:0"))?;
    let server = ApiServer::serving(listener, objects)?;
    let path = lab.directory.join(format!("kubeconfig-{name}"));
    std::fs::write(&path, server.kubeconfig(None))?;
    Ok((server, path))
}

fn start(lab: &Lab, kubeconfig: &std::path::Path) -> Result<Agent> {
    let path = kubeconfig.to_str().context("a path of text")?;
    Agent::start(lab, 0, &["--inventory", "kube", "--kubeconfig", path, "--export-interval", "3600"])
}
