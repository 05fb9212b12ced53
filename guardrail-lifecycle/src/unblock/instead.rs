//! A connection that no policy denies and that fails all the same: what was seen of it, and where
//! to look.

use guardrail_graph::{
    Protocol, Snapshot,
    snapshot::{EdgeRecord, Side},
};

use crate::plan::{ExceptionEnd, PlanPort};

/// What was seen of the connection: sentences without a full stop, what matters first.
#[must_use]
pub fn instead(snapshot: &Snapshot, from: &ExceptionEnd, to: &ExceptionEnd, port: PlanPort) -> Vec<String> {
    let at_port: Vec<&EdgeRecord> = snapshot
        .body
        .edges
        .iter()
        .filter(|edge| edge.port == port.port && edge.protocol == port.protocol && to.is(&edge.server.peer))
        .collect();
    let (own, others): (Vec<&EdgeRecord>, Vec<&EdgeRecord>) =
        at_port.into_iter().partition(|edge| from.is(&edge.client.peer));
    let through = own.iter().chain(&others).filter(|edge| edge.supported).count();
    let Some(edge) = own.iter().max_by_key(|edge| edge.last_seen) else {
        let others = match through {
            0 => "nobody was seen to get through there",
            _ => "others get through there",
        };
        return vec![format!(
            "no attempt was observed: the client may not try, or ask for another name or port; {others}"
        )];
    };
    let mut told = Vec::new();
    let counts = edge.counts;
    let last = edge.last_seen;
    if counts.unanswered > 0 || port.protocol == Protocol::Udp && counts.bytes_received == 0 {
        let arrived = edge.sources.iter().any(|source| source.side == Side::Server);
        let sent = counts.unanswered.max(if port.protocol == Protocol::Udp { counts.opened } else { 0 });
        told.push(if arrived {
            format!("{sent} attempts were not answered (the last at {last}), and some arrived: look at the server itself")
        } else {
            format!(
                "{sent} attempts were not answered (the last at {last}), and none arrived: look at what lies between the nodes (a firewall, security groups, routes, a service mesh)"
            )
        });
    }
    if counts.refused > 0 {
        told.push(match through {
            0 => format!("{} attempts were refused (the last at {last}): nobody listens at {port} of {to}", counts.refused),
            _ => format!(
                "{} attempts were refused (the last at {last}), and connections come about there, too: not every pod of {to} listens at {port}, or not all the time",
                counts.refused
            ),
        });
    }
    if counts.unreachable > 0 {
        told.push(format!(
            "{} attempts found no way there (the last at {last}): look at routes and at the node's firewall",
            counts.unreachable
        ));
    }
    if edge.supported {
        told.push(format!("connections come about, the last one seen at {last}"));
    }
    told
}
