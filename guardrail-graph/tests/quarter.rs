//! A quarter of a cluster's life: daily rollouts, jobs that never come again, addresses that pass
//! on within seconds, nodes that come and go, agents that are restarted, an API server that is
//! away.
//!
//! Truth is what the simulation did. Every edge that is shown is true; one that is missing is
//! explained by the day's own coverage; and what is kept follows the size of the cluster, not its
//! age. The whole quarter runs with
//! `cargo test --release -p guardrail-graph --test quarter -- --ignored --nocapture`.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{cgroup_path, lists, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Peer, Snapshot,
    inventory::{Change, Kind, Object, ObjectKey, read},
    observe::{CgroupId, FlowDelta},
    snapshot::merge,
};

const DAY: i64 = 86_400;
const PORT: u16 = 8080;
/// When an API server is away, within a day.
const OUTAGE: std::ops::Range<i64> = 20_000..20_300;

/// How large it is.
struct Size {
    nodes: usize,
    workloads: u32,
    jobs_a_day: u32,
    days: i64,
}

/// A pod as it really was.
#[derive(Clone)]
struct Pod {
    name: String,
    index: u32,
    node: usize,
    address: String,
    cgroup: u64,
    from: i64,
    to: i64,
}

impl Pod {
    fn object(&self) -> String {
        pod("shop", &self.name, self.index, &format!("n{}", self.node), &self.address, &["http:8080"])
    }

    fn key(&self) -> ObjectKey {
        let name = format!("{}-5d9c-{}", self.name, self.index);
        ObjectKey { kind: Kind::Pod, namespace: "shop".to_owned(), name }
    }
}

/// What reaches an agent.
#[derive(Clone)]
enum Event {
    /// A bookmark of its watches.
    Heard,
    /// They broke.
    Interrupted,
    Gone(ObjectKey),
    There(Vec<Object>),
    Cgroup(u64, String),
    NoCgroup(u64),
    Flow(FlowDelta),
    Restart,
}

struct World {
    size: Size,
    /// Free addresses of each node, the last freed on top.
    free: Vec<Vec<u8>>,
    live: BTreeMap<String, Pod>,
    cgroups: u64,
    /// What happens today: `(time, agent, event)`.
    events: Vec<(i64, usize, Event)>,
    truth: BTreeSet<(String, String)>,
}

impl World {
    fn new(size: Size) -> Self {
        let free = (0..size.nodes).map(|_| (2..=250).rev().collect()).collect();
        Self { size, free, live: BTreeMap::new(), cgroups: 0, events: Vec::new(), truth: BTreeSet::new() }
    }

    /// The last node is away every other week.
    fn nodes(&self, day: i64) -> usize {
        self.size.nodes - usize::from(day / 7 % 2 == 1)
    }

    fn is_watched(&self, node: usize, day: i64) -> bool {
        node < self.nodes(day) || node < self.nodes(day - 1)
    }

    /// When an agent hears of what happens then: its API server is away for five minutes now and
    /// then.
    fn heard(&self, node: usize, at: i64) -> i64 {
        let (day, second) = (at / DAY, at % DAY);
        let is_away = self.is_cut_off(node, day) && OUTAGE.contains(&second);
        if is_away { day * DAY + OUTAGE.end } else { at + 1 + node as i64 % 3 }
    }

    /// Whether the node's agent has no API server for a while on that day.
    fn is_cut_off(&self, node: usize, day: i64) -> bool {
        day % 5 == 3 && day as usize % self.size.nodes == node
    }

    /// What the agents' watches say of themselves on a day: a bookmark each minute, but for
    /// outages.
    fn words(&mut self, day: i64) {
        let begin = day * DAY;
        for node in 0..self.size.nodes {
            let is_cut_off = self.is_cut_off(node, day);
            for second in (0..DAY).step_by(60).filter(|second| !is_cut_off || !OUTAGE.contains(second)) {
                self.events.push((begin + second, node, Event::Heard));
            }
            if is_cut_off {
                self.events.push((begin + OUTAGE.start, node, Event::Interrupted));
            }
        }
    }

    fn tell(&mut self, at: i64, event: &Event) {
        for node in 0..self.size.nodes {
            self.events.push((self.heard(node, at), node, event.clone()));
        }
    }

    fn begin(&mut self, name: &str, index: u32, node: usize, at: i64) {
        let host = self.free[node].pop().unwrap();
        self.cgroups += 1;
        let address = format!("10.{}.0.{host}", node + 1);
        let pod = Pod { name: name.to_owned(), index, node, address, cgroup: self.cgroups, from: at, to: i64::MAX };
        self.events.push((at, node, Event::Cgroup(pod.cgroup, cgroup_path(name, index))));
        self.tell(at, &Event::There(read::objects(&pod.object(), "test").unwrap().objects));
        self.live.insert(name.to_owned(), pod);
    }

    fn end(&mut self, name: &str, at: i64) {
        let Some(pod) = self.live.remove(name) else { return };
        self.events.push((at, pod.node, Event::NoCgroup(pod.cgroup)));
        self.tell(at, &Event::Gone(pod.key()));
        let host = pod.address.rsplit_once('.').unwrap().1.parse().unwrap();
        self.free[pod.node].push(host);
    }

    /// A connection, as the agents of both ends see it in the next moment.
    fn call(&mut self, client: &Pod, server: &Pod, at: i64) {
        assert!(client.from <= at && at < client.to && server.from <= at && at < server.to);
        let asks = tcp_client(client.cgroup, &client.address, &server.address, PORT, t(at));
        let answers = tcp_server(server.cgroup, &server.address, &client.address, PORT, t(at));
        self.events.push((at, client.node, Event::Flow(asks)));
        self.events.push((at, server.node, Event::Flow(answers)));
        self.truth.insert((client.name.clone(), server.name.clone()));
    }

    fn call_by_name(&mut self, client: &str, server: &str, at: i64) {
        if client != server
            && let (Some(client), Some(server)) = (self.live.get(client).cloned(), self.live.get(server).cloned())
        {
            self.call(&client, &server, at);
        }
    }

    /// What happens on a day, in order.
    fn day(&mut self, day: i64) -> Vec<(i64, usize, Event)> {
        let (begin, nodes) = (day * DAY, self.nodes(day));
        let index = u32::try_from(day).unwrap();
        let workloads = self.size.workloads;
        let server_of = |w: u32| format!("w{}", (w * 7 + 3) % workloads);
        for w in 0..workloads {
            let (name, at) = (format!("w{w}"), begin + 3_600 + i64::from(w) * 40);
            self.end(&name, at);
            self.begin(&name, index, (w as usize + index as usize) % nodes, at + 3);
            // Before anybody has told of its address.
            self.call_by_name(&name, &server_of(w), at + 4);
        }
        let jobs = if day % 5 == 3 { 20_000 } else { 30_000 };
        for job in 0..self.size.jobs_a_day {
            let (name, at) = (format!("job{day}x{job}"), begin + jobs + i64::from(job) * 18);
            self.begin(&name, 0, job as usize % nodes, at);
            self.call_by_name(&name, "w0", at + 2);
            self.end(&name, at + 15);
        }
        for (round, w) in (0..3).flat_map(|round| (0..workloads).map(move |w| (round, w))) {
            self.call_by_name(&format!("w{w}"), &server_of(w), begin + 70_000 + round * 3_000 + i64::from(w));
        }
        if day % 7 == 6 {
            self.events.extend((0..nodes).map(|node| (begin + 66_000 + node as i64, node, Event::Restart)));
        }
        self.words(day);
        let mut today = std::mem::take(&mut self.events);
        // What changed comes before the word that it was all.
        today.sort_by_key(|(at, _, event)| (*at, matches!(event, Event::Heard)));
        let later = today.partition_point(|(at, ..)| *at < begin + DAY - 60);
        self.events = today.split_off(later);
        today
    }

    fn cluster(&self) -> String {
        let node = |n: usize| {
            format!(
                "---\nkind: Node\nmetadata: {{name: n{n}}}\nspec: {{podCIDR: 10.{0}.0.0/24}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.0.2.{0}}}]}}\n",
                n + 1
            )
        };
        (0..self.size.nodes).map(node).collect()
    }

    fn pods(&self) -> String {
        self.live.values().map(Pod::object).collect()
    }
}

fn list(observer: &mut Observer, cluster: &str, now: i64) {
    for change in lists(cluster) {
        observer.apply(change, t(now));
    }
    take(observer, Event::Heard, now);
}

fn config(node: usize, instance: String, started: i64) -> ObserverConfig {
    ObserverConfig { watched: true, ..ObserverConfig::new(format!("n{node}"), instance, t(started)) }
}

/// One agent's day. It is asked for the time often while flows wait, and else once a minute.
fn live_a_day(agent: &mut Observer, node: usize, world: &World, begin: i64, events: Vec<(i64, Event)>) {
    let mut ticked = begin;
    for (at, event) in events {
        loop {
            let next = ticked + if agent.waiting().is_empty() { 60 } else { 5 };
            if next > at {
                break;
            }
            ticked = next;
            agent.tick(t(ticked));
        }
        if !matches!(event, Event::Restart) {
            take(agent, event, at);
            continue;
        }
        let state = Snapshot::from_json(&agent.snapshot(t(at)).to_json(), "state").unwrap();
        let run = agent.config().run + 1;
        let config = ObserverConfig { run, ..config(node, "next".to_owned(), at + 5) };
        *agent = Observer::restore(config, &state, false).unwrap();
        list(agent, &format!("{}{}", world.cluster(), world.pods()), at + 5);
        for pod in world.live.values().filter(|pod| pod.node == node) {
            take(agent, Event::Cgroup(pod.cgroup, cgroup_path(&pod.name, pod.index)), at + 5);
        }
    }
    agent.tick(t(begin + DAY));
}

fn take(observer: &mut Observer, event: Event, at: i64) {
    match event {
        Event::Gone(key) => observer.apply(Change::Delete(key), t(at)),
        Event::There(objects) => {
            objects.into_iter().for_each(|object| observer.apply(Change::Apply(object), t(at)));
        }
        Event::Cgroup(id, path) => {
            observer.observe(Observation::CgroupCreated { id: CgroupId(id), path, at: t(at) }, t(at));
        }
        Event::NoCgroup(id) => observer.observe(Observation::CgroupRemoved { id: CgroupId(id), at: t(at) }, t(at)),
        Event::Flow(delta) => observer.observe(Observation::Flow(delta), t(at)),
        Event::Heard => {
            for kind in [Kind::Node, Kind::Pod] {
                observer.apply(Change::Heard { kind, at: t(at) }, t(at));
            }
        }
        Event::Interrupted => {
            for kind in [Kind::Node, Kind::Pod] {
                observer.apply(Change::Interrupted { kind }, t(at));
            }
        }
        Event::Restart => unreachable!("told to whoever has the state"),
    }
}

fn name(peer: &Peer) -> String {
    peer.workload().map_or_else(|| peer.to_string(), |workload| workload.name.clone())
}

/// Client and server.
type Edges = BTreeSet<(String, String)>;

/// Lives through it, and gives the edges of the last 14 days, those that are true, and the greatest
/// state of an agent, in bytes, by day.
fn live(size: Size) -> (Edges, Edges, Vec<usize>) {
    let days = size.days;
    let mut world = World::new(size);
    let mut agents: BTreeMap<usize, Observer> = BTreeMap::new();
    let mut last_fortnight = Vec::new();
    let (mut seen, mut truth, mut states) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut yesterday = BTreeSet::new();
    let (mut all, mut missing) = (0, 0);
    for day in 0..days {
        let begin = day * DAY;
        agents.retain(|node, _| world.is_watched(*node, day));
        for node in (0..world.nodes(day)).filter(|node| !agents.contains_key(node)).collect::<Vec<_>>() {
            let config = config(node, format!("n{node} of {day}"), begin);
            let mut observer = Observer::new(ObserverConfig { run: 1, ..config });
            list(&mut observer, &format!("{}{}", world.cluster(), world.pods()), begin);
            agents.insert(node, observer);
        }
        let mut events: BTreeMap<usize, Vec<(i64, Event)>> = BTreeMap::new();
        for (at, node, event) in world.day(day) {
            events.entry(node).or_default().push((at, event));
        }
        let end = begin + DAY;
        // Agents know nothing of each other.
        let mut lives: Vec<_> =
            agents.iter_mut().map(|(node, agent)| (agent, *node, events.remove(node).unwrap_or_default())).collect();
        let half = lives.len() / 2;
        std::thread::scope(|scope| {
            let world = &world;
            for part in [lives.drain(half..).collect::<Vec<_>>(), lives] {
                scope.spawn(move || {
                    part.into_iter().for_each(|(agent, node, events)| live_a_day(agent, node, world, begin, events));
                });
            }
        });
        let epochs: Vec<Snapshot> = agents.values_mut().map(|agent| agent.turn(&[], t(end)).snapshot()).collect();
        states.push(agents.values_mut().map(|agent| agent.snapshot(t(end)).to_json().len()).max().unwrap());
        let today = std::mem::take(&mut world.truth);
        let merged = merge(epochs.clone());
        let of_today: BTreeSet<_> =
            merged.body.edges.iter().map(|e| (name(&e.client.peer), name(&e.server.peer))).collect();
        let invented: Vec<_> =
            of_today.iter().filter(|edge| !today.contains(*edge) && !yesterday.contains(*edge)).collect();
        assert!(invented.is_empty(), "day {day}: {invented:?}");
        let incomplete: BTreeSet<String> = merged.body.coverage.workloads.iter().map(|w| name(&w.peer)).collect();
        all += today.len();
        for (client, server) in today.difference(&of_today) {
            missing += 1;
            let is_explained = incomplete.contains(client) || incomplete.contains(server);
            assert!(is_explained, "day {day}: {client} -> {server} is missing, and nothing says so: {incomplete:?}");
        }
        if day >= days - 14 {
            last_fortnight.extend(epochs);
            truth.extend(today.iter().filter(|(client, _)| client.starts_with('w')).cloned());
        }
        yesterday = today;
    }
    println!("{all} edges of a day each, {missing} of them missing and said to be");
    assert!(missing * 100 < all, "{missing} of {all} are missing");
    let merged = merge(last_fortnight);
    seen.extend(merged.body.edges.iter().map(|e| (name(&e.client.peer), name(&e.server.peer))));
    seen.retain(|(client, _)| client.starts_with('w'));
    (seen, truth, states)
}

fn holds(size: Size) {
    let (seen, truth, states) = live(size);
    assert_eq!(seen, truth, "edges of the last 14 days");
    println!("the greatest state of an agent, bytes by day: {states:?}");
    let settled = states[7..14].iter().max().unwrap();
    let last = states[states.len() - 7..].iter().max().unwrap();
    assert!(*last <= settled + settled / 10, "after the first weeks nothing grows: {settled} to {last} bytes");
}

#[test]
fn what_a_small_cluster_shows_of_a_month_is_true_or_said_to_be_missing_and_nothing_grows() {
    holds(Size { nodes: 3, workloads: 20, jobs_a_day: 24, days: 30 });
}

#[test]
#[ignore = "minutes: `cargo test --release -p guardrail-graph --test quarter -- --ignored --nocapture`"]
fn what_a_cluster_shows_of_a_quarter_is_true_or_said_to_be_missing_and_nothing_grows() {
    holds(Size { nodes: 60, workloads: 400, jobs_a_day: 2_000, days: 91 });
}
