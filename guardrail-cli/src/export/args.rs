//! Options of `guardrail export`, and what they name.

use std::path::PathBuf;
use std::time::Duration;

use guardrail_graph::Snapshot;
use guardrail_policy::{
    evaluate::Cluster,
    generate::{FlowName, Options, Phase, WorkloadPattern},
    model::NetworkPolicy,
    read::Unevaluated,
    words,
};
use ipnet::IpNet;

use crate::input::{self, KubeArgs};

/// Options of `guardrail export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each policy is one file, NAMESPACE.NAME.yaml; kustomization.yaml lists them for `kubectl apply -k DIR`.
evidence.json and REPORT.md say what each rule rests on. A namespace whose evidence is incomplete, of
which an observed flow would be denied, or for which the proof fails, is stopped: its files stay as
they were, the others are written, and the exit code is 1 (2 if all are stopped). --force accepts
incomplete evidence and a short window, and nothing else.")]
pub(crate) struct Args {
    /// Snapshots: files, `-` for stdin, URLs of an agent (http://HOST:9464/v1/graph), or
    /// kube[:NAMESPACE] for all agents of a cluster; several are merged
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,

    /// How far to go: observe (a preview), constrain (namespace boundaries) or default-deny
    #[arg(long, value_name = "PHASE")]
    phase: Phase,

    /// Close egress too: DNS stays open, everything else must have been observed
    #[arg(long)]
    egress: bool,

    /// Only this namespace (repeatable)
    #[arg(short, long = "namespace", value_name = "NS")]
    namespaces: Vec<String>,

    /// Directory for the files; without it the policies go to stdout
    #[arg(short = 'd', long = "directory", value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them: nodes, pod ranges, namespace
    /// labels, and policies that are in force (repeatable)
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// Policies that are in force already: a file or directory (repeatable)
    #[arg(long, value_name = "PATH")]
    policies: Vec<PathBuf>,

    /// Accept incomplete evidence, a short window, and policies in force of kinds that are not
    /// evaluated; the files say so
    #[arg(long)]
    force: bool,

    /// Write rules for flows whose backend was inferred or whose client was masqueraded
    #[arg(long)]
    accept_inferred: bool,

    /// Leave this observed flow without a rule: CLIENT->SERVER:PORT/PROTOCOL, as the problem prints
    /// it (repeatable)
    #[arg(long, value_name = "FLOW")]
    accept: Vec<FlowName>,

    /// Also allow the Service's port, for networks that judge before address translation
    #[arg(long)]
    also_service_ports: bool,

    /// Flows of this client support no rule (repeatable)
    #[arg(long, value_name = "NS/WORKLOAD")]
    ignore_client: Vec<WorkloadPattern>,

    /// The address range behind an external name, for egress to it (repeatable)
    #[arg(long, value_name = "NAME=CIDR", value_parser = declared)]
    declare: Vec<(String, IpNet)>,

    /// A range of node addresses: it stands for every address of a node in it, in rules for
    /// host-network clients (repeatable)
    #[arg(long, value_name = "CIDR")]
    node_range: Vec<IpNet>,

    /// For how long all nodes of a namespace's workloads must have been observed at once, like 36h
    /// or 7d; by default 24h for default-deny, 1h for constrain and 0s for observe
    #[arg(long, value_name = "DURATION", value_parser = words::parse_duration)]
    min_window: Option<Duration>,

    #[command(flatten)]
    cluster: KubeArgs,
}

fn declared(text: &str) -> Result<(String, IpNet), String> {
    let (name, range) = text.split_once('=').ok_or_else(|| "write NAME=CIDR".to_owned())?;
    let range = range.parse().map_err(|_| format!("`{range}` is no CIDR"))?;
    Ok((name.to_ascii_lowercase(), range))
}

/// What the arguments name, read and checked.
pub(crate) struct Input {
    /// The merged snapshot.
    pub(crate) snapshot: Snapshot,
    /// What the generator needs to know.
    pub(crate) options: Options,
    /// Policies that are in force and that nobody evaluates: the proof says nothing of them.
    pub(crate) unevaluated: Vec<Unevaluated>,
}

impl Args {
    /// Reads everything that the arguments name.
    pub(crate) fn input(&self) -> anyhow::Result<Input> {
        let snapshot = input::snapshots(&self.snapshots, &self.cluster)?;
        let inventory = input::inventory(&self.inventory, false)?;
        let policies = input::policies(&self.policies)?;
        let mut options = Options::new(self.phase);
        options.egress = self.egress;
        options.namespaces.extend(self.namespaces.iter().cloned());
        options.accept_inferred = self.accept_inferred;
        options.accepted.extend(self.accept.iter().cloned());
        options.also_service_ports = self.also_service_ports;
        options.ignore_clients.extend(self.ignore_client.iter().cloned());
        options.min_window = self.min_window.unwrap_or_else(|| self.phase.min_window());
        options.forced = self.force;
        for (name, range) in &self.declare {
            options.declared_ranges.entry(name.clone()).or_default().insert(*range);
        }
        options.node_ranges.extend(&self.node_range);
        options.cluster = Cluster::from_objects(&inventory.objects);
        let mut unevaluated = inventory.policies.beside_network_policies();
        unevaluated.extend(policies.beside_network_policies());
        options.existing = joined(policies.policies, inventory.policies.policies)?;
        Ok(Input { snapshot, options, unevaluated })
    }
}

/// `--policies` and the inventory may hold the same policy; two different ones of one name are bad
/// input (docs/semantics.md A33).
fn joined(mut named: Vec<NetworkPolicy>, inventory: Vec<NetworkPolicy>) -> anyhow::Result<Vec<NetworkPolicy>> {
    for policy in inventory {
        match named.iter().find(|p| p.key() == policy.key()) {
            None => named.push(policy),
            Some(same) if same.same_spec(&policy) => {}
            Some(other) => {
                let place = |p: &NetworkPolicy| p.location.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
                anyhow::bail!(
                    "{}: policy {} differs from the one at {}; keep one of them",
                    place(&policy),
                    policy.key(),
                    place(other)
                );
            }
        }
    }
    Ok(named)
}
