//! What is different: between two observed graphs ([`graphs`]), and for observed flows between two
//! sets of policies ([`touched`]). Which connections two sets of policies judge differently,
//! observed or not, is [`guardrail_policy::evaluate::difference`].

mod flows;
mod graphs;

use guardrail_graph::{Peer, snapshot::EdgePeer};

pub use flows::{Touched, TouchedFlow, touched};
pub use graphs::{ChangedEdge, GraphDiff, NamespaceMap, SeenEdge, State, graphs};

/// An end as people read it: `NS/KIND/NAME`, `node/NAME`, a DNS name or an address, `external` for
/// many addresses.
fn name(peer: &EdgePeer) -> String {
    match &*peer.peer {
        Peer::External { address } => match peer.names.first() {
            Some(name) => name.clone(),
            None => external(address),
        },
        named => named.to_string(),
    }
}

fn external(address: &str) -> String {
    if address == Peer::MANY { "external".to_owned() } else { address.to_owned() }
}
