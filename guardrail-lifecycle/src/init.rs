//! A first plan from what was observed: a ladder of environments, what runs the cluster left alone,
//! DNS and scrapers named, and what looks sensitive suggested, with the reason.
//!
//! Only what is safe is switched on: namespaces that run the cluster stay at observe, DNS is
//! shared. What only a person can decide stands there as a comment, ready to be uncommented. The
//! text is always a valid plan, with and without its suggestions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use guardrail_graph::{Snapshot, WorkloadRef, snapshot::EdgeRecord};

use crate::plan::{API_VERSION, KIND};

mod look;

use look::{reason_to_close, runs_the_cluster};

/// Clients of at least so many workloads may be meant to reach everybody.
const MANY_SERVERS: usize = 3;
/// Servers that are called from at least so many namespaces may be meant for everybody.
const MANY_NAMESPACES: usize = 3;

/// The images of workloads' containers, as their templates name them.
pub type Images = BTreeMap<WorkloadRef, BTreeSet<String>>;

/// The text of a first plan. `context`: the kubeconfig context of the cluster that was observed.
/// `images`: as far as they are known; the graph has none.
#[must_use]
pub fn first_plan(snapshot: &Snapshot, images: &Images, context: Option<&str>) -> String {
    let found = Found::new(snapshot, images);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = found.write(&mut text, context);
    text
}

#[derive(Default)]
struct Found {
    /// Namespaces that run the cluster.
    system: BTreeSet<String>,
    /// Ports of DNS servers.
    dns: BTreeMap<WorkloadRef, BTreeSet<String>>,
    /// Ports of other servers that clients of many namespaces call, and how many these are.
    shared: BTreeMap<WorkloadRef, (BTreeSet<String>, usize)>,
    /// Clients that reach many workloads, how many, and whether only to read metrics.
    callers: BTreeMap<WorkloadRef, (usize, bool)>,
    /// What should be closed first, and why.
    sensitive: BTreeMap<WorkloadRef, String>,
    /// Addresses of nodes.
    nodes: BTreeSet<std::net::IpAddr>,
}

impl Found {
    fn new(snapshot: &Snapshot, images: &Images) -> Self {
        let body = &snapshot.body;
        let mut found = Self::default();
        let mut clients: BTreeMap<&WorkloadRef, BTreeSet<&WorkloadRef>> = BTreeMap::new();
        let mut servers: BTreeMap<&WorkloadRef, Vec<&EdgeRecord>> = BTreeMap::new();
        let mut only_metrics: BTreeMap<&WorkloadRef, bool> = BTreeMap::new();
        for edge in body.edges.iter().filter(|edge| edge.supported) {
            let Some(server) = edge.server.peer.workload().filter(|server| can_be_named(server)) else { continue };
            servers.entry(server).or_default().push(edge);
            let Some(client) = edge.client.peer.workload().filter(|client| can_be_named(client)) else { continue };
            if asks_for_names(edge) {
                found
                    .dns
                    .entry(server.clone())
                    .or_default()
                    .extend(["UDP", "TCP"].map(|p| format!("{}/{p}", edge.port)));
                continue;
            }
            if client != server {
                clients.entry(client).or_default().insert(server);
                *only_metrics.entry(client).or_insert(true) &= look::is_metrics(edge);
            }
        }
        for (client, reached) in &clients {
            let namespaces: BTreeSet<&str> = reached.iter().map(|server| server.namespace.as_str()).collect();
            let most = reached.len() * 2 >= servers.len();
            let metrics = only_metrics[client];
            if reached.len() >= MANY_SERVERS && namespaces.len() > 1 && (most || metrics) {
                found.callers.insert((*client).clone(), (reached.len(), metrics));
            }
        }
        let callers: BTreeSet<&WorkloadRef> = found.callers.keys().collect();
        for workload in body.workloads.iter().map(|entry| &entry.workload).filter(|workload| can_be_named(workload)) {
            let edges = servers.get(workload).map_or(&[][..], Vec::as_slice);
            if runs_the_cluster(&workload.namespace) {
                found.system.insert(workload.namespace.clone());
                continue;
            }
            if let Some(reason) = reason_to_close(workload, edges, images.get(workload)) {
                found.sensitive.insert(workload.clone(), reason);
                continue;
            }
            let of = |edge: &&&EdgeRecord| edge.client.peer.workload().is_some_and(|client| !callers.contains(client));
            let namespaces: BTreeSet<&str> = edges
                .iter()
                .filter(of)
                .filter_map(|edge| edge.client.peer.workload())
                .map(|w| w.namespace.as_str())
                .collect();
            if namespaces.len() >= MANY_NAMESPACES && !found.dns.contains_key(workload) {
                let ports = edges.iter().filter(of).map(|edge| format!("{}/{}", edge.port, edge.protocol)).collect();
                found.shared.insert(workload.clone(), (ports, namespaces.len()));
            }
        }
        let known = body.known_nodes();
        let lasting = body.lasting_addresses(&known).filter(|(_, entry)| entry.listed != Some(false));
        found.nodes.extend(lasting.map(|(_, entry)| entry.address.to_canonical()));
        found
    }

    fn write(&self, out: &mut String, context: Option<&str>) -> std::fmt::Result {
        writeln!(
            out,
            "# What each namespace is meant to be. Lines that begin with `# -` or `# key:` are suggestions."
        )?;
        writeln!(
            out,
            "# guardrail status SNAPSHOT --plan guardrail.yaml --environment production  says what may go on."
        )?;
        writeln!(out, "apiVersion: {API_VERSION}\nkind: {KIND}\nspec:\n  environments:")?;
        self.environment(out, "development", "default-deny", "first, where nobody minds", None)?;
        self.environment(out, "staging", "constrain", "then default-deny, when development is quiet", None)?;
        self.environment(
            out,
            "production",
            "observe",
            "then constrain, when staging is at default-deny",
            Some(context),
        )?;
        writeln!(out, "  # Meant for everybody: one rule instead of a list of callers.")?;
        if self.dns.is_empty() && self.shared.is_empty() {
            writeln!(out, "  # shared: []")?;
        } else {
            let comment = if self.dns.is_empty() { "# " } else { "" };
            writeln!(out, "  {comment}shared:")?;
            for (workload, ports) in &self.dns {
                writeln!(out, "  - {{workload: {}, ports: [{}]}}  # DNS", quoted(workload), list(ports))?;
            }
            for (workload, (ports, namespaces)) in &self.shared {
                let ports = list(ports);
                let workload = quoted(workload);
                writeln!(
                    out,
                    "  # - {{workload: {workload}, ports: [{ports}]}}  # called from {namespaces} namespaces"
                )?;
            }
        }
        writeln!(out, "  # Meant to reach everybody on the ports seen.")?;
        if self.callers.is_empty() {
            writeln!(out, "  # callers: []")?;
        } else {
            let active = self.callers.values().any(|(_, metrics)| *metrics);
            writeln!(out, "  {}callers:", if active { "" } else { "# " })?;
            for (workload, (reached, metrics)) in &self.callers {
                let (comment, why) = if *metrics { ("", "reads metrics of") } else { ("# ", "calls") };
                writeln!(out, "  {comment}- {{workload: {}}}  # {why} {reached} workloads", quoted(workload))?;
            }
        }
        let nodes: Vec<String> = self.nodes.iter().take(4).map(ToString::to_string).collect();
        if !nodes.is_empty() {
            let more = if self.nodes.len() > nodes.len() { ", …" } else { "" };
            writeln!(out, "  # The range that node addresses are taken from; seen: {}{more}", nodes.join(", "))?;
            writeln!(out, "  # nodeRanges: []")?;
        }
        Ok(())
    }

    /// One environment; `context` for the one that was observed.
    fn environment(
        &self,
        out: &mut String,
        name: &str,
        phase: &str,
        then: &str,
        context: Option<Option<&str>>,
    ) -> std::fmt::Result {
        writeln!(out, "    {name}:")?;
        match context.flatten() {
            Some(context) => writeln!(out, "      context: {}", scalar(context))?,
            None => writeln!(out, "      # context: {name}  # the kubeconfig context that `kube` means")?,
        }
        writeln!(out, "      phase: {phase}  # {then}")?;
        if !self.system.is_empty() {
            writeln!(out, "      namespaces:  # these run the cluster")?;
            for namespace in &self.system {
                writeln!(out, "        {}: {{phase: observe}}", scalar(namespace))?;
            }
        }
        if !self.sensitive.is_empty() {
            writeln!(out, "      # sensitive:  # closed whatever their namespace's phase")?;
            for (workload, reason) in &self.sensitive {
                writeln!(out, "      # - {}  # {reason}", quoted(workload))?;
            }
        }
        let (window, quiet) = match name {
            "development" => ("1d", "0s"),
            "staging" => ("7d", "1d"),
            _ => ("14d", "3d"),
        };
        writeln!(out, "      gates: {{window: {window}, coverage: 99.9, quiet: {quiet}}}")
    }
}

/// Whether it has a name that the API server would take: a snapshot may come from anywhere.
fn can_be_named(workload: &WorkloadRef) -> bool {
    let fits = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || more.contains(c))
    };
    fits(&workload.namespace, "") && fits(&workload.owner, "") && fits(&workload.name, "._:")
}

fn asks_for_names(edge: &EdgeRecord) -> bool {
    edge.port == 53 || edge.via.iter().any(|via| via.ends_with(":53"))
}

fn list(ports: &BTreeSet<String>) -> String {
    ports.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn quoted(workload: &WorkloadRef) -> String {
    scalar(&workload.to_string())
}

/// A YAML scalar: as it is where that is safe, else in quotes. A name that a snapshot has from
/// elsewhere ends no line.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let begins = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    let word = ["true", "false", "null", "yes", "no", "on", "off"].iter().any(|word| text.eq_ignore_ascii_case(word));
    if begins && !word && text.chars().all(plain) { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}
