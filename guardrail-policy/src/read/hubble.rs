//! Flows as Hubble logs them: one JSON object a line, as `hubble observe -o jsonpb` or `-o json`
//! prints them and the agent's exporter writes them.
//!
//! Fields and their meaning: `flow.Flow` and `observer.GetFlowsResponse` in Cilium's `api/v1`. A
//! line is one packet or request; what is judged is the connection, once, from its initiator to its
//! responder. Lines that tell of none are counted by reason.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, de::IgnoredAny};

use super::{
    ObjectProblem, ObjectProblemKind, ReadError,
    flow::{Flow, Flows, MAX_PROBLEMS, PassedOver, shown},
};
use crate::{
    evaluate::identity::{CLUSTER, NAMESPACE_LABELS, POD_NAMESPACE, SERVICE_ACCOUNT},
    model::{
        Location, Protocol,
        logged::{Logged, LoggedEnd, LoggedPod},
        tier::Entity,
    },
};

/// A line of `-o jsonpb`: one of these, and more that says where it comes from.
#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    flow: Option<RawFlow<'a>>,
    #[serde(alias = "lostEvents")]
    lost_events: Option<IgnoredAny>,
    #[serde(alias = "nodeStatus")]
    node_status: Option<IgnoredAny>,
    #[serde(alias = "agentEvent")]
    agent_event: Option<IgnoredAny>,
    #[serde(alias = "debugEvent")]
    debug_event: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct RawFlow<'a> {
    #[serde(borrow)]
    verdict: Option<Cow<'a, str>>,
    #[serde(rename = "IP", alias = "ip", borrow)]
    ip: Option<RawIp<'a>>,
    l4: Option<RawLayer4>,
    #[serde(borrow)]
    source: Option<RawEndpoint<'a>>,
    #[serde(borrow)]
    destination: Option<RawEndpoint<'a>>,
    #[serde(rename = "Type", alias = "type", borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    l7: Option<RawLayer7<'a>>,
    #[serde(alias = "isReply")]
    is_reply: Option<bool>,
    /// Before `is_reply` there was this, and false may mean that it is not known.
    reply: Option<bool>,
}

#[derive(Deserialize)]
struct RawLayer7<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RawIp<'a> {
    #[serde(borrow)]
    source: Option<Cow<'a, str>>,
    #[serde(borrow)]
    destination: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RawLayer4 {
    #[serde(rename = "TCP")]
    tcp: Option<RawPorts>,
    #[serde(rename = "UDP")]
    udp: Option<RawPorts>,
    #[serde(rename = "SCTP")]
    sctp: Option<RawPorts>,
    #[serde(rename = "ICMPv4")]
    icmp4: Option<RawIcmp>,
    #[serde(rename = "ICMPv6")]
    icmp6: Option<RawIcmp>,
}

#[derive(Deserialize)]
struct RawPorts {
    #[serde(default, alias = "sourcePort")]
    source_port: u32,
    #[serde(default, alias = "destinationPort")]
    destination_port: u32,
    flags: Option<RawFlags>,
}

#[derive(Deserialize)]
struct RawFlags {
    #[serde(default, rename = "SYN")]
    syn: bool,
    #[serde(default, rename = "ACK")]
    ack: bool,
}

#[derive(Deserialize)]
struct RawIcmp {
    /// Left out where it is 0.
    #[serde(default, rename = "type")]
    kind: u32,
}

#[derive(Deserialize)]
struct RawEndpoint<'a> {
    #[serde(default)]
    identity: u32,
    #[serde(borrow)]
    namespace: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    labels: Vec<Cow<'a, str>>,
    #[serde(alias = "podName", borrow)]
    pod_name: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    workloads: Vec<RawWorkload<'a>>,
}

#[derive(Deserialize)]
struct RawWorkload<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
}

/// Whether this looks like such a log: the first thing in it is an object.
pub(super) fn is_log(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// A packet's ends and ports, to find those of one connection.
type Tuple = (IpAddr, IpAddr, Protocol, u32, u32);

/// Names of the ends, protocol, port, addresses.
type Connection = (String, String, Protocol, u16, [Option<IpAddr>; 2]);

#[derive(Default)]
struct Reader<'a> {
    flows: Vec<(Flow<'a>, Option<Tuple>)>,
    known: HashSet<Connection>,
    passed_over: BTreeMap<PassedOver, u64>,
    /// Connections of which a packet was dropped, and those that were answered.
    dropped: HashSet<Tuple>,
    answered: HashSet<Tuple>,
}

/// Reads a log.
pub(super) fn read<'a>(file: &Arc<str>, text: &'a str) -> Result<Flows<'a>, ReadError> {
    let mut reader = Reader::default();
    let mut problems = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        if let Err(message) = reader.line(line, number) {
            let location = Location { file: file.clone(), line: number };
            problems.push(ObjectProblem { location, kind: ObjectProblemKind::Syntax, policy: None, message });
            if problems.len() == MAX_PROBLEMS {
                break;
            }
        }
    }
    if problems.is_empty() { Ok(reader.finish()) } else { Err(ReadError { problems }) }
}

impl<'a> Reader<'a> {
    fn line(&mut self, line: &'a str, number: u32) -> Result<(), String> {
        let wrong = |error: serde_json::Error| {
            let what = error.to_string();
            let what = what.rfind(" at line ").map_or(what.as_str(), |at| &what[..at]);
            format!("this is no flow of Hubble, {what}; name what `hubble observe -o jsonpb` prints, one object a line")
        };
        let response: Response<'a> = serde_json::from_str(line).map_err(wrong)?;
        let others = [&response.node_status, &response.agent_event, &response.debug_event];
        let flow = match response.flow {
            Some(flow) => flow,
            None if response.lost_events.is_some() => {
                self.pass_over(PassedOver::Lost);
                return Ok(());
            }
            None if others.iter().any(|o| o.is_some()) => {
                self.pass_over(PassedOver::NoFlow);
                return Ok(());
            }
            // `-o json` of older releases has no frame.
            None => serde_json::from_str(line).map_err(wrong)?,
        };
        if flow.source.is_none() && flow.destination.is_none() && flow.ip.is_none() {
            return Err(
                "this object is no flow of Hubble: it has neither source, destination nor IP; name what `hubble observe -o jsonpb` prints"
                    .to_owned(),
            );
        }
        match self.flow(flow, number)? {
            None => {}
            Some(reason) => self.pass_over(reason),
        }
        Ok(())
    }

    fn pass_over(&mut self, reason: PassedOver) {
        *self.passed_over.entry(reason).or_default() += 1;
    }

    /// Why it is passed over, if so.
    fn flow(&mut self, raw: RawFlow<'a>, line: u32) -> Result<Option<PassedOver>, String> {
        if raw.kind.as_deref() == Some("SOCK") || raw.verdict.as_deref() == Some("TRANSLATED") {
            return Ok(Some(PassedOver::Translation));
        }
        let Some((protocol, port, source_port)) = port(raw.l4.as_ref())? else {
            return Ok(Some(PassedOver::NoPort));
        };
        let address = |text: Option<&Cow<'a, str>>| match text.map(Cow::as_ref).filter(|t| !t.is_empty()) {
            None => Ok(None),
            Some(text) => match text.parse::<IpAddr>() {
                Ok(address) => Ok(Some(address.to_canonical())),
                Err(_) => Err(format!("`{}` is no IP address", shown(text))),
            },
        };
        let src_address = address(raw.ip.as_ref().and_then(|ip| ip.source.as_ref()))?;
        let dst_address = address(raw.ip.as_ref().and_then(|ip| ip.destination.as_ref()))?;
        let tuple = src_address.zip(dst_address).map(|(s, d)| (s, d, protocol, source_port, u32::from(port)));
        let requests = raw.kind.as_deref() == Some("L7");
        let flags = raw.l4.as_ref().and_then(|l4| l4.tcp.as_ref()).and_then(|tcp| tcp.flags.as_ref());
        let reply = match raw.is_reply {
            Some(reply) => Some(reply),
            None if raw.reply == Some(true) => Some(true),
            None if requests => raw.l7.as_ref().and_then(|l7| l7.kind.as_deref()).and_then(|kind| match kind {
                "REQUEST" => Some(false),
                "RESPONSE" => Some(true),
                _ => None,
            }),
            None => flags.filter(|f| f.syn).map(|f| f.ack),
        };
        if matches!(raw.verdict.as_deref(), Some("DROPPED" | "ERROR")) {
            // A request that a proxy refused came over a connection; a packet came to nothing.
            self.dropped.extend(tuple.filter(|_| !requests));
            return Ok(Some(PassedOver::Dropped));
        }
        match reply {
            Some(false) => {}
            Some(true) => {
                self.answered.extend(tuple.map(|(s, d, protocol, from, to)| (d, s, protocol, to, from)));
                return Ok(Some(PassedOver::Reply));
            }
            None => return Ok(Some(PassedOver::NoDirection)),
        }
        let ends = (end(raw.source, src_address)?, end(raw.destination, dst_address)?);
        let (Some((src, src_end)), Some((dst, dst_end))) = ends else {
            return Ok(Some(PassedOver::NoIdentity));
        };
        if self.known.insert((src.clone(), dst.clone(), protocol, port, [src_address, dst_address])) {
            let logged = Some(Box::new(Logged { src: src_end, dst: dst_end }));
            self.flows.push((Flow { src: src.into(), dst: dst.into(), protocol, port, line, logged }, tuple));
        }
        Ok(None)
    }

    /// A packet that its sender's node forwarded may be dropped at the other end: both are in the
    /// log, and nothing that answers.
    fn finish(mut self) -> Flows<'a> {
        let failed = |tuple: &Tuple| self.dropped.contains(tuple) && !self.answered.contains(tuple);
        let (failed, flows): (Vec<_>, Vec<_>) =
            self.flows.into_iter().partition(|(_, tuple)| tuple.as_ref().is_some_and(failed));
        if !failed.is_empty() {
            *self.passed_over.entry(PassedOver::Dropped).or_default() += failed.len() as u64;
        }
        Flows { flows: flows.into_iter().map(|(flow, _)| flow).collect(), passed_over: self.passed_over }
    }
}

/// Protocol, destination port or message type, source port.
fn port(l4: Option<&RawLayer4>) -> Result<Option<(Protocol, u16, u32)>, String> {
    let Some(RawLayer4 { tcp, udp, sctp, icmp4, icmp6 }) = l4 else { return Ok(None) };
    let number = |number: u32, most: u16| match u16::try_from(number) {
        Ok(number) if number <= most => Ok(number),
        _ => Err(format!("port or message type {number} is none: at most {most}")),
    };
    for (protocol, ports) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp), (Protocol::Sctp, sctp)] {
        if let Some(ports) = ports {
            let port = number(ports.destination_port, u16::MAX)?;
            return Ok((port > 0).then_some((protocol, port, ports.source_port)));
        }
    }
    for (protocol, icmp) in [(Protocol::ICMP, icmp4), (Protocol::ICMPV6, icmp6)] {
        if let Some(icmp) = icmp {
            return Ok(Some((protocol, number(icmp.kind, 255)?, 0)));
        }
    }
    Ok(None)
}

/// How the end is called, and what the log says of it; `None` if that is nothing.
fn end(raw: Option<RawEndpoint<'_>>, address: Option<IpAddr>) -> Result<Option<(String, LoggedEnd)>, String> {
    let bare = |address: Option<IpAddr>| {
        address.map(|a| (a.to_string(), LoggedEnd { address: Some(a), ..LoggedEnd::default() }))
    };
    let Some(raw) = raw else { return Ok(bare(address)) };
    let namespace = raw.namespace.as_deref().unwrap_or_default();
    if !namespace.is_empty() {
        let name = match raw.pod_name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => name.to_owned(),
            None => match address {
                Some(address) => format!("({address})"),
                None => return Ok(None),
            },
        };
        if namespace.contains('/') || name.contains('/') {
            return Err(format!("`{}/{}` is no pod", shown(namespace), shown(&name)));
        }
        let pod = pod(&raw, namespace, &name);
        return Ok(Some((format!("{namespace}/{name}"), LoggedEnd { address, entities: Vec::new(), pod: Some(pod) })));
    }
    let mut entities: Vec<Entity> = raw.labels.iter().filter_map(|l| entity(l.strip_prefix("reserved:")?)).collect();
    if entities.is_empty() {
        entities.extend(reserved(raw.identity));
    }
    entities.sort_unstable();
    entities.dedup();
    // The world is known by its addresses.
    let name = match (entities.first(), address) {
        (None, _) => return Ok(bare(address)),
        (Some(_), Some(address)) if entities.contains(&Entity::World) => address.to_string(),
        (Some(entity), _) => format!("reserved:{}", entity.as_str()),
    };
    Ok(Some((name, LoggedEnd { address, entities, pod: None })))
}

/// A reserved label that stands for an entity.
fn entity(label: &str) -> Option<Entity> {
    match label {
        "world-ipv4" | "world-ipv6" => Some(Entity::World),
        "all" | "cluster" | "none" => None,
        _ => Entity::from_name(label),
    }
}

/// The reserved numeric identities.
fn reserved(identity: u32) -> Option<Entity> {
    Some(match identity {
        1 => Entity::Host,
        2 | 9 | 10 => Entity::World,
        3 => Entity::Unmanaged,
        4 => Entity::Health,
        5 => Entity::Init,
        6 => Entity::RemoteNode,
        7 => Entity::KubeApiserver,
        8 => Entity::Ingress,
        _ => return None,
    })
}

fn pod(raw: &RawEndpoint<'_>, namespace: &str, name: &str) -> LoggedPod {
    let mut pod = LoggedPod { namespace: namespace.to_owned(), name: name.to_owned(), ..LoggedPod::default() };
    for label in raw.labels.iter().filter_map(|l| l.strip_prefix("k8s:")) {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        match key {
            POD_NAMESPACE | CLUSTER => {}
            SERVICE_ACCOUNT => pod.service_account = Some(value.to_owned()),
            _ => {
                let (labels, key) = match key.strip_prefix(NAMESPACE_LABELS) {
                    Some(key) => (&mut pod.namespace_labels, key),
                    None => (&mut pod.labels, key),
                };
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    let workload = raw.workloads.first();
    pod.workload = workload.and_then(|w| Some((w.kind.as_deref()?.to_owned(), w.name.as_deref()?.to_owned())));
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::flows;

    /// A line of `-o jsonpb` with these fields beside the addresses.
    fn line(fields: &str) -> String {
        format!(
            r#"{{"flow":{{"time":"2026-11-01T10:00:00Z","IP":{{"source":"10.0.0.1","destination":"10.0.0.2","ipVersion":"IPv4"}},{fields}}},"node_name":"n1"}}"#
        )
    }

    const WEB: &str = r#""source":{"ID":7,"identity":4711,"namespace":"shop","labels":["k8s:app=web","k8s:io.cilium.k8s.namespace.labels.team=red","k8s:io.cilium.k8s.policy.cluster=default","k8s:io.cilium.k8s.policy.serviceaccount=robot","k8s:io.kubernetes.pod.namespace=shop"],"pod_name":"web-1","workloads":[{"name":"web","kind":"Deployment"}]}"#;
    const WORLD: &str = r#""destination":{"identity":2,"labels":["reserved:world"]}"#;
    const NEW: &str = r#""verdict":"FORWARDED","Type":"L3_L4","is_reply":false"#;

    fn tcp(port: u32) -> String {
        format!(r#""l4":{{"TCP":{{"source_port":40000,"destination_port":{port},"flags":{{"SYN":true}}}}}}"#)
    }

    #[track_caller]
    fn read_all(lines: &[String]) -> (Vec<String>, Vec<(PassedOver, u64)>) {
        let text = lines.join("\n");
        let found = flows("h.json", text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        let shown = found.flows.iter().map(|f| format!("{}>{} {}/{} l{}", f.src, f.dst, f.protocol, f.port, f.line));
        (shown.collect(), found.passed_over.into_iter().collect())
    }

    #[test]
    fn a_connection_is_read_once_with_the_identity_of_its_ends() {
        let flow = line(&format!("{NEW},{WEB},{WORLD},{}", tcp(443)));
        let text = format!("{flow}\n\n{flow}\n");
        let found = flows("h.json", text.as_bytes()).unwrap();
        assert_eq!(found.flows.len(), 1);
        let flow = &found.flows[0];
        assert_eq!((&*flow.src, &*flow.dst, flow.port, flow.line), ("shop/web-1", "10.0.0.2", 443, 1));
        let logged = flow.logged.as_ref().unwrap();
        let pod = logged.src.pod.as_ref().unwrap();
        assert_eq!(pod.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["app=web"]);
        assert_eq!(pod.namespace_labels.get("team").map(String::as_str), Some("red"));
        assert_eq!(pod.service_account.as_deref(), Some("robot"));
        assert_eq!(pod.workload, Some(("Deployment".to_owned(), "web".to_owned())));
        assert_eq!(logged.dst.entities, [Entity::World]);
    }

    #[test]
    fn the_frame_of_jsonpb_may_be_missing_as_in_json() {
        let flow = line(&format!("{NEW},{WEB},{WORLD},{}", tcp(443)));
        let bare = flow.strip_prefix(r#"{"flow":"#).unwrap().strip_suffix(r#","node_name":"n1"}"#).unwrap();
        assert_eq!(read_all(&[bare.to_owned()]).0, ["shop/web-1>10.0.0.2 TCP/443 l1"]);
    }

    #[test]
    fn protocols_and_reserved_identities() {
        let to = |name: &str, identity: u32, l4: &str| {
            line(&format!(r#"{NEW},{WEB},"destination":{{"identity":{identity},"labels":[{name}]}},"l4":{{{l4}}}"#))
        };
        let lines = [
            to(r#""reserved:host""#, 1, r#""UDP":{"source_port":1,"destination_port":53}"#),
            to(
                r#""reserved:kube-apiserver","reserved:remote-node""#,
                7,
                r#""SCTP":{"source_port":1,"destination_port":5}"#,
            ),
            to("", 6, r#""ICMPv4":{"type":8}"#),
            to(r#""reserved:health""#, 4, r#""ICMPv6":{"type":128}"#),
            to("", 7, r#""ICMPv4":{}"#),
            to(r#""reserved:unknown""#, 0, r#""TCP":{"destination_port":80}"#),
        ];
        let (found, passed_over) = read_all(&lines);
        let expected = [
            "shop/web-1>reserved:host UDP/53 l1",
            "shop/web-1>reserved:remote-node SCTP/5 l2",
            "shop/web-1>reserved:remote-node ICMP/8 l3",
            "shop/web-1>reserved:health ICMPv6/128 l4",
            "shop/web-1>reserved:kube-apiserver ICMP/0 l5",
            "shop/web-1>10.0.0.2 TCP/80 l6",
        ];
        assert_eq!((found.as_slice(), passed_over.as_slice()), (&expected.map(str::to_owned)[..], &[][..]));
    }

    #[test]
    fn what_is_no_connection_is_counted_by_reason() {
        let with = |fields: &str| line(&format!("{fields},{WEB},{WORLD}"));
        let lines = [
            with(&format!(r#""verdict":"FORWARDED","is_reply":true,{}"#, tcp(40000))),
            with(&format!(r#""verdict":"DROPPED",{}"#, tcp(25))),
            with(r#""verdict":"FORWARDED","l4":{"UDP":{"destination_port":53}}"#),
            with(&format!(r#""verdict":"TRANSLATED","Type":"SOCK",{}"#, tcp(443))),
            with(r#""verdict":"FORWARDED","is_reply":false"#),
            r#"{"lost_events":{"source":"PERF_EVENT_RING_BUFFER","num_events_lost":"7"},"node_name":"n1"}"#.to_owned(),
            r#"{"node_status":{"state_change":"NODE_CONNECTED"}}"#.to_owned(),
            // Without `is_reply` the flags tell: the first packet, and its answer.
            with(&format!(r#""verdict":"TRACED",{}"#, tcp(8443))),
            with(r#""verdict":"FORWARDED","l4":{"TCP":{"destination_port":1,"flags":{"SYN":true,"ACK":true}}}"#),
        ];
        let (found, passed_over) = read_all(&lines);
        assert_eq!(found, ["shop/web-1>10.0.0.2 TCP/8443 l8"]);
        use PassedOver::{Dropped, Lost, NoDirection, NoFlow, NoPort, Reply, Translation};
        let expected =
            [(Reply, 2), (NoDirection, 1), (Dropped, 1), (NoPort, 1), (Translation, 1), (NoFlow, 1), (Lost, 1)];
        assert_eq!(passed_over, expected);
    }

    #[test]
    fn a_packet_that_was_forwarded_here_and_dropped_there_is_no_connection_unless_it_was_answered() {
        let flow = |verdict: &str, port| {
            line(&format!(r#""verdict":"{verdict}","is_reply":false,{WEB},{WORLD},{}"#, tcp(port)))
        };
        let dropped = [flow("FORWARDED", 80), flow("DROPPED", 80), flow("REDIRECTED", 81)];
        assert_eq!(
            read_all(&dropped),
            (vec!["shop/web-1>10.0.0.2 TCP/81 l3".to_owned()], vec![(PassedOver::Dropped, 2)])
        );
        let answer = r#"{"flow":{"verdict":"FORWARDED","is_reply":true,"IP":{"source":"10.0.0.2","destination":"10.0.0.1"},"l4":{"TCP":{"source_port":80,"destination_port":40000}}}}"#;
        let answered = [flow("FORWARDED", 80), flow("DROPPED", 80), answer.to_owned()];
        assert_eq!(read_all(&answered).0, ["shop/web-1>10.0.0.2 TCP/80 l1"]);
    }

    #[test]
    fn requests_are_judged_by_their_connection_and_those_that_a_proxy_refused_are_not() {
        let request = |verdict: &str, kind: &str| {
            line(&format!(
                r#""verdict":"{verdict}","Type":"L7","l7":{{"type":"{kind}","http":{{"method":"GET"}}}},{WEB},{WORLD},"l4":{{"TCP":{{"source_port":40000,"destination_port":80}}}}"#
            ))
        };
        let lines = [request("FORWARDED", "REQUEST"), request("DROPPED", "REQUEST"), request("FORWARDED", "RESPONSE")];
        let (found, passed_over) = read_all(&lines);
        assert_eq!(found, ["shop/web-1>10.0.0.2 TCP/80 l1"]);
        assert_eq!(passed_over, [(PassedOver::Reply, 1), (PassedOver::Dropped, 1)]);
    }

    #[test]
    fn a_bad_line_is_told_with_its_number() {
        let bad = |second: &str| {
            let text = format!("{}\n{second}\n", line(&format!("{NEW},{WEB},{WORLD},{}", tcp(443))));
            flows("h.json", text.as_bytes()).expect_err("accepted").to_string()
        };
        for (text, begins) in [
            ("{", "h.json:2: this is no flow of Hubble, EOF while parsing"),
            ("src,dst", "h.json:2: this is no flow of Hubble, expected value"),
            ("{\"a\":1}", "h.json:2: this object is no flow of Hubble: it has neither source"),
            (&line(&format!("{NEW},{WEB},{WORLD},{}", tcp(70000))), "h.json:2: port or message type 70000 is none"),
            (r#"{"flow":{"IP":{"source":"x"},"l4":{"ICMPv4":{}}}}"#, "h.json:2: `x` is no IP address"),
        ] {
            let message = bad(text);
            assert!(message.starts_with(begins) && message.lines().count() == 1, "{message}");
        }
    }
}
