//! Options of `guardrail export`, and what they name.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use guardrail_graph::Snapshot;
use guardrail_policy::generate::{Options, Phase, WorkloadPattern};
use ipnet::IpNet;

/// Options of `guardrail export`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Snapshots: files, `-` for stdin, or URLs of an agent (http://HOST:9464/v1/graph); several are merged
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

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them: namespace labels, nodes, pod ranges
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,

    /// Policies that exist already: a file or directory (repeatable)
    #[arg(long, value_name = "PATH")]
    policies: Vec<PathBuf>,

    /// Accept incomplete evidence and flows that no rule can allow; the files say so
    #[arg(long)]
    force: bool,

    /// Let edges whose backend was inferred support rules
    #[arg(long)]
    accept_inferred: bool,

    /// Also allow the Service's port, for networks that judge before address translation
    #[arg(long)]
    also_service_ports: bool,

    /// Flows of this client support no rule (repeatable)
    #[arg(long, value_name = "NS/WORKLOAD")]
    ignore_client: Vec<WorkloadPattern>,

    /// The address range behind an external name, for egress to it (repeatable)
    #[arg(long, value_name = "NAME=CIDR", value_parser = declared)]
    declare: Vec<(String, IpNet)>,
}

fn declared(text: &str) -> Result<(String, IpNet), String> {
    let (name, range) = text.split_once('=').ok_or_else(|| "write NAME=CIDR".to_owned())?;
    let range = range.parse().map_err(|_| format!("`{range}` is no CIDR"))?;
    Ok((name.to_ascii_lowercase(), range))
}

impl Args {
    /// Reads and merges the snapshots.
    pub(crate) fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let [one] = self.snapshots.as_slice() else { bail!("several snapshots cannot be merged yet") };
        let text = std::fs::read_to_string(one).with_context(|| format!("cannot read {one}"))?;
        serde_json::from_str(&text).with_context(|| format!("{one} is no snapshot"))
    }

    /// What the generator needs to know.
    pub(crate) fn options(&self) -> anyhow::Result<Options> {
        let mut options = Options::new(self.phase);
        options.egress = self.egress;
        options.namespaces.extend(self.namespaces.iter().cloned());
        options.accept_inferred = self.accept_inferred;
        options.also_service_ports = self.also_service_ports;
        options.ignore_clients.extend(self.ignore_client.iter().cloned());
        options.forced = self.force;
        for (name, range) in &self.declare {
            options.declared_ranges.entry(name.clone()).or_default().insert(*range);
        }
        Ok(options)
    }
}
