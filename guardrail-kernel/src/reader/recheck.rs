//! The sockets that are open as an epoch begins, beside what FLOWS says is.
//!
//! An entry whose open connections had no socket in two complete lists is taken out: its end was
//! not seen. It goes as one that is idle does, through the journal, so neither the next sweep nor
//! the next agent has it again; should it end after all, that is found at its end. A socket that no
//! entry can have counted is put in, as at the start.

use std::time::{Duration, Instant};

use guardrail_common::{
    encode,
    flow::{FlowKey, FlowRole},
};
use tracing::warn;

use super::{Reader, State};
use crate::{
    clock, preflight,
    sockets::{self, FoundConnections, OpenSockets, backing::Backing, procfs},
    stats::{NO_SOCKET, NOT_COUNTED},
};

/// The longest that the sockets may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The times of opens are exact to a tick of the kernel's clock: at most 10 ms.
const TICK_NS: u64 = 100_000_000;

impl State {
    fn repaired(&mut self, reason: &'static str, connections: u64) {
        *self.published.open_repaired.entry(reason).or_default() += connections;
    }
}

impl Reader {
    /// Compares FLOWS with the sockets that are open.
    pub(super) fn recheck(&mut self) {
        let until = Instant::now() + PATIENCE;
        let begun = clock::boot_ns();
        let is_complete = match self.list_sockets(until) {
            Some(sockets) => {
                let is_complete = self.close_what_has_no_socket(&sockets.backing(), begun, until);
                self.add_what_is_not_counted(&sockets);
                is_complete
            }
            None => false,
        };
        *self.state.published.socket_lists.entry(is_complete).or_default() += 1;
    }

    /// Every socket of the node; `None`: not all of them could be read.
    fn list_sockets(&self, until: Instant) -> Option<OpenSockets> {
        if preflight::in_host_pid_namespace() != Some(true) {
            return None;
        }
        let listed = self.programs.as_ref()?.open_sockets()?.and_then(|list| sockets::read_until(list, until));
        match listed {
            Ok(sockets) => (sockets.broken == 0).then_some(sockets),
            Err(error) => {
                warn!("listing the open sockets failed: {error}");
                None
            }
        }
    }

    /// Gives whether all of FLOWS could be read.
    fn close_what_has_no_socket(&mut self, sockets: &Backing, begun: u64, until: Instant) -> bool {
        let mut unbacked = Vec::new();
        let (_, result) = self.maps.flows.entries(|key, value| {
            // What was opened while the sockets were listed may not be among them.
            let is_older = value.last_open.saturating_add(TICK_NS) < begun;
            if value.open_connections(key.protocol) > 0 && is_older && !sockets.holds(key) {
                unbacked.push((*key, *value));
            }
        });
        if let Err(error) = result {
            warn!("reading the FLOWS map failed: {error}");
            return false;
        }
        let again = self.state.suspects.listed(unbacked.iter().copied());
        let closed = procfs::without_socket(&self.cgroup_root, again, until);
        self.state.suspects.forget(&closed);
        for (key, value) in unbacked.iter().filter(|(key, _)| closed.contains(key)) {
            self.state.repaired(NO_SOCKET, value.open_connections(key.protocol));
            self.delete(key);
        }
        true
    }

    fn add_what_is_not_counted(&mut self, sockets: &OpenSockets) {
        let unknown: Vec<_> = sockets.connections.values().filter(|found| !self.may_be_counted(found)).collect();
        if unknown.is_empty() {
            return;
        }
        let before = self.state.undecided.len();
        self.state.undecided.extend(unknown.iter().map(|found| found.key).filter(FlowKey::is_undecided));
        if self.state.undecided.len() > before {
            // Before the entries: from now on the ends of connections are looked for among them.
            self.tell_undecided();
        }
        for found in unknown {
            if self.put_in(found, &found.value()) {
                self.state.repaired(NOT_COUNTED, found.count);
            }
        }
    }

    /// Whether an entry is there that may have counted one of these. It stays for a while after its
    /// last connection has ended.
    fn may_be_counted(&self, found: &FoundConnections) -> bool {
        let is_there = |key: &FlowKey| {
            let there = |key: &FlowKey| !matches!(self.maps.flows.get(&encode::key(key)), Ok(None));
            there(key) || there(&key.coarse())
        };
        let with = |both: &FlowKey| {
            let (remote_port, local_port) = (both.server_port, both.local_port);
            let client = FlowKey { role: FlowRole::Client as u8, local_port: 0, ..*both };
            let server = FlowKey { role: FlowRole::Server as u8, server_port: local_port, local_port: 0, ..*both };
            debug_assert!(both.is_undecided() && remote_port > 0);
            [client, server, *both]
        };
        // The parts of an MPTCP connection are counted, which have no descriptors.
        found.is_mptcp
            || is_there(&found.key)
            || found
                .if_ended
                .iter()
                .chain(found.key.is_undecided().then_some(&found.key))
                .flat_map(with)
                .any(|key| is_there(&key))
    }
}
