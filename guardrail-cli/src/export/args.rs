//! Options of `guardrail export`, and what they name.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use guardrail_graph::Snapshot;
use guardrail_lifecycle::export as lifecycle;
use guardrail_policy::{
    emit::namespace_of_file,
    evaluate::{Cluster, Dataplane, Enforcement, Evaluator},
    generate::{Accepted, Format, MIN_COVERAGE, Options, Phase, WorkloadPattern, asks_who_counted},
    model::{Location, NetworkPolicy, tier::TierPolicy},
    read::{PolicySet, Unevaluated},
    words,
};
use ipnet::IpNet;

use super::earlier;
use crate::{
    dataplane::{DataplaneArgs, formats, not_enforced, refusals},
    export::write,
    input::{self, Inventory, KubeArgs, SpanArgs, tell},
    plan::{PlanArgs, Planned},
    policies::refused,
};

/// Options of `guardrail export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each policy is one file, NAMESPACE.NAME.yaml; kustomization.yaml lists them for `kubectl apply -k DIR`.
evidence.json and REPORT.md say what each rule rests on. What the evidence.json in DIR says was
allowed stays allowed, also if the snapshots do not show it any more. A namespace whose evidence is incomplete, of
which an observed flow would be denied, or for which the proof fails, is stopped: its files stay as
they were, the others are written, and the exit code is 1 (2 if all are stopped). --force accepts
incomplete evidence and a short window, and nothing else. With --plan, each namespace goes where the
plan wants it, if its gates let it; namespaces at observe lose their files, but for sensitive
workloads, which are closed everywhere. Where Cilium is the data plane, a namespace
whose flows no NetworkPolicy can allow there (those with nodes) is stopped: --format cilium can.")]
pub(crate) struct Args {
    /// Snapshots: files, `-` for stdin, URLs of an agent (http://HOST:9464/v1/graph), or
    /// kube[:NAMESPACE] for all agents of a cluster; several are merged
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,

    /// How far to go: observe (a preview), constrain (namespace boundaries) or default-deny; with
    /// --plan, each namespace goes as far as the plan says
    #[arg(long, value_name = "PHASE", required_unless_present_any = ["plan", "environment"], conflicts_with = "plan")]
    phase: Option<Phase>,

    #[command(flatten)]
    pub(crate) plan: PlanArgs,

    /// What to write: networkpolicy; or cilium, which is CiliumNetworkPolicy: nodes and the API
    /// server by entity, external servers by the name that was asked for
    #[arg(long, value_name = "FORMAT", default_value_t, value_parser = formats())]
    format: Format,

    /// Close egress too: DNS stays open, everything else must have been observed
    #[arg(long, conflicts_with = "plan")]
    egress: bool,

    /// Only this namespace (repeatable); with --plan the files of all others stay as they are
    #[arg(short, long = "namespace", value_name = "NS")]
    namespaces: Vec<String>,

    /// Directory for the files; without it the policies go to stdout
    #[arg(short = 'd', long = "directory", value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,

    /// Kubernetes objects as `kubectl get … -A -o yaml` prints them: nodes, pod ranges, namespace
    /// labels, and policies that are in force; or kube (repeatable)
    #[arg(long, value_name = "FILE")]
    inventory: Vec<PathBuf>,

    /// Policies that are in force already: a file, a directory, or kube (repeatable)
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
    /// it; or write the policy of this workload although it did not run: NS/KIND/NAME (repeatable)
    #[arg(long, value_name = "FLOW")]
    accept: Vec<Accepted>,

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
    #[arg(long, value_name = "CIDR", value_parser = range)]
    node_range: Vec<IpNet>,

    /// A range of the control plane's addresses: pods that call the API server may reach it, and it
    /// may call the pods that the API server calls, like webhooks (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = range)]
    control_plane_range: Vec<IpNet>,

    /// Write no rule for what was last seen so long before the end of the window, like 90d, and
    /// forget what an earlier export in DIR allowed and nobody used for so long; without it, what
    /// was allowed stays allowed until one of its ends is gone
    #[arg(long, value_name = "DURATION", value_parser = words::parse_duration)]
    drop_unused: Option<Duration>,

    /// For how long all nodes of a namespace's workloads must have been observed at once, like 36h
    /// or 7d; by default 24h for default-deny, 1h for constrain and 0s for observe
    #[arg(long, value_name = "DURATION", value_parser = words::parse_duration, conflicts_with = "plan")]
    min_window: Option<Duration>,

    /// How much of the time in which each workload's pods ran must have been observed, like 99.5;
    /// 99.9 by default. Of pods that started, the first minute of three, or of all, must have been
    #[arg(long, value_name = "PERCENT", value_parser = percentage, conflicts_with = "plan")]
    min_coverage: Option<f64>,

    #[command(flatten)]
    dataplane: DataplaneArgs,

    #[command(flatten)]
    cluster: KubeArgs,

    #[command(flatten)]
    span: SpanArgs,
}

fn percentage(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| format!("`{text}` is no percentage: write a number from 0 to 100, like 99.9"))
}

fn declared(text: &str) -> Result<(String, IpNet), String> {
    let (name, cidr) =
        text.split_once('=').ok_or_else(|| "write NAME=CIDR, like smtp.example.org=192.0.2.0/24".to_owned())?;
    Ok((name.to_ascii_lowercase(), range(cidr)?))
}

fn range(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| format!("`{text}` is no CIDR; write it like 192.0.2.0/24"))
}

/// What the arguments name, read and checked.
pub(crate) struct Input {
    /// The merged snapshot.
    pub(crate) snapshot: Snapshot,
    /// What the generator needs to know.
    pub(crate) options: Options,
    /// Policies that are in force and that nobody evaluates: the proof says nothing of them.
    pub(crate) unevaluated: Vec<Unevaluated>,
    /// The plan, if one says how far each namespace goes.
    pub(crate) planned: Option<Planned>,
    /// Whether each sensitive workload that the plan names is there.
    pub(crate) sensitive_are_known: bool,
}

impl Args {
    /// Reads everything that the arguments name.
    pub(crate) fn input(&self) -> anyhow::Result<Input> {
        let mut asked = self.cluster.clone();
        let planned = self.plan.read(&mut asked)?;
        let mut snapshot = input::snapshots(&self.snapshots, &asked, &self.span)?;
        // A third of what the edges of a large graph take.
        for edge in snapshot.body.edges.iter_mut().filter(|edge| !asks_who_counted(edge)) {
            edge.sources = Vec::new();
        }
        if planned.is_some() {
            self.namespaces_are_known(&snapshot)?;
        }
        let mut policies = input::policies(&self.policies, &asked)?;
        if let (Some(planned), Some(directory)) = (&planned, &self.directory) {
            planned.renewals_are_explained(&write::exceptions(directory)?, asked.now())?;
            // A namespace that is not ready keeps its files, so they are in force beside the new.
            let own = input::policies(&write::policy_files(directory)?, &asked)?;
            let named = |key: &str| policies.policies.iter().any(|policy| policy.key() == key);
            let more: Vec<NetworkPolicy> = own.policies.into_iter().filter(|policy| !named(&policy.key())).collect();
            policies.policies.extend(more);
            let named = |key: &str| policies.forms.iter().any(|form| form.key() == key);
            let more: Vec<TierPolicy> = own.forms.into_iter().filter(|form| !named(&form.key())).collect();
            policies.forms.extend(more);
        }
        let facts = self.format == Format::Cilium || self.dataplane.wants_facts(&policies);
        let mut inventory = input::inventory(&self.inventory, &asked, facts)?;
        let mut options = Options::new(self.phase.unwrap_or(Phase::Observe));
        options.format = self.format;
        let egress = match &planned {
            Some(planned) => planned.environment()?.closes_egress(),
            None => self.egress,
        };
        options.dataplane = self.enforcer(&policies, &inventory, egress)?;
        options.egress = self.egress;
        options.accept_inferred = self.accept_inferred;
        for accepted in &self.accept {
            match accepted.clone() {
                Accepted::Flow(flow) => _ = options.accepted.insert(flow),
                Accepted::Workload(workload) => _ = options.accepted_workloads.insert(workload),
            }
        }
        options.also_service_ports = self.also_service_ports;
        options.ignore_clients.extend(self.ignore_client.iter().cloned());
        options.min_window = self.min_window.unwrap_or_else(|| options.phase.min_window());
        options.min_coverage = self.min_coverage.unwrap_or(MIN_COVERAGE);
        options.forced = self.force;
        options.drop_unused = self.drop_unused;
        let others = self.policies.iter().map(PathBuf::as_path);
        options.memory = earlier::memory(self.directory.as_deref(), others, &snapshot)?;
        options.listed = earlier::listed(&inventory.objects);
        for (name, range) in &self.declare {
            options.declared_ranges.entry(name.clone()).or_default().insert(*range);
        }
        options.node_ranges.extend(&self.node_range);
        options.control_plane_ranges.extend(&self.control_plane_range);
        let unknown = refused(&mut inventory.policies, &options.enforcer());
        let mut unevaluated: Vec<Unevaluated> = unknown.iter().map(Unevaluated::from).collect();
        // What Cilium may refuse stands there for somebody else, if Cilium is not the data plane.
        unevaluated.extend(inventory.policies.refused.iter().map(Unevaluated::from));
        unevaluated.append(&mut inventory.policies.unevaluated);
        unevaluated.append(&mut policies.unevaluated);
        options.existing = joined(policies.policies, inventory.policies.policies, NetworkPolicy::key)?;
        options.existing_forms = joined(policies.forms, inventory.policies.forms, TierPolicy::key)?;
        let mut facts = inventory.policies.facts;
        facts.cidr_groups.append(&mut policies.facts.cidr_groups);
        let cluster = Cluster::from_objects(&inventory.objects).with_facts(&facts);
        options.cluster = self.dataplane.with_names(cluster)?;
        unevaluated.extend(set_aside(&snapshot, &mut options));
        let mut sensitive_are_known = true;
        if let Some(planned) = &planned {
            let now = self.cluster.now();
            sensitive_are_known = planned.sensitive_are_known(&snapshot, &options.cluster)?;
            planned.warn_of_unknown(&snapshot, &options.cluster);
            lifecycle::declare(&mut options, &planned.plan, now);
            lifecycle::aim(&mut options, &snapshot, planned.environment()?);
            lifecycle::open(&mut options, &planned.plan, &planned.name, now);
        }
        // After the goals, which every namespace of the environment has.
        options.namespaces.extend(self.namespaces.iter().cloned());
        // The plan may say it, too.
        options.forget_before = options.drop_unused.map(|unused| self.cluster.now().before(unused));
        unevaluated.sort();
        unevaluated.dedup();
        Ok(Input { snapshot, options, unevaluated, planned, sensitive_are_known })
    }

    /// Refuses a namespace that was asked for and of which there is neither a workload nor a file.
    fn namespaces_are_known(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let earlier = self.directory.as_deref().map(write::earlier).transpose()?.unwrap_or_default();
        let seen = snapshot.body.workloads.iter().map(|entry| entry.workload.namespace.as_str());
        let known: BTreeSet<&str> = seen.chain(earlier.iter().filter_map(|name| namespace_of_file(name))).collect();
        let Some(unknown) = self.namespaces.iter().find(|namespace| !known.contains(namespace.as_str())) else {
            return Ok(());
        };
        let nearest = words::did_you_mean(unknown, known.iter().copied());
        bail!("-n {unknown}: neither the snapshots nor the directory have anything of this namespace{nearest}")
    }

    /// The data plane that the export is proven for.
    fn enforcer(&self, policies: &PolicySet, inventory: &Inventory, egress: bool) -> anyhow::Result<Dataplane> {
        let enforcer = match self.format {
            Format::Cilium => self.dataplane.cilium(inventory)?,
            Format::NetworkPolicy => self.dataplane.find(policies, inventory)?,
        };
        let refusals: Vec<String> = policies.forms.iter().flat_map(|form| refusals(form, &enforcer)).collect();
        if !refusals.is_empty() {
            bail!("{}", refusals.join("\n"));
        }
        if self.format == Format::Cilium && self.also_service_ports {
            bail!(
                "--also-service-ports is for networks that judge before address translation, and Cilium judges at the pod's port"
            );
        }
        match enforcer.cilium().map(|cilium| cilium.enforcement) {
            Some(Enforcement::Always) if !egress => {
                bail!(
                    "Cilium's option enable-policy is always, which closes every pod in both directions: export with --egress"
                );
            }
            Some(Enforcement::Never) => {
                tell("warning", &"Cilium's option enable-policy is never: it ignores every policy");
            }
            _ => {}
        }
        Ok(enforcer)
    }
}

/// Takes out the policies in force that cannot be judged: those that the data plane does not
/// enforce, and those that ask for what nobody knows of the cluster.
fn set_aside(snapshot: &Snapshot, options: &mut Options) -> Vec<Unevaluated> {
    let enforcer = options.enforcer();
    let mut aside = not_enforced(&mut options.existing_forms, &enforcer);
    if !options.existing_forms.is_empty() {
        let cluster = options.cluster.clone().with_snapshot(snapshot);
        let evaluator = Evaluator::mixed(cluster, Vec::new(), options.existing_forms.clone(), &enforcer);
        let unknown = [evaluator.needs_namespace_labels(), evaluator.needs_service_accounts()].concat();
        aside.extend(options.existing_forms.extract_if(.., |form| unknown.contains(&&*form)));
    }
    aside.iter().map(Unevaluated::from).collect()
}

/// A policy of some kind, with its place.
trait Policy {
    fn same_spec(&self, other: &Self) -> bool;
    fn location(&self) -> Option<&Location>;
}

impl Policy for NetworkPolicy {
    fn same_spec(&self, other: &Self) -> bool {
        self.same_spec(other)
    }

    fn location(&self) -> Option<&Location> {
        self.location.as_ref()
    }
}

impl Policy for TierPolicy {
    fn same_spec(&self, other: &Self) -> bool {
        self.same_spec(other)
    }

    fn location(&self) -> Option<&Location> {
        self.location.as_ref()
    }
}

/// `--policies` and the inventory may hold the same policy; two different ones of one name are bad
/// input (docs/semantics.md A33).
fn joined<P: Policy>(mut named: Vec<P>, inventory: Vec<P>, key: fn(&P) -> String) -> anyhow::Result<Vec<P>> {
    for policy in inventory {
        let name = key(&policy);
        match named.iter().find(|p| key(p) == name) {
            None => named.push(policy),
            Some(same) if same.same_spec(&policy) => {}
            Some(other) => {
                let place = |p: &P| p.location().map_or_else(|| "-".to_owned(), ToString::to_string);
                bail!("{}: policy {name} differs from the one at {}; keep one of them", place(&policy), place(other));
            }
        }
    }
    Ok(named)
}
