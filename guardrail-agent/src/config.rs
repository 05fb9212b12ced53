//! The agent's command line and environment, validated into a [`Config`] before any IO. Nothing
//! else reads the environment.

use std::{net::SocketAddr, num::NonZeroU64, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use guardrail_graph::snapshot::LabelSelector;
use guardrail_kernel::BpfLogLevel;

/// Watches pod connections in the kernel, names both ends, and serves the observed dependency
/// graph.
///
/// It enforces nothing. Exit codes: 0 fine, 2 it could not start (one sentence says why).
#[derive(Clone, Debug, Parser)]
#[command(name = "guardrail-agent", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Config {
    /// Something else than observing.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The cluster's objects: `kube` watches the API server (the default inside a cluster); else a
    /// file as `kubectl get … -A -o yaml` (or json) prints it, read again when it changes.
    #[arg(
        long,
        env = "GUARDRAIL_INVENTORY",
        value_name = "kube|FILE",
        default_value_if("in_cluster", clap::builder::ArgPredicate::IsPresent, "kube"),
        required_unless_present = "in_cluster"
    )]
    pub inventory: Option<InventorySource>,

    /// Set by Kubernetes in every pod: where the API server is.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true)]
    pub in_cluster: Option<String>,

    /// Where the API server is, and as whom [default: KUBECONFIG, else the pod's service account].
    #[arg(long, env = "GUARDRAIL_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// With `--inventory kube`, watch all pods, or only those of this node: for thousands of nodes;
    /// `guardrail merge` names remote ends.
    #[arg(long, env = "GUARDRAIL_INVENTORY_SCOPE", value_enum, default_value_t)]
    pub inventory_scope: Scope,

    /// Nodes with these labels cannot have an agent, beside those of another operating system, of
    /// virtual kubelets and of Fargate: nobody waits for what runs there (repeatable, as in
    /// `kubectl get -l`).
    #[arg(long, env = "GUARDRAIL_UNOBSERVABLE_NODES", value_name = "SELECTOR")]
    pub unobservable_nodes: Vec<LabelSelector>,

    /// Watch the cgroups below this directory [default: the root of the cgroup v2 mount].
    #[arg(long, env = "GUARDRAIL_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// Address of /metrics, /healthz, /readyz and /v1/graph. They name every service in the
    /// cluster: think before you open it.
    #[arg(long, env = "GUARDRAIL_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:9464")]
    pub listen: SocketAddr,

    /// A second, loopback address of the same, without authentication: what `kubectl port-forward`
    /// reaches.
    #[arg(long, env = "GUARDRAIL_LOCAL_LISTEN", value_name = "ADDR:PORT", value_parser = loopback)]
    pub local_listen: Option<SocketAddr>,

    /// Who may read /metrics and /v1/graph: `kube` asks the API server (TokenReview,
    /// SubjectAccessReview) and speaks TLS only.
    #[arg(long, env = "GUARDRAIL_AUTH", value_enum, default_value_t = AuthMode::None)]
    pub auth: AuthMode,

    /// With `--auth kube`, take only tokens issued for this audience [default: those for the API
    /// server itself].
    #[arg(long, env = "GUARDRAIL_AUTH_AUDIENCE", value_name = "AUDIENCE")]
    pub auth_audience: Option<String>,

    /// With `--auth kube`, speak plain HTTP: tokens can then be read on the way.
    #[arg(long, env = "GUARDRAIL_AUTH_INSECURE")]
    pub auth_insecure: bool,

    /// PEM file with the certificate chain of --listen; read again when it changes [default with
    /// `--auth kube`: made at start].
    #[arg(long, env = "GUARDRAIL_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with its private key.
    #[arg(long, env = "GUARDRAIL_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Write allow-lists (NetworkPolicy files, phase default-deny) here.
    #[arg(long, env = "GUARDRAIL_EXPORT_DIR", value_name = "DIR")]
    pub export_dir: Option<PathBuf>,

    /// Seconds between two exports, if something changed.
    #[arg(long, env = "GUARDRAIL_EXPORT_INTERVAL", value_name = "SECONDS", default_value = "30")]
    pub export_interval: Seconds,

    /// Keep the observed graph here over restarts.
    #[arg(long, env = "GUARDRAIL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Seconds between two writes of the state: what a crash may cost of it, unless --pin keeps it.
    #[arg(long, env = "GUARDRAIL_STATE_INTERVAL", value_name = "SECONDS", default_value = "60")]
    pub state_interval: Seconds,

    /// Keep closed epochs (days) of the graph for so long in --state-dir, at least 1d. Counted from
    /// the newest day that was reached by running, so that a clock that was set takes nothing
    /// along.
    #[arg(long, env = "GUARDRAIL_RETENTION", value_name = "DURATION", default_value = "30d",
          value_parser = retention)]
    pub retention: Duration,

    /// Keep maps and programs below this directory of a BPF file system (as /sys/fs/bpf/guardrail):
    /// the kernel counts on while no agent is there, and the next one goes on without a gap. Needs
    /// --state-dir. `guardrail-agent unpin` removes them.
    #[arg(long, env = "GUARDRAIL_PIN", value_name = "DIR", requires = "state_dir")]
    pub pin: Option<PathBuf>,

    /// Observe UDP (and DNS answers, for the names of external peers). Off leaves out the only
    /// programs that run per packet.
    #[arg(long, env = "GUARDRAIL_UDP", value_enum, default_value_t = Switch::On)]
    pub udp: Switch,

    /// See which port connections dialled that are redirected to a proxy in their pod (service
    /// meshes). Attached when a pod listens on 15001, 15006, 4140, 4143 or 20000; from then on each
    /// getsockopt of the node costs 0.2 to 0.4 µs more.
    #[arg(long, env = "GUARDRAIL_REDIRECTS", value_enum, default_value_t = Redirects::Auto)]
    pub redirects: Redirects,

    /// Name of this node, as in the cluster [default: the host name].
    #[arg(long, env = "GUARDRAIL_NODE", value_name = "NAME")]
    pub node: Option<String>,

    /// Size of the ring that announces new edges, in bytes: a power of two, at least 4096. A full
    /// ring loses nothing, the sweep finds the edge.
    #[arg(long, env = "GUARDRAIL_RING_BYTES", value_name = "N", default_value = "262144", value_parser = ring_bytes)]
    pub ring_bytes: u32,

    /// Entries of the kernel's flow map.
    #[arg(long, env = "GUARDRAIL_FLOW_ENTRIES", value_name = "N", default_value = "65536",
          value_parser = clap::value_parser!(u32).range(64..=16_777_216))]
    pub flow_entries: u32,

    /// Flow map entries that one cgroup may hold before its remote addresses are merged into "many
    /// peers".
    #[arg(long, env = "GUARDRAIL_NEW_KEYS_PER_CGROUP", value_name = "N", default_value = "8192",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub new_keys_per_cgroup: u32,

    /// Edges that get their own time series in /metrics; the rest is summed under `other`.
    #[arg(long, env = "GUARDRAIL_METRICS_MAX_EDGES", value_name = "N", default_value = "2000")]
    pub metrics_max_edges: usize,

    /// Diagnosis messages of the kernel programs. Costs nothing when off.
    #[arg(long, env = "GUARDRAIL_BPF_LOG_LEVEL", value_name = "off|error|warn|info|debug", default_value_t)]
    pub bpf_log_level: BpfLogLevel,

    /// The agent's own messages on stderr, as in `info` or
    /// `guardrail_agent=debug,guardrail_kernel=debug`. The API client's are left out: they repeat
    /// each failure.
    #[arg(long, env = "GUARDRAIL_LOG", value_name = "FILTER", default_value = "info,kube_client=off")]
    pub log: String,

    /// Stop after this many seconds, as if asked by SIGTERM.
    #[arg(long, env = "GUARDRAIL_DURATION", value_name = "SECONDS")]
    pub duration: Option<Seconds>,
}

/// What the agent does instead of observing.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Detach and remove what agents with --pin left in the kernel. Refuses while one runs.
    Unpin {
        /// The directory that --pin named.
        #[arg(env = "GUARDRAIL_PIN", default_value = "/sys/fs/bpf/guardrail")]
        dir: PathBuf,
    },
}

/// Where the cluster's objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InventorySource {
    /// The live API server.
    Kube,
    /// A file.
    File(PathBuf),
}

impl FromStr for InventorySource {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "" => Err("it is empty; give the file that `kubectl get … -A -o yaml` wrote".to_owned()),
            "kube" => Ok(Self::Kube),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// Whose pods are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// Every pod and everything that names it.
    #[default]
    Cluster,
    /// Only the pods of this node: for clusters of thousands of nodes. `guardrail merge` gives
    /// remote ends their names.
    Node,
}

/// Who may read what names services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// Everybody who reaches the address.
    None,
    /// Whom the API server permits.
    Kube,
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Whether it is seen what redirected connections dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Redirects {
    /// Once a proxy listens.
    Auto,
    /// Never.
    Off,
}

/// A whole number of seconds, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(NonZeroU64);

impl Seconds {
    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.get())
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self).map_err(|_| "give a whole number of seconds, at least 1".to_owned())
    }
}

/// Less than a day would keep no epoch.
fn retention(s: &str) -> Result<Duration, String> {
    let retention = guardrail_policy::words::parse_duration(s)?;
    if retention < Duration::from_secs(86_400) { Err("give at least 1d".to_owned()) } else { Ok(retention) }
}

/// Without authentication, an address that only this machine (or pod) reaches.
fn loopback(s: &str) -> Result<SocketAddr, String> {
    match s.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        _ => Err("give a loopback address and a port, like 127.0.0.1:9465".to_owned()),
    }
}

/// `BPF_MAP_TYPE_RINGBUF` takes a power of two that is a multiple of the page size.
fn ring_bytes(s: &str) -> Result<u32, String> {
    match s.parse::<u32>() {
        Ok(n) if n.is_power_of_two() && (4096..=1 << 30).contains(&n) => Ok(n),
        _ => Err("give a power of two from 4096 to 1073741824".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Config::command().debug_assert();
    }

    #[test]
    fn inside_a_cluster_the_api_server_is_the_inventory_unless_a_file_is_given() {
        let inventory = |args: &[&str]| Config::try_parse_from(args).map(|c| c.inventory);
        assert!(inventory(&["a"]).is_err(), "outside somebody must say");
        let kube = Some(InventorySource::Kube);
        assert_eq!(inventory(&["a", "--inventory", "kube"]).unwrap(), kube);
        assert_eq!(inventory(&["a", "--in-cluster", "10.96.0.1"]).unwrap(), kube);
        let file = Some(InventorySource::File("f.yaml".into()));
        assert_eq!(inventory(&["a", "--in-cluster", "10.96.0.1", "--inventory", "f.yaml"]).unwrap(), file);
    }

    #[test]
    fn pins_need_a_state_and_unpin_needs_nothing() {
        let parse = |args: &[&str]| Config::try_parse_from(args);
        assert!(parse(&["a", "--inventory", "f.yaml", "--pin", "/sys/fs/bpf/g"]).is_err());
        let pin = parse(&["a", "--inventory", "f.yaml", "--pin", "/sys/fs/bpf/g", "--state-dir", "s"]).unwrap().pin;
        assert_eq!(pin, Some("/sys/fs/bpf/g".into()));
        let unpin = |dir: &str| Some(Command::Unpin { dir: dir.into() });
        assert_eq!(parse(&["a", "unpin"]).unwrap().command, unpin("/sys/fs/bpf/guardrail"));
        assert_eq!(parse(&["a", "unpin", "/x"]).unwrap().command, unpin("/x"));
    }

    #[test]
    fn a_ring_size_that_the_kernel_would_refuse_is_refused_first() {
        for bad in ["0", "4095", "5000", "12288", "-1", "4k", "2147483648"] {
            assert!(ring_bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(ring_bytes("4096"), Ok(4096));
    }
}
