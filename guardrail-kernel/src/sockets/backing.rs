//! Which connections of FLOWS no socket stands behind.
//!
//! An entry counts a connection from its beginning to its end. Whose end no program saw stays open
//! there for ever, and would be evidence for ever. Whether a socket may be an entry's is answered
//! generously, by addresses and ports alone: what is taken for open too long is said too long, what
//! is taken for closed is lost.

use std::collections::HashMap;

use guardrail_common::{
    address::{Address, UNSPECIFIED},
    flow::{FlowKey, FlowRole, FlowValue},
};

/// Two ends of a connection, by the local one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ends {
    pub(crate) cgroup_id: u64,
    pub(crate) local: Address,
    pub(crate) remote: Address,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
}

/// Connections that are there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Backing(Vec<Ends>);

impl Backing {
    pub(crate) fn of(mut all: Vec<Ends>) -> Self {
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    /// Whether one of them may be counted in the entry of this key.
    pub(crate) fn holds(&self, key: &FlowKey) -> bool {
        let is_coarse = key.remote == UNSPECIFIED;
        let before = |ends: &Ends| {
            let here = (ends.cgroup_id, ends.local).cmp(&(key.cgroup_id, key.local));
            if is_coarse { here } else { here.then(ends.remote.cmp(&key.remote)) }
        };
        let from = self.0.partition_point(|ends| before(ends).is_lt());
        let of_key = self.0[from..].iter().take_while(|ends| before(ends).is_eq());
        let (is_server, is_client) = (key.role == FlowRole::Server as u8, key.role == FlowRole::Client as u8);
        if key.is_answer() && is_client {
            // Nothing of it leaves the pod, and its socket's ends are others.
            return true;
        }
        let mut ports = of_key.map(|ends| (ends.local_port, ends.remote_port));
        match key.local_port {
            // Beside the entry of what was dialled the proxy's own port says which socket it is.
            proxy @ 1.. if key.is_answer() => ports.any(|(local, _)| local == proxy),
            local_port @ 1.. => ports.any(|both| both == (local_port, key.server_port)),
            _ if is_server => ports.any(|(local, _)| local == key.server_port),
            _ => ports.any(|(_, remote)| remote == key.server_port),
        }
    }
}

/// What an entry had counted: as long as it is the same nothing began there, and nothing ended.
type Counted = (u64, u64, u64);

fn counted(value: &FlowValue) -> Counted {
    (value.first_open, value.opened.wrapping_add(value.found.into()), value.closed)
}

/// Entries with open connections behind which no socket stood when the sockets were last listed.
#[derive(Debug, Default)]
pub(crate) struct Suspects(HashMap<FlowKey, Counted>);

impl Suspects {
    /// Takes the entries behind which no socket stood in a complete list. Gives those that stood
    /// here before, and did not change since.
    pub(crate) fn listed(&mut self, unbacked: impl Iterator<Item = (FlowKey, FlowValue)>) -> Vec<FlowKey> {
        let before = std::mem::take(&mut self.0);
        self.0 = unbacked.map(|(key, value)| (key, counted(&value))).collect();
        self.0.iter().filter(|(key, now)| before.get(*key) == Some(*now)).map(|(key, _)| *key).collect()
    }

    /// These are settled.
    pub(crate) fn forget(&mut self, keys: &[FlowKey]) {
        self.0.retain(|key, _| !keys.contains(key));
    }
}

#[cfg(test)]
mod tests {
    use guardrail_common::flow::PROTOCOL_TCP;

    use super::*;

    const HERE: Address = [1; 16];
    const THERE: Address = [2; 16];

    fn key(role: FlowRole, server_port: u16, local_port: u16) -> FlowKey {
        FlowKey {
            cgroup_id: 7,
            local: HERE,
            remote: THERE,
            server_port,
            local_port,
            protocol: PROTOCOL_TCP,
            role: role as u8,
            pad: [0; 2],
        }
    }

    fn ends(local_port: u16, remote_port: u16) -> Ends {
        Ends { cgroup_id: 7, local: HERE, remote: THERE, local_port, remote_port }
    }

    #[test]
    fn a_socket_stands_behind_every_entry_that_may_have_counted_it_and_behind_no_other() {
        use FlowRole::{Client, Server, Undecided};
        let backing = Backing::of(vec![ends(40_000, 5432), Ends { remote: [3; 16], ..ends(8080, 50_000) }]);
        for (key, expected) in [
            (key(Client, 5432, 0), true),
            (key(Server, 40_000, 0), true),
            (key(Undecided, 5432, 40_000), true),
            (key(Client, 5433, 0), false),
            (key(Server, 5432, 0), false),
            (key(Undecided, 5432, 40_001), false),
            // The other one's remote is another.
            (key(Server, 8080, 0), false),
            (FlowKey { remote: [3; 16], ..key(Server, 8080, 0) }, true),
            (key(Server, 8080, 0).coarse(), true),
            (key(Client, 5432, 0).coarse(), true),
            (key(Server, 8081, 0).coarse(), false),
            (FlowKey { cgroup_id: 8, ..key(Client, 5432, 0) }, false),
            (FlowKey { local: [9; 16], ..key(Client, 5432, 0) }, false),
            // A proxy's: at its own port, and what a pod asked its proxy for.
            (key(Server, 80, 40_000), true),
            (key(Server, 80, 15_006), false),
            (key(Client, 80, 15_001), true),
        ] {
            assert_eq!(backing.holds(&key), expected, "{key:?}");
        }
        assert!(!Backing::default().holds(&key(Client, 5432, 0)));
    }

    #[test]
    fn what_was_missing_twice_is_settled_if_nothing_began_or_ended_in_between() {
        let quiet = key(FlowRole::Client, 1, 0);
        let busy = key(FlowRole::Client, 2, 0);
        let back = key(FlowRole::Client, 3, 0);
        let once = FlowValue { first_open: 5, opened: 2, closed: 1, ..FlowValue::default() };
        let mut suspects = Suspects::default();
        let all = [quiet, busy, back].map(|key| (key, once));
        assert!(suspects.listed(all.into_iter()).is_empty(), "once is not twice");
        let opened = FlowValue { opened: 3, closed: 2, ..once };
        assert_eq!(suspects.listed([(quiet, once), (busy, opened)].into_iter()), [quiet]);
        suspects.forget(&[quiet]);
        // What was seen in between begins anew.
        assert_eq!(suspects.listed([(quiet, once), (busy, opened), (back, once)].into_iter()), [busy]);
        let bytes = FlowValue { bytes_sent: 9, ..once };
        assert_eq!(suspects.listed([(back, bytes)].into_iter()), [back]);
        let anew = FlowValue { first_open: 6, ..once };
        assert!(suspects.listed([(back, anew)].into_iter()).is_empty(), "another life of the key");
    }
}
