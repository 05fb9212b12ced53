//! Figures of the kernel side.

use std::collections::BTreeMap;

use guardrail_graph::observe::LossReason;

/// What one program has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramStats {
    /// Runs (0 unless `kernel.bpf_stats_enabled=1`).
    pub runs: u64,
    /// Time spent in it, ns (0 unless `kernel.bpf_stats_enabled=1`).
    pub run_ns: u64,
    /// Runs that the kernel skipped because the program was already running on that CPU
    /// (`recursion_misses`, Linux ≥ 5.12).
    pub recursion_misses: u64,
}

/// Reason of a repair: a connection counted as open had no socket, and is not open any more.
pub(crate) const NO_SOCKET: &str = "no_socket";
/// Reason of a repair: an open socket was not counted, and is now.
pub(crate) const NOT_COUNTED: &str = "not_counted";

/// Figures of the kernel side, as of the last sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelStats {
    /// Live entries in the FLOWS map.
    pub map_entries: u64,
    /// Capacity of the FLOWS map.
    pub map_capacity: u64,
    /// Per program name.
    pub programs: BTreeMap<String, ProgramStats>,
    /// What was read, by kind: `flow_hint`, `flow_delta`, `cgroup_created`, `cgroup_removed`,
    /// `listen`, `dns_answer`, `socket_found`, `sweep`. Every kind exists from the start at 0.
    pub events: BTreeMap<&'static str, u64>,
    /// What was lost, by reason; every reason of [`LossReason::ALL`] that this side can meet exists
    /// from the start at 0. The same losses also travel as [`Observation::Lost`]: count them in one
    /// of the two places.
    pub losses: BTreeMap<LossReason, u64>,
    /// Connections whose being open was repaired as an epoch began, by reason: `no_socket` (their
    /// end had not been seen), `not_counted` (their beginning had not). Both exist from the start
    /// at 0.
    pub open_repaired: BTreeMap<&'static str, u64>,
    /// How often the open sockets were listed as an epoch began, by whether the list was complete.
    /// Both exist from the start at 0.
    pub socket_lists: BTreeMap<bool, u64>,
    /// How often the FLOWS map was read to its end.
    pub sweeps: u64,
}
