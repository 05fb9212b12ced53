//! DNS names that clients asked for, bounded.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::table::PeerId;

/// Names kept for one address of one client.
const MAX_NAMES_PER_ADDRESS: usize = 8;

/// `(client, address)` → names; the oldest entries go first.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: HashMap<(PeerId, IpAddr), Vec<Arc<str>>>,
    order: VecDeque<(PeerId, IpAddr)>,
}

impl Names {
    pub(super) fn learn(&mut self, client: PeerId, address: IpAddr, name: &Arc<str>, max: usize) {
        let known = self.names.entry((client, address)).or_insert_with(|| {
            self.order.push_back((client, address));
            Vec::new()
        });
        if !known.contains(name) && known.len() < MAX_NAMES_PER_ADDRESS {
            known.push(Arc::clone(name));
        }
        while self.names.len() > max
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    pub(super) fn of(&self, client: PeerId, address: IpAddr) -> &[Arc<str>] {
        self.names.get(&(client, address)).map_or(&[], Vec::as_slice)
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }
}
