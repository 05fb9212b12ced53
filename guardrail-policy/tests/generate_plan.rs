//! Properties of exports that follow a plan: who is sensitive, shared, or a caller, and how far
//! each namespace goes.
//!
//! Labels are few, so that selectors overlap and some workloads have no label of their own.

mod generate_support;

use std::collections::{BTreeMap, BTreeSet};

use generate_support::{Edge, Export, Pod, Scenario, Workload, peer};
use guardrail_graph::snapshot::{LabelSelector, SelectorOperator, SelectorRequirement};
use guardrail_policy::{
    emit::{EVIDENCE_FILE, namespace_of_file},
    evaluate::Evaluator,
    export::{self, Exported},
    generate::{Goal, Options, Phase},
    memory::Memory,
    model::Protocol,
    read,
};
use proptest::prelude::*;

const PORTS: [u16; 4] = [53, 80, 5432, 9090];
const PHASES: [Phase; 3] = [Phase::Observe, Phase::Constrain, Phase::DefaultDeny];
const NAMESPACES: usize = 3;

/// How a controller selects its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Selects {
    /// Nobody knows.
    Unknown,
    /// By all labels.
    Labels,
    /// By `matchExpressions`, which hold for other values, too.
    Expressions,
}

#[derive(Clone, Debug)]
struct World {
    /// Namespace; values of `app` and `role`, 0 is none; how a controller selects by them.
    workloads: Vec<(usize, usize, usize, Selects)>,
    /// Client, server, port, UDP.
    flows: BTreeSet<(usize, usize, usize, bool)>,
    shared: Option<usize>,
    caller: Option<usize>,
}

/// How far each namespace goes, and which workloads are sensitive.
#[derive(Clone, Debug)]
struct Aim {
    phases: Vec<usize>,
    egress: Vec<bool>,
    sensitive: Vec<bool>,
}

fn world() -> impl Strategy<Value = World> {
    let selects = prop_oneof![1 => Just(Selects::Unknown), 3 => Just(Selects::Labels), 1 => Just(Selects::Expressions)];
    let workload = (0..NAMESPACES, 0usize..3, 0usize..3, selects);
    (
        prop::collection::vec(workload, 2..7),
        prop::collection::btree_set((0usize..7, 0usize..7, 0..PORTS.len(), prop::bool::weighted(0.3)), 0..10),
        prop::option::of(0usize..7),
        prop::option::of(0usize..7),
    )
        .prop_map(|(workloads, flows, shared, caller)| World { workloads, flows, shared, caller })
}

fn aim() -> impl Strategy<Value = Aim> {
    (
        prop::collection::vec(0usize..3, NAMESPACES),
        prop::collection::vec(prop::bool::weighted(0.3), NAMESPACES),
        prop::collection::vec(prop::bool::weighted(0.3), 7),
    )
        .prop_map(|(phases, egress, sensitive)| Aim { phases, egress, sensitive })
}

/// What holds for these labels, and may hold for others: `app` has this value or another one, and
/// `role` is there or not.
fn expressions(labels: &BTreeMap<String, String>) -> LabelSelector {
    let requirement =
        |key: &str, operator, values: Vec<String>| SelectorRequirement { key: key.to_owned(), operator, values };
    let app = match labels.get("app") {
        Some(value) => requirement("app", SelectorOperator::In, vec![value.clone(), "v7".to_owned()]),
        None => requirement("app", SelectorOperator::DoesNotExist, Vec::new()),
    };
    let is_there = labels.contains_key("role");
    let operator = if is_there { SelectorOperator::Exists } else { SelectorOperator::DoesNotExist };
    let match_expressions = vec![app, requirement("role", operator, Vec::new())];
    LabelSelector { match_labels: Default::default(), match_expressions }
}

impl World {
    fn name(&self, index: usize) -> String {
        let index = index % self.workloads.len();
        format!("ns{}/Deployment/w{index}", self.workloads[index].0)
    }

    /// The workloads, and in each namespace one that nobody saw talking.
    fn names(&self) -> Vec<String> {
        let strangers = (0..NAMESPACES).map(|ns| format!("ns{ns}/Deployment/stranger"));
        (0..self.workloads.len()).map(|index| self.name(index)).chain(strangers).collect()
    }

    fn scenario(&self) -> Scenario {
        let mut workloads = BTreeMap::new();
        for (number, name) in self.names().into_iter().enumerate() {
            let (app, role, selects) = match self.workloads.get(number) {
                Some((_, app, role, selects)) => (*app, *role, *selects),
                None => (9, 9, Selects::Labels),
            };
            let labels: BTreeMap<String, String> = [("app", app), ("role", role)]
                .into_iter()
                .filter(|(_, value)| *value > 0)
                .map(|(key, value)| (key.to_owned(), format!("v{value}")))
                .collect();
            let unknown = selects == Selects::Unknown || labels.is_empty();
            let no_selector = unknown.then(|| "give it a label".to_owned());
            let selector = (selects == Selects::Expressions && !unknown).then(|| expressions(&labels));
            let pod = Pod {
                node: "node-a".to_owned(),
                addresses: BTreeSet::from([format!("10.244.0.{}", number + 10).parse().unwrap()]),
                ports: BTreeMap::new(),
            };
            let pods = BTreeMap::from([(name.replace('/', "-").to_lowercase(), pod)]);
            workloads.insert(name, Workload { labels, selector, no_selector, pods, ..Workload::default() });
        }
        let edges: BTreeSet<String> = self
            .flows
            .iter()
            .map(|(client, server, port, udp)| {
                let protocol = if *udp { "UDP" } else { "TCP" };
                format!("{} -> {} {}/{protocol}", self.name(*client), self.name(*server), PORTS[*port])
            })
            .collect();
        let edge = |edge: String| Edge {
            edge,
            port_name: None,
            via: BTreeSet::new(),
            marks: BTreeSet::new(),
            names: BTreeSet::new(),
            seen: Vec::new(),
            failed: false,
            unanswered: false,
            node_workloads: BTreeSet::new(),
            addresses: None,
        };
        Scenario {
            about: "random".to_owned(),
            export: Export { phase: "observe".to_owned(), ..Export::default() },
            nodes: BTreeMap::from([("node-a".to_owned(), vec!["192.0.2.1".parse().unwrap()])]),
            observed: None,
            pod_ranges: vec!["10.244.0.0/16".parse().unwrap()],
            workloads,
            services: BTreeMap::new(),
            edges: edges.into_iter().map(edge).collect(),
            incomplete: BTreeMap::new(),
            gaps: BTreeSet::new(),
            allowed: Vec::new(),
            denied: Vec::new(),
            existing: None,
        }
    }

    fn options(&self, scenario: &Scenario, aim: &Aim) -> Options {
        let mut options = scenario.options();
        options.stopped_too = false;
        options.goals = (0..NAMESPACES)
            .map(|ns| {
                let phase = PHASES[aim.phases[ns]];
                let goal = Goal { phase, egress: aim.egress[ns] && phase != Phase::Observe, held: Vec::new() };
                (format!("ns{ns}"), goal)
            })
            .collect();
        let workload = |index: usize| peer(&self.name(index)).workload().cloned().unwrap();
        options.sensitive = (0..self.workloads.len()).filter(|index| aim.sensitive[*index]).map(workload).collect();
        options.share_dns = true;
        options.shared =
            self.shared.map(|index| (workload(index), BTreeSet::from([(Protocol::Tcp, 80)]))).into_iter().collect();
        options.callers = self.caller.map(workload).into_iter().collect();
        options
    }
}

/// An export, and how to judge it.
struct Judged {
    exported: Exported<'static>,
    evaluator: Evaluator,
}

impl Judged {
    fn new(scenario: &Scenario, options: &Options) -> Self {
        let snapshot = scenario.snapshot();
        let exported = export::export(&snapshot, options).into_owned();
        let cluster = options.cluster.clone().with_snapshot(&snapshot);
        let evaluator = generate_support::evaluator(options, cluster, &exported.files);
        Self { exported, evaluator }
    }

    /// The text of each policy, by file.
    fn policies(&self) -> BTreeMap<&str, &str> {
        self.exported.files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect()
    }

    fn passes(&self, client: &str, server: &str, protocol: Protocol, port: u16) -> bool {
        self.evaluator.evaluate_peers(&peer(client), &peer(server), protocol, port).unwrap().any_allowed()
    }

    fn is_stopped(&self, name: &str) -> bool {
        self.exported.stopped.contains(name.split('/').next().unwrap())
    }
}

/// Every pair of workloads that the exports judge, with each class of ports.
fn pairs(world: &World, exports: &[&Judged]) -> Vec<(String, String, Protocol, u16)> {
    let names: Vec<String> =
        world.names().into_iter().filter(|name| exports.iter().all(|export| !export.is_stopped(name))).collect();
    let pairs = names.iter().flat_map(|client| names.iter().map(move |server| (client, server)));
    let ports = || PORTS.into_iter().chain([9]).flat_map(|port| [Protocol::Tcp, Protocol::Udp].map(|p| (p, port)));
    pairs
        .filter(|(client, server)| client != server)
        .flat_map(|(client, server)| ports().map(move |(p, port)| (client.clone(), server.clone(), p, port)))
        .collect()
}

/// Nothing passes by the stricter of two plans that does not pass by the other.
fn never_allows_more(world: &World, loose: &Aim, more: &Aim) -> Result<(), TestCaseError> {
    let scenario = world.scenario();
    let strict = Aim {
        phases: loose.phases.iter().zip(&more.phases).map(|(a, b)| *a.max(b)).collect(),
        egress: loose.egress.iter().zip(&more.egress).map(|(a, b)| *a || *b).collect(),
        sensitive: loose.sensitive.iter().zip(&more.sensitive).map(|(a, b)| *a || *b).collect(),
    };
    let before = Judged::new(&scenario, &world.options(&scenario, loose));
    let after = Judged::new(&scenario, &world.options(&scenario, &strict));
    for (client, server, protocol, port) in pairs(world, &[&before, &after]) {
        prop_assert!(
            !after.passes(&client, &server, protocol, port) || before.passes(&client, &server, protocol, port),
            "{client} -> {server} {port}/{protocol} passes under {strict:?} alone\n{:?}\n{:?}",
            before.policies(),
            after.policies()
        );
    }
    Ok(())
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_plan_that_only_adds_strictness_never_allows_more(world in world(), loose in aim(), more in aim()) {
        never_allows_more(&world, &loose, &more)?;
    }

    #[test]
    fn nobody_enters_a_sensitive_workload_who_was_not_seen_there(world in world(), aim in aim()) {
        let scenario = world.scenario();
        let options = world.options(&scenario, &aim);
        let judged = Judged::new(&scenario, &options);
        let is_shared = |port: u16, protocol: Protocol| port == 53 || (port == 80 && protocol == Protocol::Tcp);
        for (client, server, protocol, port) in pairs(&world, &[&judged]) {
            let sensitive = peer(&server).workload().is_some_and(|w| options.sensitive.contains(w));
            if sensitive && client.ends_with("/stranger") && !is_shared(port, protocol) {
                prop_assert!(!judged.passes(&client, &server, protocol, port), "{client} -> {server} {port}\n{:?}", judged.policies());
            }
        }
        // Whatever the labels are, no proof fails: what cannot be closed is said beforehand.
        let proven = judged.exported.problems.iter().all(|problem| !problem.message.contains("please report it"));
        prop_assert!(proven, "{:?}", judged.exported.problems);
    }

    #[test]
    fn an_export_over_what_it_wrote_changes_nothing(world in world(), aim in aim()) {
        let scenario = world.scenario();
        let mut options = world.options(&scenario, &aim);
        let first = Judged::new(&scenario, &options);
        // As the command does: what lies in the directory is in force, and its evidence is read.
        options.memory = Memory::read(&first.exported.all_files()[EVIDENCE_FILE]).unwrap();
        for (name, text) in first.policies().into_iter().filter(|(name, _)| namespace_of_file(name).is_some()) {
            options.existing.extend(read::policies(name, text.as_bytes()).unwrap().policies);
        }
        let again = Judged::new(&scenario, &options);
        prop_assert_eq!(first.policies(), again.policies());
        prop_assert_eq!(&first.exported.all_files()[EVIDENCE_FILE], &again.exported.all_files()[EVIDENCE_FILE]);
    }

    #[test]
    fn an_export_with_a_plan_depends_neither_on_the_run_nor_on_the_order(world in world(), aim in aim(), turn in 0usize..7) {
        let scenario = world.scenario();
        let options = world.options(&scenario, &aim);
        let snapshot = scenario.snapshot();
        let mut turned = snapshot.clone();
        let edges = turned.body.edges.len().max(1);
        turned.body.edges.rotate_left(turn % edges);
        turned.body.workloads.reverse();
        let files = |snapshot| export::export(snapshot, &options).files;
        prop_assert_eq!(files(&snapshot), files(&snapshot));
        prop_assert_eq!(files(&snapshot), files(&turned));
    }
}

/// Of two sensitive workloads one alone shares its label with an open one, both together share
/// none: the boundary is drawn in one piece then, and opens no more than before.
#[test]
fn a_second_sensitive_workload_opens_nothing() {
    use Selects::Unknown;
    let world = World {
        workloads: vec![
            (0, 1, 0, Unknown),
            (0, 2, 2, Unknown),
            (1, 0, 1, Unknown),
            (0, 1, 0, Unknown),
            (0, 0, 2, Unknown),
        ],
        flows: BTreeSet::from([(2, 5, 1, false)]),
        shared: None,
        caller: None,
    };
    let aim = |phases: [usize; 3], sensitive: usize| Aim {
        phases: phases.to_vec(),
        egress: vec![false; 3],
        sensitive: (0..7).map(|index| index == sensitive).collect(),
    };
    never_allows_more(&world, &aim([1, 0, 0], 4), &aim([0, 0, 0], 1)).unwrap();
}
