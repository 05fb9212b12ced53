//! What to load, and with which bounds.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

/// How much the programs write through aya-log. A load-time constant: what is off is removed by the
/// verifier and costs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum BpfLogLevel {
    /// Nothing; the log ring is not even read.
    #[default]
    Off,
    /// What should never happen.
    Error,
    /// And what is lost.
    Warn,
    /// And new keys.
    Info,
    /// And every TCP state change that counts.
    Debug,
}

impl BpfLogLevel {
    /// Every level, as written on the command line.
    pub const NAMES: [&'static str; 5] = ["off", "error", "warn", "info", "debug"];
}

impl fmt::Display for BpfLogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize])
    }
}

impl FromStr for BpfLogLevel {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            _ => Err(format!("'{s}' is no log level: use one of {}", Self::NAMES.join(", "))),
        }
    }
}

/// What to load, and with which bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// The cgroup v2 directory whose subtree is observed: the mount point ([`find_cgroup2_root`]),
    /// or a directory below it. Everything else belongs to somebody else and is ignored in the
    /// kernel: two agents with disjoint subtrees on one machine see nothing of each other. Paths of
    /// cgroups begin at the hierarchy's root all the same.
    pub cgroup_root: PathBuf,
    /// Observe UDP and DNS answers (per-packet hooks). Off: nothing runs per packet.
    pub udp: bool,
    /// See what redirected connections dialled, from when a proxy listens on the node
    /// ([`guardrail_graph::observe::PROXY_PORTS`]): then each getsockopt of the node costs a
    /// little more. Off: that is never attached.
    pub redirects: bool,
    /// Size of the ring for new-flow hints, bytes. Rounded up to a power of two of at least one
    /// page.
    pub ring_bytes: u32,
    /// Entries of the FLOWS map (preallocated kernel memory, 192 bytes each).
    pub flow_entries: u32,
    /// Live keys that one cgroup may have before new ones become the coarse key with many remotes.
    pub new_keys_per_cgroup: u32,
    /// Log level of the programs.
    pub bpf_log_level: BpfLogLevel,
    /// Time between two sweeps of the FLOWS map.
    pub sweep_interval: Duration,
    /// A FLOWS entry without open connections that gained nothing for this long is folded and
    /// deleted.
    pub idle: Duration,
    /// Batches that the channel to the observer holds before the reader waits: each of at most
    /// 1,024 observations and 64 KiB of text (paths, DNS names).
    pub channel_batches: usize,
}

/// The default of [`KernelConfig::channel_batches`].
pub(crate) const CHANNEL_BATCHES: usize = 64;

impl KernelConfig {
    /// The defaults, for this cgroup v2 root.
    #[must_use]
    pub fn new(cgroup_root: PathBuf) -> Self {
        Self {
            cgroup_root,
            udp: true,
            redirects: true,
            ring_bytes: 256 * 1024,
            flow_entries: 65_536,
            new_keys_per_cgroup: 4_096,
            bpf_log_level: BpfLogLevel::Off,
            sweep_interval: Duration::from_secs(2),
            idle: Duration::from_secs(120),
            channel_batches: CHANNEL_BATCHES,
        }
    }
}
