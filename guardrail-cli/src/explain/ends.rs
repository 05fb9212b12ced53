//! What `--from` and `--to` name, down to pods and addresses: a workload is its pods, a Service the
//! pods behind it, a dual-stack pod each of its addresses.

use anyhow::{Context as _, bail};
use guardrail_graph::inventory::{Inventory, Service, TargetPort};
use guardrail_policy::{
    evaluate::{ClusterPod, End, Evaluator},
    model::Protocol,
};

/// One end that can be judged.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) end: End,
    pub(super) name: String,
    /// The port to judge at.
    pub(super) port: u16,
}

/// What an option names.
pub(super) struct Ends {
    /// At least one.
    pub(super) ends: Vec<Named>,
    /// If the ends are not called as the user called them: why.
    pub(super) note: Option<String>,
}

/// The ends of a connection's initiator.
pub(super) fn from(evaluator: &Evaluator, text: &str) -> anyhow::Result<Ends> {
    if let Some(pods) = pods_of_workload(evaluator, text) {
        return Ok(of_workload(evaluator, text, &pods, 0));
    }
    let end = evaluator.end(text).context("--from")?;
    Ok(Ends { ends: vec![Named { end, name: text.to_owned(), port: 0 }], note: None })
}

/// The ends of a connection's acceptor, with the port at which policies are asked.
pub(super) fn to(
    evaluator: &Evaluator,
    inventory: &Inventory,
    text: &str,
    protocol: Protocol,
    port: u16,
) -> anyhow::Result<Ends> {
    if let Some(pods) = pods_of_workload(evaluator, text) {
        return Ok(of_workload(evaluator, text, &pods, port));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let service = match parts[..] {
        [namespace, name] if evaluator.end(text).is_err() => inventory.service(namespace, name),
        [namespace, "Service", name] => inventory.service(namespace, name),
        // Of a Service's addresses only this one leaves the client its own address on the way.
        [address] => address.parse().ok().and_then(|ip| inventory.services().find(|s| s.cluster_ips.contains(&ip))),
        _ => None,
    };
    match service {
        Some(service) => {
            let what = match parts[..] {
                [address] => format!("{address} is the address of Service {}/{}", service.namespace, service.name),
                _ => format!("{text} is a Service"),
            };
            behind(evaluator, inventory, service, &what, protocol, port)
        }
        None => {
            let end = evaluator.destination(text, protocol, port).context("--to")?;
            Ok(Ends { ends: vec![Named { end, name: text.to_owned(), port }], note: None })
        }
    }
}

/// Several pods, or none of this name but a workload.
fn pods_of_workload(evaluator: &Evaluator, text: &str) -> Option<Vec<u32>> {
    let pods = evaluator.pods_of_workload(text);
    (pods.len() > 1 && evaluator.end(text).is_err()).then_some(pods)
}

fn of_workload(evaluator: &Evaluator, text: &str, pods: &[u32], port: u16) -> Ends {
    let ends = alike(evaluator, pods.iter().map(|pod| (*pod, port)));
    let names: Vec<&str> = ends.iter().map(|e| e.name.as_str()).collect();
    let like = if ends.len() < pods.len() { ", which stand for those like them" } else { "" };
    let note = format!("{text} is a workload of {} pods: judged at {}{like}", pods.len(), names.join(", "));
    Ends { note: Some(note), ends }
}

/// Of pods that no policy tells apart the first.
fn alike(evaluator: &Evaluator, pods: impl Iterator<Item = (u32, u16)>) -> Vec<Named> {
    let mut ends: Vec<Named> = Vec::new();
    for (pod, port) in pods {
        let end = evaluator.end_of_pod(pod);
        if !ends.iter().any(|known| known.end.is_like(&end) && known.port == port) {
            ends.push(Named { end, name: evaluator.cluster().pods[pod as usize].full_name(), port });
        }
    }
    ends
}

/// `what`: the Service, as a sentence about what the user named.
fn behind(
    evaluator: &Evaluator,
    inventory: &Inventory,
    service: &Service,
    what: &str,
    protocol: Protocol,
    port: u16,
) -> anyhow::Result<Ends> {
    let Some(wanted) = service.ports.iter().position(|p| p.port == port && protocol.is_named(&p.protocol)) else {
        let ports: Vec<String> = service.ports.iter().map(|p| format!("{}/{}", p.protocol, p.port)).collect();
        bail!("--to: {what} without port {protocol}/{port}; it has {}", ports.join(", "));
    };
    let ends = if service.selector.is_empty() {
        let backends = inventory.backends(service).into_iter().filter(|b| b.service_port == wanted);
        backends
            .map(|b| Named { end: evaluator.end_of_address(b.address), name: b.address.to_string(), port: b.port })
            .collect()
    } else {
        let selected = |pod: &ClusterPod| {
            pod.namespace == service.namespace
                && !pod.finished
                && service.selector.iter().all(|(k, v)| pod.labels.get(k).is_some_and(|own| own == v))
        };
        let target = |pod: &ClusterPod| match &service.ports[wanted].target_port {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                pod.ports.iter().find(|(n, p, _)| n == name && *p == protocol).map(|(.., number)| *number)
            }
        };
        let pods = evaluator.cluster().pods.iter().zip(0..).filter(|(pod, _)| selected(pod));
        alike(evaluator, pods.filter_map(|(pod, index)| Some((index, target(pod)?))))
    };
    if ends.is_empty() {
        bail!("--to: {what}, and the inventory has no pod behind its port {protocol}/{port}");
    }
    let names: Vec<String> = ends.iter().map(|e| format!("{}, port {}", e.name, e.port)).collect();
    Ok(Ends { note: Some(format!("{what}: judged at the pods behind it ({})", names.join("; "))), ends })
}

/// What is easily overlooked about the port: no container declares it, and a Service's port of that
/// number leads to another one.
pub(super) fn port_note(
    evaluator: &Evaluator,
    inventory: &Inventory,
    to: &Named,
    protocol: Protocol,
) -> Option<String> {
    let pod = &evaluator.cluster().pods[to.end.pod()? as usize];
    if pod.declared_ports.is_empty() || pod.declared_ports.iter().any(|d| d.protocol == protocol && d.port == to.port) {
        return None;
    }
    let undeclared = format!("no container of {} declares {protocol}/{}", to.name, to.port);
    for service in inventory.services().filter(|s| s.namespace == pod.namespace && !s.selector.is_empty()) {
        let selects = service.selector.iter().all(|(k, v)| pod.labels.get(k).is_some_and(|own| own == v));
        let port = service.ports.iter().find(|p| p.port == to.port && protocol.is_named(&p.protocol));
        let Some(port) = port.filter(|_| selects) else { continue };
        let target = match &port.target_port {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod.ports.iter().find(|(n, p, _)| n == name && *p == protocol).map(|(.., n)| *n),
        };
        if let Some(target) = target {
            return Some(format!(
                "{undeclared}, and port {} of Service {}/{} leads to its port {target}",
                to.port, service.namespace, service.name
            ));
        }
    }
    Some(undeclared)
}
