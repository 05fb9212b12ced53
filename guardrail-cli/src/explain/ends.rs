//! What `--from` and `--to` name, down to pods and addresses: a workload is its pods, a Service the
//! pods behind it, a dual-stack pod each of its addresses.

use std::{net::IpAddr, sync::Arc};

use anyhow::{anyhow, bail};
use guardrail_graph::inventory::{Inventory, Service, ServicePort, TargetPort};
use guardrail_policy::{
    evaluate::{AskedPort, AskedService, AskedServices, ClusterPod, End, Evaluator, SideVerdict, UnknownEnd},
    model::Protocol,
};
use ipnet::IpNet;

use super::names;

/// One end that can be judged.
#[derive(Clone)]
pub(crate) struct Named {
    /// The end.
    pub(crate) end: End,
    /// What messages call it.
    pub(crate) name: String,
    /// The port to judge at.
    pub(crate) port: u16,
}

/// What an option names.
pub(crate) struct Ends {
    /// At least one.
    pub(crate) ends: Vec<Named>,
    /// If the ends are not called as the user called them: why.
    pub(crate) note: Option<String>,
    /// The Service whose own address was asked for.
    pub(crate) asked: Option<Asked>,
}

/// A Service that was asked for.
#[derive(Clone)]
pub(crate) struct Asked {
    /// Namespace and name.
    service: (String, String),
    address: IpAddr,
    port: u16,
}

impl Asked {
    /// What policies say of a pod's way to the address itself; `None`: nobody judges there, or
    /// whoever asks is no pod.
    pub(crate) fn egress(
        &self,
        services: Option<&AskedServices>,
        src: &End,
        (protocol, behind): (Protocol, u16),
    ) -> Option<SideVerdict> {
        let service = (&*self.service.0, &*self.service.1);
        let call = AskedPort { address: self.address, protocol, front: self.port, behind };
        Some(services?.egress(src.pod()?, service, call))
    }

    /// Why a way that the rules for the pods open is closed.
    pub(crate) fn denied(&self) -> String {
        let Self { service: (namespace, name), address, port } = self;
        format!(
            "this network judges egress at {address} port {port}, before it is translated: no rule names that address, and no podSelector matches the selector of Service {namespace}/{name}"
        )
    }
}

/// The Services of the inventory, as a network knows them that judges before translation.
pub(crate) fn asked_services(evaluator: &Evaluator, inventory: &Inventory) -> Option<AskedServices> {
    let known = inventory.services().map(|service| AskedService {
        namespace: &service.namespace,
        name: &service.name,
        selector: service.selector.to_map(),
    });
    AskedServices::new(evaluator, known)
}

impl Ends {
    fn have_nodes(&self) -> bool {
        self.ends.iter().any(|named| named.end.is_node())
    }

    /// One that is called as the user calls it.
    pub(crate) fn one(end: End, name: &str, port: u16) -> Self {
        Self { ends: vec![Named { end, name: name.to_owned(), port }], note: None, asked: None }
    }
}

/// The ends of a connection's initiator; `to`: what is called, by the user's name.
pub(crate) fn from(evaluator: &Evaluator, inventory: &Inventory, text: &str, to: &str) -> anyhow::Result<Ends> {
    let text = &*names::canonical(text);
    let to_node = evaluator.end(&names::canonical(to)).is_ok_and(|end| end.is_node());
    if let Some(ends) = initiators(evaluator, inventory, text, to_node) {
        return ends.map_err(|error| anyhow!("--from: {error}"));
    }
    let end = evaluator.end(text).map_err(|unknown| match unknown {
        UnknownEnd::Virtual { address, service } => anyhow!(
            "--from: {address} is an address of Service {service} for clients outside, from which nothing opens connections: ask --from {service} for the pods behind it"
        ),
        other => nobody("--from", &other, evaluator, inventory),
    });
    let end = end?;
    Ok(Ends::one(end, text, 0))
}

/// The pods that a connection's initiator names, if it names several: a workload, or a Service.
/// `to_node`: what is called is a node, so pods of different nodes are not alike.
pub(crate) fn initiators(
    evaluator: &Evaluator,
    inventory: &Inventory,
    text: &str,
    to_node: bool,
) -> Option<anyhow::Result<Ends>> {
    let text = &*names::canonical(text);
    if let Some(pods) = pods_of_workload(evaluator, text) {
        return Some(Ok(of_workload(evaluator, text, &pods, (0, to_node))));
    }
    let (service, what) = service(evaluator, inventory, text)?;
    // Nothing opens a connection from there: whoever writes it means the pods.
    let selected = |pod: &ClusterPod| is_behind(service, pod);
    let pods = evaluator.cluster().pods.iter().zip(0..).filter(|(pod, _)| selected(pod));
    let ends = alike(evaluator, pods.map(|(_, index)| (index, 0)), to_node);
    if service.selector.is_empty() || ends.is_empty() {
        return Some(Err(anyhow!(
            "{what}, from which nothing opens connections, and the inventory has no pod behind it"
        )));
    }
    let names: Vec<&str> = ends.iter().map(|e| e.name.as_str()).collect();
    let note =
        format!("{what}, from which nothing opens connections: judged at the pods behind it ({})", names.join(", "));
    Some(Ok(Ends { note: Some(note), ends, asked: None }))
}

/// The pods that a connection's acceptor names, if it names several: a workload, a Service or its
/// address within the cluster.
pub(crate) fn acceptors(
    evaluator: &Evaluator,
    inventory: &Inventory,
    sources: &Ends,
    text: &str,
    (protocol, port): (Protocol, u16),
) -> Option<anyhow::Result<Ends>> {
    let text = &*names::canonical(text);
    if let Some(pods) = pods_of_workload(evaluator, text) {
        return Some(Ok(of_workload(evaluator, text, &pods, (port, sources.have_nodes()))));
    }
    let (service, what) = service(evaluator, inventory, text)?;
    let address = text.parse().ok().or_else(|| service.cluster_ips.first().copied());
    let name = (service.namespace.clone(), service.name.clone());
    let asked = address.map(|address| Asked { service: name, address, port });
    let leads_to = |_: &ClusterPod| true;
    let places = (evaluator, sources.have_nodes());
    let ends = behind(places, inventory, (service, &what), (protocol, port), leads_to);
    Some(ends.map(|ends| Ends { asked, ..ends }))
}

/// The ends of a connection's acceptor, with the port at which policies are asked.
pub(crate) fn to(
    evaluator: &Evaluator,
    inventory: &Inventory,
    sources: &Ends,
    text: &str,
    (protocol, port): (Protocol, u16),
) -> anyhow::Result<Ends> {
    let text = &*names::canonical(text);
    if let Some(ends) = acceptors(evaluator, inventory, sources, text, (protocol, port)) {
        return ends.map_err(to_option);
    }
    match evaluator.destination(text, protocol, port) {
        Ok(end) => {
            let link_local = text.parse::<IpAddr>().is_ok_and(is_link_local);
            let note = link_local.then(|| format!("{text} is a link-local address: judged as an address outside; where the pod's own node answers there, as it does for a node-local DNS or metadata server, the connection is allowed whatever the policies say"));
            let note = note.filter(|_| !end.is_node());
            Ok(Ends { note, ..Ends::one(end, text, port) })
        }
        Err(unknown) => elsewhere(evaluator, inventory, sources, unknown, (protocol, port)),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        // The metadata address of AWS is of a unique local range, and of no link.
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The Service that a name or an address within the cluster names, as a sentence begins about it.
fn service<'a>(evaluator: &Evaluator, inventory: &'a Inventory, text: &str) -> Option<(&'a Arc<Service>, String)> {
    let parts: Vec<&str> = text.split('/').collect();
    let found = match parts[..] {
        [namespace, name] if evaluator.end(text).is_err() => inventory.service(namespace, name),
        [namespace, "Service" | "svc", name] => inventory.service(namespace, name),
        // Of a Service's addresses only this one leaves the client its own address on the way.
        [address] => address.parse().ok().and_then(|ip| inventory.services().find(|s| s.cluster_ips.contains(&ip))),
        _ => None,
    };
    let found = found?;
    let what = match parts[..] {
        [address] => format!("{address} is the address of Service {}/{}", found.namespace, found.name),
        _ => format!("{text} is a Service"),
    };
    Some((found, what))
}

/// What is wrong with the value of `--to`.
fn to_option(error: anyhow::Error) -> anyhow::Error {
    anyhow!("--to: {error}")
}

/// What somebody else answers for: judged there if the client's address is the same there, refused
/// with the questions to ask otherwise.
fn elsewhere(
    evaluator: &Evaluator,
    inventory: &Inventory,
    sources: &Ends,
    unknown: UnknownEnd,
    (protocol, port): (Protocol, u16),
) -> anyhow::Result<Ends> {
    // Those outside have no egress, which would be judged on the way.
    let outside = sources.ends.iter().all(|source| !source.end.is_pod() && !source.end.is_node());
    let known = |name: &str| name.split_once('/').and_then(|(namespace, name)| inventory.service(namespace, name));
    let lost = |service: &str, at: u16, node: &str| {
        format!(
            "--to: {unknown}; on the way the client's address may become a node's: ask --to {service} --port {at} with --from the client, and again with --from {node}"
        )
    };
    match &unknown {
        UnknownEnd::Virtual { address, service: name } => match known(name) {
            Some(service) if outside && service.keeps_client_address => {
                let what = format!("{address} is an address of Service {name}, which leaves clients their address");
                behind((evaluator, sources.have_nodes()), inventory, (service, &what), (protocol, port), |_| true)
                    .map_err(to_option)
            }
            _ => bail!(lost(name, port, "a node's address")),
        },
        UnknownEnd::NodePort { end, port: node_port, service: name } => {
            let Some(service) = known(name) else { bail!("--to: {unknown}") };
            let Some(at) = port_behind(service, protocol, *node_port) else { bail!("--to: {unknown}") };
            if !(outside && service.keeps_client_address) {
                bail!(lost(name, at, end));
            }
            // A node leads to its own pods only.
            let address = end.parse::<IpAddr>().ok();
            let mut nodes = evaluator.cluster().nodes.iter();
            let node = nodes.find(|node| address.is_some_and(|a| node.addresses.contains(&a)));
            let what = format!(
                "port {node_port} of {end} is the node port of Service {name}, which leaves clients their address and leads to pods of that node"
            );
            let on_it = |pod: &ClusterPod| node.is_none_or(|node| pod.node.as_ref() == Some(&node.name));
            behind((evaluator, sources.have_nodes()), inventory, (service, &what), (protocol, at), on_it)
                .map_err(to_option)
        }
        UnknownEnd::HostPort { end, port: host_port, pod } => {
            let Some(behind) = pod_at_host_port(evaluator, pod, protocol, *host_port) else { bail!("--to: {unknown}") };
            if !outside {
                bail!(
                    "--to: {unknown}; the client's egress may be judged at the node, the pod's ingress is at its port {at}: ask --to {pod} --port {at} for both at the pod",
                    at = behind.port
                );
            }
            let note =
                format!("port {host_port} of {end} is a host port of pod {pod}: judged at its port {}", behind.port);
            Ok(Ends { note: Some(note), ends: vec![behind], asked: None })
        }
        unknown => bail!(nobody("--to", unknown, evaluator, inventory)),
    }
}

/// An end that nobody is called, or that cannot be judged: what to write instead.
fn nobody(option: &str, unknown: &UnknownEnd, evaluator: &Evaluator, inventory: &Inventory) -> anyhow::Error {
    match unknown {
        UnknownEnd::NoSuchPod(text) if text.parse::<IpNet>().is_ok() => {
            anyhow!("{option}: `{text}` is a range of addresses: name one of them")
        }
        UnknownEnd::NoSuchPod(text) => {
            let advice = names::nearest(text, evaluator, inventory).map_or_else(
                || "correct the name or complete --inventory".to_owned(),
                |near| format!("did you mean {near}?"),
            );
            anyhow!("{option}: the inventory has no pod, workload or Service `{text}`; {advice}")
        }
        UnknownEnd::Malformed(text) => {
            anyhow!(
                "{option}: `{text}` is neither namespace/pod nor an IP address; {}",
                names::instead(text, evaluator, inventory)
            )
        }
        UnknownEnd::Finished(_) => anyhow!("{option}: {unknown}; name a pod that runs, or its workload"),
        _ => anyhow!("{option}: {unknown}"),
    }
}

/// Several pods, or none of this name but a workload.
fn pods_of_workload(evaluator: &Evaluator, text: &str) -> Option<Vec<u32>> {
    let pods = evaluator.pods_of_workload(text);
    (pods.len() > 1 && evaluator.end(text).is_err()).then_some(pods)
}

fn of_workload(evaluator: &Evaluator, text: &str, pods: &[u32], (port, by_node): (u16, bool)) -> Ends {
    let ends = alike(evaluator, pods.iter().map(|pod| (*pod, port)), by_node);
    let names: Vec<&str> = ends.iter().map(|e| e.name.as_str()).collect();
    let like = if ends.len() < pods.len() { ", which stand for those like them" } else { "" };
    let note = format!("{text} is a workload of {} pods: judged at {}{like}", pods.len(), names.join(", "));
    Ends { note: Some(note), ends, asked: None }
}

/// Of pods that no policy tells apart the first; `by_node`: of each node, since the other end is a
/// node, to which its own pods have a way that no policy closes.
fn alike(evaluator: &Evaluator, pods: impl Iterator<Item = (u32, u16)>, by_node: bool) -> Vec<Named> {
    let node = |end: &End| end.pod().and_then(|pod| evaluator.cluster().pods[pod as usize].node.as_ref());
    let mut ends: Vec<Named> = Vec::new();
    for (pod, port) in pods {
        let end = evaluator.end_of_pod(pod);
        let is_like = |known: &Named| {
            known.end.is_like(&end) && known.port == port && (!by_node || node(&known.end) == node(&end))
        };
        if !ends.iter().any(is_like) {
            ends.push(Named { end, name: evaluator.cluster().pods[pod as usize].full_name(), port });
        }
    }
    ends
}

fn is_behind(service: &Service, pod: &ClusterPod) -> bool {
    pod.namespace == service.namespace
        && !pod.finished
        && service.selector.iter().all(|(k, v)| pod.labels.get(k).is_some_and(|own| own == v))
}

/// The port of a Service that has this node port.
pub(crate) fn port_behind(service: &Service, protocol: Protocol, node_port: u16) -> Option<u16> {
    let is = |p: &&ServicePort| p.node_port == Some(node_port) && protocol.is_named(&p.protocol);
    service.ports.iter().find(is).map(|p| p.port)
}

/// A pod, at its port that has this port of its node.
pub(crate) fn pod_at_host_port(evaluator: &Evaluator, pod: &str, protocol: Protocol, host_port: u16) -> Option<Named> {
    let index = evaluator.end(pod).ok()?.pod()?;
    let ports = &evaluator.cluster().pods[index as usize].declared_ports;
    let port = ports.iter().find(|p| p.protocol == protocol && p.host_port == Some(host_port))?.port;
    Some(Named { end: evaluator.end_of_pod(index), name: pod.to_owned(), port })
}

/// `by_node`: also of pods alike one on each node. `what`: the Service, as a sentence about what
/// the user named. `leads_to`: which of its pods are reached.
pub(crate) fn behind(
    (evaluator, by_node): (&Evaluator, bool),
    inventory: &Inventory,
    (service, what): (&Service, &str),
    (protocol, port): (Protocol, u16),
    leads_to: impl Fn(&ClusterPod) -> bool,
) -> anyhow::Result<Ends> {
    let Some(wanted) = service.ports.iter().position(|p| p.port == port && protocol.is_named(&p.protocol)) else {
        let ports: Vec<String> = service.ports.iter().map(|p| format!("{}/{}", p.protocol, p.port)).collect();
        bail!("{what} without port {protocol}/{port}; it has {}", ports.join(", "));
    };
    let ends = if service.selector.is_empty() {
        let backends = inventory.backends(service).into_iter().filter(|b| b.service_port == wanted);
        backends
            .map(|b| Named { end: evaluator.end_of_address(b.address), name: b.address.to_string(), port: b.port })
            .collect()
    } else {
        let selected = |pod: &ClusterPod| is_behind(service, pod) && leads_to(pod);
        let target = |pod: &ClusterPod| match &service.ports[wanted].target_port {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                pod.ports.iter().find(|(n, p, _)| n == name && *p == protocol).map(|(.., number)| *number)
            }
        };
        let pods = evaluator.cluster().pods.iter().zip(0..).filter(|(pod, _)| selected(pod));
        alike(evaluator, pods.filter_map(|(pod, index)| Some((index, target(pod)?))), by_node)
    };
    if ends.is_empty() {
        bail!("{what}, and the inventory has no pod behind its port {protocol}/{port}");
    }
    let names: Vec<String> = ends.iter().map(|e| format!("{}, port {}", e.name, e.port)).collect();
    let note = Some(format!("{what}: judged at the pods behind it ({})", names.join("; ")));
    Ok(Ends { note, ends, asked: None })
}

/// What is easily overlooked about the port: no container declares it, and a Service's port of that
/// number leads to another one.
pub(crate) fn port_note(
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
