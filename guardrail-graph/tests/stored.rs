//! What a base and its log say together, after any history and any end of the agent that wrote
//! them, is what a snapshot said when the last of it was written.

mod common;

use common::{Lab, delta, pod, t};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Protocol, Snapshot, Timestamp,
    epoch::{
        log::{Recorder, Write, base_of},
        state::State,
    },
    observe::{CgroupId, OpenFlow, Role},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// A connection of a pod to another, or to an address elsewhere.
    Flow {
        client: u8,
        server: u8,
        port: u16,
        bytes: u64,
    },
    Outside {
        client: u8,
        address: u8,
    },
    /// A Service's address.
    Service {
        client: u8,
    },
    /// Of a pod that nobody has heard of.
    Unknown {
        address: u8,
    },
    PodCame(u8),
    PodWent(u8),
    Name {
        client: u8,
        address: u8,
    },
    Later(u16),
    /// Everything goes to disk.
    Stored,
    /// The disk was full: what was written last is not there.
    Failed,
    /// The agent was killed while it wrote so much of it, in hundredths, and another goes on.
    Killed(u8),
    /// The epoch ended.
    Turned,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4u8, 0..4u8, 1..4u16, any::<u64>())
            .prop_map(|(client, server, port, bytes)| Step::Flow { client, server, port, bytes: bytes >> 20 }),
        3 => (0..4u8, 1..20u8).prop_map(|(client, address)| Step::Outside { client, address }),
        2 => (0..4u8).prop_map(|client| Step::Service { client }),
        1 => (1..9u8).prop_map(|address| Step::Unknown { address }),
        2 => (0..4u8).prop_map(Step::PodCame),
        2 => (0..4u8).prop_map(Step::PodWent),
        1 => (0..4u8, 1..20u8).prop_map(|(client, address)| Step::Name { client, address }),
        3 => (1..900u16).prop_map(Step::Later),
        6 => Just(Step::Stored),
        1 => Just(Step::Failed),
        1 => (0..100u8).prop_map(Step::Killed),
        1 => Just(Step::Turned),
    ]
}

fn of(index: u8) -> String {
    pod("shop", &format!("w{index}"), index.into(), "node-a", &format!("10.244.1.{}", index + 2), &["http:80"])
}

const SERVICE: &str = "---\nkind: Service\nmetadata: {name: api, namespace: shop}\n\
    spec: {clusterIP: 10.96.0.7, selector: {app: w1}, ports: [{port: 80, targetPort: http}]}\n";

/// An agent, and what it has on disk.
struct Agent {
    lab: Lab,
    recorder: Recorder,
    base: Vec<u8>,
    log: Vec<u8>,
    /// What a file that is written whole each time would have.
    whole: Option<Snapshot>,
}

fn address(index: u8) -> String {
    format!("10.244.1.{}", index + 2)
}

impl Agent {
    fn new() -> Self {
        let pods: Vec<String> = (0..3u8).map(of).chain([SERVICE.to_owned()]).collect();
        let mut lab = Lab::new("node-a", &pods);
        (0..4u8).for_each(|i| lab.pod_cgroup(i.into(), &format!("w{i}"), i.into()));
        Self { lab, recorder: Recorder::default(), base: Vec::new(), log: Vec::new(), whole: None }
    }

    fn flow(&mut self, cgroup: u8, role: Role, (local, remote, port): (&str, &str, u16), bytes: u64) {
        let mut flow = delta(cgroup.into(), role, local, remote, Protocol::Tcp, port, self.lab.now);
        flow.counts.bytes_sent = bytes;
        self.lab.flow(flow);
    }

    /// What is to be written, and what it makes of the files.
    fn files(&mut self) -> (Vec<u8>, Vec<u8>) {
        match self.lab.observer.store(&mut self.recorder, self.lab.now, |_| ()) {
            Write::Nothing => (self.base.clone(), self.log.clone()),
            Write::Append { after, bytes } => {
                assert_eq!(after, self.log.len() as u64);
                assert!(after + bytes.len() as u64 <= (self.base.len() as u64).max(64 << 10), "it is folded before");
                (self.base.clone(), [&self.log[..], &bytes].concat())
            }
            Write::Base(bytes) => (bytes, Vec::new()),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Flow { client, server, .. } if client == server => {}
            Step::Flow { client, server, port, bytes } => {
                let (c, s) = (address(client), address(server));
                self.flow(client, Role::Client, (&c, &s, port), bytes);
                self.flow(server, Role::Server, (&s, &c, port), bytes / 2);
            }
            Step::Outside { client, address: at } => {
                self.flow(client, Role::Client, (&address(client), &format!("203.0.113.{at}"), 443), 7);
            }
            Step::Service { client } => self.flow(client, Role::Client, (&address(client), "10.96.0.7", 80), 9),
            Step::Unknown { address: at } => {
                self.flow(1, Role::Client, (&address(1), &format!("10.244.2.{at}"), 80), 3);
            }
            Step::PodCame(index) => self.lab.apply(&of(index)),
            Step::PodWent(index) => self.lab.delete_pod("shop", &format!("w{index}-5d9c-{index}")),
            Step::Name { client, address: at } => {
                let answer = Observation::DnsAnswer {
                    cgroup: CgroupId(client.into()),
                    name: format!("n{at}.example.org"),
                    addresses: vec![common::ip(&format!("203.0.113.{at}"))],
                    at: self.lab.now,
                };
                self.lab.observer.observe(answer, self.lab.now);
            }
            Step::Later(seconds) => {
                let now = self.lab.now.after(std::time::Duration::from_secs(seconds.into()));
                self.lab.now = now;
                self.lab.observer.tick(now);
            }
            Step::Stored => {
                let whole = self.lab.observer.snapshot(self.lab.now);
                (self.base, self.log) = self.files();
                self.whole = Some(whole);
                self.is_whole(self.lab.now);
            }
            Step::Failed => {
                let _ = self.files();
                self.recorder.forget();
            }
            Step::Killed(hundredths) => self.killed(hundredths),
            Step::Turned => {
                let _ = self.lab.observer.turn(&[], self.lab.now);
                self.recorder.forget();
                (self.base, self.log) = self.files();
                self.whole = Some(self.lab.observer.snapshot(self.lab.now));
            }
        }
    }

    fn killed(&mut self, hundredths: u8) {
        let (base, log) = self.files();
        if base == self.base && log.len() > self.log.len() {
            let cut = self.log.len() + (log.len() - self.log.len()) * usize::from(hundredths) / 100;
            self.log = log[..cut].to_vec();
        }
        // Before anything was on disk nothing is to be found.
        let Some(whole) = &self.whole else { return self.recorder.forget() };
        let state = State::read(&self.base, &self.log).unwrap();
        assert!(state.cut().is_none_or(|cut| cut.is_torn));
        let until = whole.body.window.to.unwrap();
        let stored = state.document(until).unwrap().snapshot();
        assert_eq!(without_revisions(stored), without_revisions(whole.clone()), "cut");
        let config = ObserverConfig::new("node-a", "next", self.lab.now);
        let mut observer = Observer::restore(config.clone(), &state.facts(until).unwrap(), false).unwrap();
        let mut other = Observer::restore(config, whole, false).unwrap();
        assert_eq!(observer.snapshot(self.lab.now), other.snapshot(self.lab.now), "it goes on as from a whole file");
        observer.continue_with(&state).unwrap();
        self.lab.observer = observer;
        self.recorder = Recorder::default();
        let pods: Vec<String> = (0..3u8).map(of).chain([SERVICE.to_owned()]).collect();
        self.lab.apply(&format!("{}{}", common::CLUSTER, pods.concat()));
        (0..4u8).for_each(|i| self.lab.pod_cgroup(i.into(), &format!("w{i}"), i.into()));
    }

    /// What is on disk is what the snapshot says, also as of a time to which nothing happens.
    fn is_whole(&self, until: Timestamp) {
        let state = State::read(&self.base, &self.log).unwrap();
        assert_eq!((state.at() <= until, state.cut()), (true, None));
        let stored = state.document(until).unwrap().snapshot();
        assert_eq!(Some(without_revisions(stored)), self.whole.clone().map(without_revisions));
    }
}

fn without_revisions(mut snapshot: Snapshot) -> Snapshot {
    snapshot.body.revisions.clear();
    snapshot
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_base_and_its_log_say_what_a_file_that_is_written_whole_would(steps in prop::collection::vec(step(), 1..60)) {
        let mut agent = Agent::new();
        for step in steps {
            agent.take(step);
        }
        agent.take(Step::Stored);
    }
}

#[test]
fn an_idle_node_writes_nothing_whatever_is_open_and_its_state_ends_later() {
    let mut agent = Agent::new();
    for step in [Step::Flow { client: 0, server: 1, port: 80, bytes: 5 }, Step::Service { client: 2 }] {
        agent.take(step);
    }
    let open = OpenFlow { flow: delta(0, Role::Client, &address(0), &address(1), Protocol::Tcp, 80, t(1)), open: 2 };
    agent.lab.observer.turn(&[open], t(100));
    agent.lab.now = t(100);
    agent.take(Step::Stored);
    let before = (agent.base.clone(), agent.log.clone());
    for minute in 2..120 {
        agent.lab.at(minute * 60);
        agent.take(Step::Stored);
        assert_eq!((&agent.base, &agent.log), (&before.0, &before.1), "minute {minute}");
    }
    let last = agent.whole.unwrap().body.edges.iter().map(|edge| edge.last_seen).max();
    assert_eq!(last, Some(t(119 * 60)), "what is open lasts");
}

const SEEDS: [&[u8]; 3] = [
    include_bytes!("../../fuzz/seeds/state/base"),
    include_bytes!("../../fuzz/seeds/state/log"),
    include_bytes!("../../fuzz/seeds/state/nodes"),
];

#[test]
fn the_seeds_of_the_fuzz_target_are_states_of_this_version() {
    for (seed, (edges, nodes)) in SEEDS.into_iter().zip([(1, 0), (2, 0), (1, 4)]) {
        let (length, files) = seed.split_first_chunk().unwrap();
        let (base, log) = files.split_at(usize::try_from(u32::from_le_bytes(*length)).unwrap());
        let state = State::read(base, log).unwrap();
        assert_eq!((state.cut(), log.is_empty()), (None, edges == 1));
        let body = state.document(state.at()).unwrap().snapshot().body;
        assert_eq!((body.edges.len(), body.nodes.len()), (edges, nodes));
    }
    let operations = include_bytes!("../../fuzz/seeds/state/operations-nodes");
    let state = State::read(&base_of(operations), &[]).unwrap();
    let nodes = state.facts(state.at()).unwrap().body.nodes;
    let told: Vec<_> = nodes.iter().map(|node| (&*node.name, node.described.labels.get("pool"))).collect();
    assert_eq!(told, [("node-b", Some("x")), ("win", Some("x"))]);
}
