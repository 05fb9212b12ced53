//! `toPorts` and `icmps` of a Cilium rule.

use super::{
    super::{
        policy::Decoder,
        syntax::is_port_name,
        yaml::{Node, Value},
    },
    Context,
};
use crate::model::{Direction, PolicyPort, PortMatch, Protocol, tier::Action};

/// Most ports of one `toPorts` item.
const MAX_PORTS: usize = 40;

/// The ports of one entry.
pub(super) struct Ports {
    /// There is `toPorts` or `icmps`.
    pub(super) given: bool,
    /// Those that are simply open.
    pub(super) ports: Vec<PolicyPort>,
    /// Those on which requests are restricted.
    pub(super) restricted: Vec<PolicyPort>,
}

impl Decoder<'_> {
    pub(super) fn cilium_ports(&mut self, node: &Node, field: &str, context: Context<'_>) -> Option<Ports> {
        let mut found = Ports { given: false, ports: Vec::new(), restricted: Vec::new() };
        // `[]` and absent are the same here.
        let items =
            |list: Option<&Node>| list.is_some_and(|n| !matches!(&n.value, Value::Seq(items) if items.is_empty()));
        let (ports, icmps) = (node.get("toPorts"), node.get("icmps"));
        if items(ports) && items(icmps) {
            self.invalid(node.line, format!("`{field}` has toPorts and icmps; make them two rules"));
            return None;
        }
        if let Some(list) = icmps.filter(|_| items(icmps)) {
            found.given = true;
            for (item, index) in self.list(list, &format!("{field}.icmps")).iter().zip(0..) {
                self.icmp(item, &format!("{field}.icmps[{index}]"), &mut found.ports)?;
            }
        }
        if let Some(list) = ports.filter(|_| items(ports)) {
            found.given = true;
            for (item, index) in self.list(list, &format!("{field}.toPorts")).iter().zip(0..) {
                let mut ports = Vec::new();
                let l7 = self.ports_item(item, &format!("{field}.toPorts[{index}]"), context, &mut ports)?;
                if l7 { &mut found.restricted } else { &mut found.ports }.append(&mut ports);
            }
        }
        Some(found)
    }

    /// Whether requests are restricted.
    fn ports_item(
        &mut self,
        node: &Node,
        field: &str,
        context: Context<'_>,
        ports: &mut Vec<PolicyPort>,
    ) -> Option<bool> {
        let fields = ["ports", "rules", "terminatingTLS", "originatingTLS", "serverNames", "listener"];
        if !self.mapping(node, field, &fields) {
            return None;
        }
        let mut protocols = Vec::new();
        let items = match node.get("ports") {
            Some(list) => self.list(list, &format!("{field}.ports")),
            None => &[],
        };
        if items.len() > MAX_PORTS {
            self.invalid(node.line, format!("`{field}` has {} ports; at most {MAX_PORTS} are taken", items.len()));
            return None;
        }
        for (item, index) in items.iter().zip(0..) {
            self.cilium_port(item, &format!("{field}.ports[{index}]"), ports, &mut protocols)?;
        }
        if items.is_empty() {
            // Every port of TCP and UDP.
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                ports.push(PolicyPort { protocol, port: PortMatch::Any, line: node.line });
                protocols.push(protocol);
            }
        }
        let restricted = ["serverNames", "listener", "terminatingTLS", "originatingTLS"];
        let mut l7 = restricted.iter().any(|f| node.get(f).is_some());
        if let Some(rules) = node.get("rules") {
            l7 |= self.l7_rules(rules, &format!("{field}.rules"), context, &protocols)?;
        }
        if l7 && context.action == Action::Deny {
            self.invalid(node.line, format!("`{field}`: a deny rule knows no requests (L7)"));
            return None;
        }
        Some(l7)
    }

    fn l7_rules(&mut self, node: &Node, field: &str, context: Context<'_>, protocols: &[Protocol]) -> Option<bool> {
        if !self.mapping(node, field, &["http", "dns", "kafka", "l7", "l7proto"]) {
            return None;
        }
        let given: Vec<&str> = ["http", "dns", "kafka", "l7"].into_iter().filter(|f| node.get(f).is_some()).collect();
        if given.len() > 1 {
            self.invalid(node.line, format!("`{field}` has {}; it takes one kind of requests", given.join(" and ")));
            return None;
        }
        match given.first() {
            Some(&"dns") if context.direction == Direction::Ingress => {
                self.invalid(node.line, format!("`{field}.dns` is for egress only"));
                return None;
            }
            Some(&"dns") => {}
            Some(kind) if protocols.iter().any(|p| *p != Protocol::Tcp) => {
                self.invalid(node.line, format!("`{field}.{kind}` needs protocol TCP on every port beside it"));
                return None;
            }
            _ => {}
        }
        Some(!given.is_empty())
    }

    fn cilium_port(
        &mut self,
        node: &Node,
        field: &str,
        ports: &mut Vec<PolicyPort>,
        protocols: &mut Vec<Protocol>,
    ) -> Option<()> {
        if !self.mapping(node, field, &["port", "endPort", "protocol"]) {
            return None;
        }
        let of: Vec<Protocol> = match node.get("protocol") {
            None => vec![Protocol::Tcp, Protocol::Udp],
            Some(_) => match self.string(node, "protocol", field)?.as_str() {
                "ANY" | "" => vec![Protocol::Tcp, Protocol::Udp],
                "TCP" => vec![Protocol::Tcp],
                "UDP" => vec![Protocol::Udp],
                "SCTP" => vec![Protocol::Sctp],
                other => {
                    self.invalid(node.line, format!("`{field}.protocol` is `{other}`; write TCP, UDP, SCTP or ANY"));
                    return None;
                }
            },
        };
        let text = match node.get("port").map(|n| &n.value) {
            Some(Value::Str(text)) => text.clone(),
            Some(Value::Int(number)) => {
                let message = format!("`{field}.port` is the number {number}; Cilium takes a string: put it in quotes");
                self.invalid(node.line, message);
                return None;
            }
            _ => {
                self.invalid(node.line, format!("`{field}` lacks `port`; add it, in quotes"));
                return None;
            }
        };
        let end = match node.get("endPort").map(|n| &n.value) {
            None => None,
            Some(Value::Int(number)) if (0..=65535).contains(number) => u16::try_from(*number).ok().filter(|e| *e > 0),
            Some(_) => {
                self.invalid(node.line, format!("`{field}.endPort` is a number from 1 to 65535"));
                return None;
            }
        };
        let port = match text.parse::<u16>() {
            Ok(0) => PortMatch::Any,
            Ok(first) => {
                let last = end.unwrap_or(first);
                if last < first {
                    self.invalid(node.line, format!("endPort {last} is less than port {first}; exchange them"));
                    return None;
                }
                PortMatch::Range { first, last }
            }
            Err(_) if is_port_name(&text.to_ascii_lowercase()) => PortMatch::Named(text.to_ascii_lowercase()),
            Err(_) => {
                self.invalid(
                    node.line,
                    format!("`{field}.port` is `{text}`; it is a number from 0 to 65535 or a port name"),
                );
                return None;
            }
        };
        for protocol in of {
            ports.push(PolicyPort { protocol, port: port.clone(), line: node.line });
            protocols.push(protocol);
        }
        Some(())
    }

    fn icmp(&mut self, node: &Node, field: &str, ports: &mut Vec<PolicyPort>) -> Option<()> {
        if !self.mapping(node, field, &["fields"]) {
            return None;
        }
        let Some(list) = node.get("fields") else { return Some(()) };
        for (item, index) in self.list(list, &format!("{field}.fields")).iter().zip(0..) {
            let field = format!("{field}.fields[{index}]");
            if !self.mapping(item, &field, &["family", "type"]) {
                return None;
            }
            let protocol = match item.get("family").map(|n| n.as_str()) {
                None | Some(Some("IPv4" | "")) => Protocol::ICMP,
                Some(Some("IPv6")) => Protocol::ICMPV6,
                Some(_) => {
                    self.invalid(item.line, format!("`{field}.family` is IPv4 or IPv6"));
                    return None;
                }
            };
            let number = match item.get("type").map(|n| &n.value) {
                Some(Value::Int(number)) => u8::try_from(*number).ok(),
                Some(Value::Str(text)) => text.parse().ok().or_else(|| icmp_type(protocol, text)),
                _ => None,
            };
            let Some(number) = number.map(u16::from) else {
                self.invalid(
                    item.line,
                    format!("`{field}.type` is a number from 0 to 255, or a name such as EchoRequest"),
                );
                return None;
            };
            let port = PortMatch::Range { first: number, last: number };
            ports.push(PolicyPort { protocol, port, line: item.line });
        }
        Some(())
    }
}

/// Message types by the names that the custom resource definition takes (RFC 792, RFC 4443, RFC
/// 4861).
fn icmp_type(protocol: Protocol, name: &str) -> Option<u8> {
    let known: &[(&str, u8)] = if protocol == Protocol::ICMP {
        &[
            ("EchoReply", 0),
            ("DestinationUnreachable", 3),
            ("Redirect", 5),
            ("Echo", 8),
            ("EchoRequest", 8),
            ("RouterAdvertisement", 9),
            ("RouterSelection", 10),
            ("TimeExceeded", 11),
            ("ParameterProblem", 12),
            ("Timestamp", 13),
            ("TimestampReply", 14),
            ("Photuris", 40),
            ("ExtendedEchoRequest", 42),
            ("ExtendedEchoReply", 43),
        ]
    } else {
        &[
            ("DestinationUnreachable", 1),
            ("PacketTooBig", 2),
            ("TimeExceeded", 3),
            ("ParameterProblem", 4),
            ("EchoRequest", 128),
            ("EchoReply", 129),
            ("MulticastListenerQuery", 130),
            ("MulticastListenerReport", 131),
            ("MulticastListenerDone", 132),
            ("RouterSolicitation", 133),
            ("RouterAdvertisement", 134),
            ("NeighborSolicitation", 135),
            ("NeighborAdvertisement", 136),
            ("RedirectMessage", 137),
        ]
    };
    known.iter().find(|(n, _)| *n == name).map(|(_, number)| *number)
}
