//! Endpoints of Services: the catalogue asks identity who they are, and whoever may have reached
//! one that is forgotten misses an edge.

use std::sync::Arc;

use super::{
    Observer,
    catalogue::{ForgottenEndpoint, Settle, Uses, users},
    identity::{RemoteEnd, Resolution},
    restore::Restored,
};
use crate::{inventory::Backend, observe::LossReason, peer::Peer, time::Timestamp};

impl Observer {
    /// Brings the endpoints of changed Services up to date.
    pub(super) fn settle_services(&mut self, now: Timestamp) {
        if !self.catalogue.has_changed_services() {
            return;
        }
        let Self { identity, catalogue, peers, texts, config, .. } = self;
        let settle = Settle {
            now,
            since: self.history.since(now),
            may_close: self.restored.as_ref().is_none_or(Restored::knows_endpoints),
        };
        let external = |backend: &Backend| Arc::new(Peer::External { address: backend.address.to_string() });
        let forgotten = catalogue.settle_services(
            settle,
            |inventory, backend| {
                if config.own_pods_only && backend.node.as_ref().is_some_and(|node| *node != config.node) {
                    // `merge` knows whose address it is.
                    return Some(external(backend));
                }
                if let Some((namespace, name)) = &backend.pod {
                    let record = identity.pod_by_name(namespace, name)?;
                    return (!record.provisional).then(|| peers.get(record.peer));
                }
                match identity.remote_peer(inventory, backend.address, now, true) {
                    Resolution::Known(RemoteEnd::Peer { peer, .. }) => Some(peers.get(peer)),
                    Resolution::Known(_) => Some(external(backend)),
                    Resolution::Wait | Resolution::Unresolved(_) => None,
                }
            },
            texts,
        );
        if !forgotten.is_empty() {
            let uses = self.graph.uses();
            self.count_forgotten(&uses, &forgotten);
        }
    }

    /// Forgets endpoints that ended before `before`, as far as no flow can refer to them.
    pub(super) fn forget_endpoints(&mut self, before: Timestamp) {
        let uses = self.graph.uses();
        let forgotten = self.catalogue.forget_endpoints(before, &uses);
        self.count_forgotten(&uses, &forgotten);
    }

    /// There was no room for endpoints that had ended. Whoever may have reached one misses an edge.
    fn count_forgotten(&mut self, uses: &Uses, forgotten: &[ForgottenEndpoint]) {
        for (service, port, backend, to) in forgotten {
            let mut clients = users(uses, service, port, backend, *to).peekable();
            if clients.peek().is_some() {
                self.ledger.count_loss(LossReason::GraphFull, 1);
            }
            for (client, first, _) in clients {
                self.ledger.incomplete_peer_since(*client, LossReason::GraphFull.as_str(), *first);
            }
        }
    }
}
