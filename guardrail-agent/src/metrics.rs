//! `/metrics`: every figure is read at the scrape, so gauges cannot drift. Names are those of
//! docs/design.md#metrics.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use guardrail_graph::{
    observe::LossReason,
    observer::{EdgeCounter, OUTCOMES, Stats},
    peer::{Peer, Protocol},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use guardrail_kernel::{KernelStats, clock};

use crate::process::Usage;

/// What the daemon itself counts.
#[derive(Clone, Debug, Default)]
pub struct DaemonStats {
    /// Unix time of the last export, seconds; 0 before the first.
    pub export_last_success_seconds: f64,
    /// Exports that failed.
    pub export_failures: u64,
    /// Unix time of the last state written, seconds; 0 before the first.
    pub state_last_success_seconds: f64,
    /// States that could not be written.
    pub state_failures: u64,
    /// Sum of the edges' completeness: 1 while nothing of class `edge` was lost.
    pub complete: bool,
}

/// Everything that one scrape shows.
#[derive(Debug)]
pub struct Scrape {
    /// The observer's counters.
    pub observer: Stats,
    /// The kernel side's counters.
    pub kernel: KernelStats,
    /// The watches of the API server; empty with an inventory file.
    pub inventory: guardrail_kube::watch::Report,
    /// The daemon's counters.
    pub daemon: DaemonStats,
    /// Edges as bounded by [`EdgeSeries`].
    pub edges: BoundedEdges,
    /// Whether the kernel counts the programs' run time (`kernel.bpf_stats_enabled`).
    pub bpf_stats_enabled: bool,
}

/// Which edges have a time series of their own. An edge that has one keeps it, and no counter ever
/// goes back, which would pass for a restart: what was counted for one edge and is another's after
/// all (a pod that was taken for an external peer until its name came) stays counted there.
#[derive(Debug)]
pub struct EdgeSeries {
    max: usize,
    admitted: HashMap<EdgeName, Series>,
    other: BTreeMap<Protocol, Series>,
    suppressed: HashSet<u64>,
    hasher: std::hash::RandomState,
    /// Scrapes are numbered.
    scrape: u64,
}

/// A series stays for so many epochs without anything new.
const MAX_IDLE: u8 = 7;

/// What a series has shown.
#[derive(Clone, Copy, Debug, Default)]
struct Series {
    shown: [u64; OUTCOMES.len()],
    /// As the epoch began, which counts from zero.
    before: [u64; OUTCOMES.len()],
    /// Epochs since it grew.
    idle: u8,
    /// The last scrape that had its edge.
    scrape: u64,
}

impl Series {
    /// What to show of these counts of the epoch.
    fn show(&mut self, counts: &mut [u64; OUTCOMES.len()]) {
        for ((shown, before), count) in self.shown.iter_mut().zip(self.before).zip(counts) {
            *shown = (*shown).max(before.saturating_add(*count));
            *count = *shown;
        }
    }

    /// Another epoch begins.
    fn turn(&mut self) {
        self.idle = if self.shown == self.before { self.idle.saturating_add(1) } else { 0 };
        self.before = self.shown;
    }
}

type EdgeName = (Arc<Peer>, Arc<Peer>, Protocol, u16);

/// The counters of edges, in so many series as are allowed.
#[derive(Clone, Debug, Default)]
pub struct BoundedEdges {
    /// Those with a series of their own.
    pub shown: Vec<EdgeCounter>,
    /// The sums of all others per protocol, in the order of [`OUTCOMES`].
    pub other: BTreeMap<Protocol, [u64; OUTCOMES.len()]>,
    /// How many edges all others have been so far.
    pub suppressed: u64,
}

impl EdgeSeries {
    /// At most `max` series.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            admitted: HashMap::new(),
            other: BTreeMap::new(),
            suppressed: HashSet::new(),
            hasher: std::hash::RandomState::new(),
            scrape: 0,
        }
    }

    /// Keeps the edges that have a series of their own and sums up the rest.
    pub fn bound(&mut self, mut edges: Vec<EdgeCounter>) -> BoundedEdges {
        use std::hash::BuildHasher as _;
        self.scrape += 1;
        let mut other: BTreeMap<Protocol, [u64; OUTCOMES.len()]> =
            self.other.keys().map(|protocol| (*protocol, [0; OUTCOMES.len()])).collect();
        edges.retain_mut(|edge| {
            let name = (Arc::clone(&edge.client), Arc::clone(&edge.server), edge.protocol, edge.port);
            let is_full = self.admitted.len() >= self.max;
            if !is_full || self.admitted.contains_key(&name) {
                let series = self.admitted.entry(name).or_default();
                series.scrape = self.scrape;
                series.show(&mut edge.outcomes);
                return true;
            }
            self.suppressed.insert(self.hasher.hash_one(&name));
            let sums = other.entry(edge.protocol).or_default();
            for (sum, count) in sums.iter_mut().zip(edge.outcomes) {
                *sum = sum.saturating_add(count);
            }
            false
        });
        for (protocol, sums) in &mut other {
            self.other.entry(*protocol).or_default().show(sums);
        }
        // What the epoch has not seen yet stays as it was.
        let is_quiet = |series: &Series| series.scrape != self.scrape && series.before != [0; OUTCOMES.len()];
        let before = self.admitted.iter().filter(|(_, series)| is_quiet(series));
        edges.extend(before.map(|((client, server, protocol, port), series)| EdgeCounter {
            client: Arc::clone(client),
            server: Arc::clone(server),
            protocol: *protocol,
            port: *port,
            outcomes: series.shown,
        }));
        edges.sort_unstable();
        BoundedEdges { shown: edges, other, suppressed: self.suppressed.len() as u64 }
    }

    /// An epoch ended with these edges. The next one counts from zero, and no series goes back.
    pub fn turn(&mut self, edges: Vec<EdgeCounter>) {
        self.bound(edges);
        self.admitted.values_mut().chain(self.other.values_mut()).for_each(Series::turn);
        self.admitted.retain(|_, series| series.idle < MAX_IDLE);
    }
}

/// Namespace and name of an end, as labels: `Owner/name`, `node/NAME` or `external`.
fn labels(peer: &Peer) -> (&str, Cow<'_, str>) {
    match peer {
        Peer::Workload(w) => (&w.namespace, format!("{}/{}", w.owner, w.name).into()),
        Peer::Node { name } => ("", format!("node/{name}").into()),
        Peer::External { .. } => ("", "external".into()),
    }
}

/// The scrape in the OpenMetrics text format.
///
/// # Errors
/// If a value cannot be written; then nothing of it is shown.
pub fn encode(scrape: Scrape) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

type LabelPairs<'a> = Vec<(&'static str, &'a str)>;

fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (LabelPairs<'a>, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (LabelPairs<'a>, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// The edges: a series per outcome.
fn edge_series(e: &mut DescriptorEncoder<'_>, edges: &BoundedEdges) -> fmt::Result {
    let mut family = e.encode_descriptor(
        "guardrail_flow_connections",
        "Connections (TCP) and client datagrams (UDP) by edge and outcome",
        None,
        MetricType::Counter,
    )?;
    let mut series = |ends: [(&str, &str); 2], protocol: Protocol, port: u16, counts: &[u64; OUTCOMES.len()]| {
        let (protocol, port) = (protocol.to_string(), port.to_string());
        let [client, server] = ends;
        OUTCOMES.iter().zip(counts).try_for_each(|(outcome, count)| {
            let labels = [
                ("client_namespace", client.0),
                ("client_workload", client.1),
                ("server_namespace", server.0),
                ("server_workload", server.1),
                ("protocol", protocol.as_str()),
                ("port", port.as_str()),
                ("outcome", outcome),
            ];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)
        })
    };
    for edge in &edges.shown {
        let (client, server) = (labels(&edge.client), labels(&edge.server));
        series([(client.0, &client.1), (server.0, &server.1)], edge.protocol, edge.port, &edge.outcomes)?;
    }
    for (protocol, counts) in &edges.other {
        series([("other", "other"); 2], *protocol, 0, counts)?;
    }
    counter(
        e,
        "guardrail_flow_series_suppressed",
        "Edges without a time series of their own (--metrics-max-edges)",
        edges.suppressed,
    )
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self { observer, kernel, inventory, daemon, edges, bpf_stats_enabled } = self;
        let e = &mut encoder;
        edge_series(e, edges)?;
        gauge(e, "guardrail_edges", "Edges in the observed graph", observer.edges as f64)?;
        gauge(
            e,
            "guardrail_graph_complete",
            "1 while nothing was lost that could hide an edge",
            f64::from(u8::from(daemon.complete)),
        )?;
        gauge(e, "guardrail_flows_pending", "Flows that wait for their pod or role", observer.pending as f64)?;
        counters(
            e,
            "guardrail_events",
            "What was read from the kernel, by kind",
            kernel.events.iter().map(|(kind, n)| (vec![("kind", *kind)], *n)),
        )?;
        counters(
            e,
            "guardrail_events_lost",
            "What was lost, by reason; class hint is repaired by the sweep, class edge may hide an edge",
            observer.losses.iter().map(|(reason, class, n)| {
                let class = match class {
                    guardrail_graph::observe::LossClass::Hint => "hint",
                    guardrail_graph::observe::LossClass::Edge => "edge",
                };
                (vec![("reason", LossReason::as_str(*reason)), ("class", class)], *n)
            }),
        )?;
        counters(
            e,
            "guardrail_open_repaired",
            "Connections whose being open was repaired as an epoch began: no_socket: their end was missed, \
             not_counted: their beginning",
            kernel.open_repaired.iter().map(|(reason, n)| (vec![("reason", *reason)], *n)),
        )?;
        counters(
            e,
            "guardrail_socket_lists",
            "How often the open sockets were listed as an epoch began; what is open is repaired only by complete lists",
            kernel
                .socket_lists
                .iter()
                .map(|(complete, n)| (vec![("complete", if *complete { "true" } else { "false" })], *n)),
        )?;
        counters(
            e,
            "guardrail_flows_unresolved",
            "Flows whose end or role could not be named, by reason",
            observer.unresolved.iter().map(|(reason, n)| (vec![("reason", *reason)], *n)),
        )?;
        gauges(
            e,
            "guardrail_identity_entries",
            "Entries of the identity tables, by kind",
            observer.identity_entries.iter().map(|(kind, n)| (vec![("kind", *kind)], *n as f64)),
        )?;
        counter(
            e,
            "guardrail_dns_names_forgotten",
            "DNS names of external peers that made room for newer ones",
            observer.names_forgotten,
        )?;
        gauge(e, "guardrail_kernel_map_entries", "Live entries of the FLOWS map", kernel.map_entries as f64)?;
        gauge(e, "guardrail_kernel_map_capacity", "Capacity of the FLOWS map", kernel.map_capacity as f64)?;
        if *bpf_stats_enabled {
            let mut family = e.encode_descriptor(
                "guardrail_bpf_run_seconds",
                "Time spent in each kernel program (only while kernel.bpf_stats_enabled=1)",
                None,
                MetricType::Counter,
            )?;
            for (program, stats) in &kernel.programs {
                let labels = [("program", program.as_str())];
                ConstCounter::new(stats.run_ns as f64 / 1e9).encode(family.encode_family(&labels)?)?;
            }
        }
        gauge(
            e,
            "guardrail_clock_ahead_seconds",
            "How far the graph's time is ahead of the wall clock, because that was set back",
            clock::ahead().as_secs_f64(),
        )?;
        inventory_series(e, inventory)?;
        gauge(
            e,
            "guardrail_export_last_success_timestamp_seconds",
            "When the allow-lists were last written (0: never)",
            daemon.export_last_success_seconds,
        )?;
        counter(e, "guardrail_export_failures", "Exports that failed", daemon.export_failures)?;
        gauge(
            e,
            "guardrail_state_last_success_timestamp_seconds",
            "When the state was last written (0: never)",
            daemon.state_last_success_seconds,
        )?;
        counter(e, "guardrail_state_failures", "States that could not be written", daemon.state_failures)?;
        own_cost(e)?;
        gauges(e, "guardrail_build_info", "Version of the agent", [(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)])
    }
}

/// What the agent itself costs, under the names that Prometheus has for every process.
fn own_cost(e: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Usage { cpu_seconds, resident_bytes, open_fds, max_fds } = Usage::now();
    ConstCounter::new(cpu_seconds).encode(e.encode_descriptor(
        "process_cpu_seconds",
        "Time that the agent spent on a CPU",
        None,
        MetricType::Counter,
    )?)?;
    gauge(
        e,
        "process_resident_memory_bytes",
        "Resident memory of the agent, without kernel maps",
        resident_bytes as f64,
    )?;
    gauge(e, "process_open_fds", "Open file descriptors", open_fds as f64)?;
    gauge(e, "process_max_fds", "Most file descriptors that may be open", max_fds as f64)
}

/// The watches of the API server.
fn inventory_series(e: &mut DescriptorEncoder<'_>, inventory: &guardrail_kube::watch::Report) -> fmt::Result {
    let guardrail_kube::watch::Report { events, failures, lists, synced, age_seconds } = inventory;
    counters(
        e,
        "guardrail_inventory_events",
        "Objects that watches of the API server brought, by what became of them",
        events.iter().map(|(kind, outcome, n)| (vec![("kind", *kind), ("outcome", *outcome)], *n)),
    )?;
    counters(
        e,
        "guardrail_inventory_failures",
        "Requests to the API server, streams from it, and readings of the inventory file that failed, by reason",
        failures.iter().map(|(kind, reason, n)| (vec![("kind", *kind), ("reason", *reason)], *n)),
    )?;
    counters(
        e,
        "guardrail_inventory_lists",
        "Complete lists taken from the API server",
        lists.iter().map(|(kind, n)| (vec![("kind", *kind)], *n)),
    )?;
    gauges(
        e,
        "guardrail_inventory_synced",
        "1 while the list of this kind is in and followed",
        synced.iter().map(|(kind, synced)| (vec![("kind", *kind)], f64::from(u8::from(*synced)))),
    )?;
    gauges(
        e,
        "guardrail_inventory_age_seconds",
        "Time since the API server last said something of this kind",
        age_seconds.iter().map(|(kind, age)| (vec![("kind", *kind)], *age)),
    )
}

#[cfg(test)]
mod tests {
    use guardrail_graph::WorkloadRef;

    use super::*;

    fn edge(port: u16, opened: u64) -> EdgeCounter {
        let web = WorkloadRef { namespace: "shop".into(), owner: "Deployment".into(), name: "web".into() };
        EdgeCounter {
            client: Arc::new(Peer::Workload(web)),
            server: Arc::new(Peer::many()),
            protocol: Protocol::Tcp,
            port,
            outcomes: [opened, 0, 0, 0, 0],
        }
    }

    fn scrape(edges: Vec<EdgeCounter>) -> Scrape {
        Scrape {
            observer: Stats::default(),
            kernel: KernelStats::default(),
            inventory: guardrail_kube::watch::Report::default(),
            daemon: DaemonStats::default(),
            edges: BoundedEdges { shown: edges, ..BoundedEdges::default() },
            bpf_stats_enabled: false,
        }
    }

    #[test]
    fn an_edge_that_has_a_series_keeps_it_and_the_rest_is_summed() {
        let mut series = EdgeSeries::new(2);
        series.bound(vec![edge(2, 1), edge(3, 1)]);
        let mut datagrams = edge(5, 7);
        datagrams.protocol = Protocol::Udp;
        let bounded = series.bound(vec![edge(1, 5), edge(2, 2), edge(3, 2), edge(4, 6), datagrams]);
        let ports: Vec<_> = bounded.shown.iter().map(|e| (e.port, e.outcomes[0])).collect();
        assert_eq!(ports, [(2, 2), (3, 2)]);
        assert_eq!(bounded.other, [(Protocol::Tcp, [11, 0, 0, 0, 0]), (Protocol::Udp, [7, 0, 0, 0, 0])].into());
        assert_eq!(bounded.suppressed, 3);
        let page = encode(Scrape { edges: bounded, ..scrape(Vec::new()) }).unwrap();
        let other = r#"client_workload="other",server_namespace="other",server_workload="other",protocol="TCP",port="0",outcome="opened"} 11"#;
        assert!(page.contains(other), "{page}");
    }

    #[test]
    fn no_counter_goes_back_when_what_was_one_edges_turns_out_to_be_anothers() {
        let mut series = EdgeSeries::new(1);
        series.bound(vec![edge(1, 5), edge(2, 5)]);
        let bounded = series.bound(vec![edge(1, 3), edge(2, 4)]);
        assert_eq!((bounded.shown[0].outcomes, bounded.other[&Protocol::Tcp]), ([5, 0, 0, 0, 0], [5, 0, 0, 0, 0]));
        let bounded = series.bound(vec![edge(1, 6), edge(2, 6)]);
        assert_eq!((bounded.shown[0].outcomes, bounded.other[&Protocol::Tcp]), ([6, 0, 0, 0, 0], [6, 0, 0, 0, 0]));
    }

    #[test]
    fn counters_go_on_from_epoch_to_epoch_and_what_was_counted_is_added_once() {
        let mut series = EdgeSeries::new(1);
        series.turn(vec![edge(1, 5), edge(2, 5)]);
        for _ in 0..2 {
            let bounded = series.bound(vec![edge(1, 1), edge(2, 2)]);
            assert_eq!((bounded.shown[0].outcomes, bounded.other[&Protocol::Tcp]), ([6, 0, 0, 0, 0], [7, 0, 0, 0, 0]));
        }
        for _ in 0..2 {
            let bounded = series.bound(Vec::new());
            let shown: Vec<_> = bounded.shown.iter().map(|edge| (edge.port, edge.outcomes[0])).collect();
            assert_eq!((shown, bounded.other[&Protocol::Tcp]), (vec![(1, 6)], [7, 0, 0, 0, 0]));
        }
    }

    #[test]
    fn a_label_value_that_needs_escaping_is_escaped() {
        let mut hostile = edge(80, 1);
        let name = "a\"b\\c\nd".to_owned();
        hostile.client = Arc::new(Peer::Workload(WorkloadRef { namespace: "shop".into(), owner: "Pod".into(), name }));
        let page = encode(scrape(vec![hostile])).unwrap();
        assert!(page.contains(r#"client_workload="Pod/a\"b\\c\nd""#), "{page}");
    }

    #[test]
    fn counters_end_in_total_and_gauges_do_not() {
        let page = encode(scrape(vec![edge(80, 7)])).unwrap();
        assert!(page.contains("\nguardrail_flow_connections_total{"), "{page}");
        assert!(page.contains("\nguardrail_edges 0"), "{page}");
        assert!(page.contains("\nguardrail_build_info{version="), "{page}");
        assert!(page.ends_with("# EOF\n"));
    }
}
