//! Joining flows with an end or role that nobody can name.

use std::{collections::BTreeMap, sync::Arc};

use super::Facts;
use crate::{
    snapshot::{Interval, UnresolvedEntry, UnresolvedFlow, intervals::hull, unresolved::Unresolved},
    unresolved::UnresolvedReason,
};

impl Facts {
    /// Joins unresolved flows but for those that follow from other facts.
    pub(in crate::snapshot) fn add_unresolved(&mut self, entries: Vec<UnresolvedEntry>) {
        let derived = UnresolvedReason::DERIVED.map(UnresolvedReason::as_str);
        for entry in entries.into_iter().filter(|u| u.count > 0 && !derived.contains(&u.reason.as_str())) {
            let UnresolvedEntry { source, reason, count, examples, flows, more } = entry;
            let flows = flows.map(|flows| {
                let mut all = BTreeMap::new();
                for UnresolvedFlow { client, server, protocol, port, time } in flows {
                    let ends = (self.peers.intern(client), self.peers.intern(server), protocol, port);
                    let time = Interval { from: time.first_seen, to: time.last_seen };
                    let joined: &mut Interval = all.entry(ends).or_insert(time);
                    *joined = hull([*joined, time]);
                }
                all
            });
            let key = (Arc::new(source), reason);
            let is_new = !self.unresolved.contains_key(&key);
            let known = self.unresolved.entry(key).or_default();
            known.join(Unresolved { count, examples, flows, more }, is_new);
        }
    }
}
