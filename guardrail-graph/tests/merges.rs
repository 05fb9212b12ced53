//! The laws of `merge` over what agents serve: pulls of open epochs, files of closed ones, and what
//! was merged before, in any order and any grouping.

mod common;

use std::collections::BTreeMap;

use common::{Lab, pod, t, tcp_client, tcp_server};
use guardrail_graph::{
    Observation, Observer, ObserverConfig, Snapshot,
    epoch::{End, file},
    observe::LossReason,
    snapshot::{Revision, Source, answer_within, merge, merge_within, span::Span},
};
use proptest::prelude::*;

/// What happens to one of two agents.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A connection from or to this address.
    Flow {
        last: u8,
        serves: bool,
    },
    /// The API server tells that this pod has this address from now on.
    Told {
        index: u32,
        last: u8,
    },
    /// It tells that the pod is gone.
    Gone {
        index: u32,
    },
    /// A node got another label.
    Labelled {
        value: u8,
    },
    Lose,
    Pull,
    /// The epoch ends.
    Turn,
    /// Killed, and on from what was stored at the last of these.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (40u8..44, any::<bool>()).prop_map(|(last, serves)| Op::Flow { last, serves }),
        3 => (0u32..3, 40u8..44).prop_map(|(index, last)| Op::Told { index, last }),
        1 => (0u32..3).prop_map(|index| Op::Gone { index }),
        1 => (0u8..3).prop_map(|value| Op::Labelled { value }),
        1 => Just(Op::Lose),
        4 => Just(Op::Pull),
        1 => Just(Op::Turn),
        2 => Just(Op::Restart),
    ]
}

/// An agent, with what it would find on its disk.
struct Agent {
    lab: Lab,
    node: &'static str,
    run: u32,
    stored: Option<Snapshot>,
}

impl Agent {
    fn new(node: &'static str) -> Self {
        let api = pod("shop", "api", 0, node, "10.99.0.3", &[]);
        let mut lab = Lab::with(node, &[api], |config| config.run = 1);
        lab.pod_cgroup(2, "api", 0);
        Self { lab, node, run: 1, stored: None }
    }

    /// What is served, if anything.
    fn step(&mut self, op: Op, second: i64) -> Option<Snapshot> {
        let lab = self.lab.at(second);
        match op {
            Op::Flow { last, serves } => {
                let (remote, at) = (format!("10.99.0.{last}"), t(second));
                let flow = if serves {
                    tcp_server(2, "10.99.0.3", &remote, 8080, at)
                } else {
                    tcp_client(2, "10.99.0.3", &remote, 5432, at)
                };
                lab.flow(flow);
            }
            Op::Told { index, last } => {
                lab.apply(&pod("shop", "web", index, "node-c", &format!("10.99.0.{last}"), &[]));
            }
            Op::Gone { index } => lab.delete_pod("shop", &format!("web-5d9c-{index}")),
            Op::Labelled { value } => {
                lab.apply(&format!("kind: Node\nmetadata: {{name: node-c, labels: {{pool: p{value}}}}}\n"));
            }
            Op::Lose => {
                let lost = Observation::Lost { reason: LossReason::MapFull, cgroup: None, count: 1, at: t(second) };
                lab.observer.observe(lost, t(second));
            }
            Op::Pull => {
                let pulled = lab.snapshot();
                self.stored = Some(pulled.clone());
                return Some(pulled);
            }
            Op::Turn => {
                let document = lab.observer.turn(&[], t(second));
                let header = file::Header::of(&document, End::Day).unwrap();
                self.stored = None;
                return Some(file::decode(&file::encode(&header, &document)).unwrap().1);
            }
            Op::Restart => {
                let stored = self.stored.as_ref()?;
                self.run += 1;
                let config = ObserverConfig { run: self.run, ..ObserverConfig::new(self.node, "another", t(second)) };
                let observer = Observer::restore(config, stored, false).unwrap();
                self.lab = Lab { observer, now: t(second) };
                self.lab.pod_cgroup(2, "api", 0);
            }
        }
        None
    }
}

/// The highest revision of each epoch.
fn newest(served: &[Snapshot]) -> Vec<Snapshot> {
    let mut newest: BTreeMap<Source, (Revision, &Snapshot)> = BTreeMap::new();
    for snapshot in served {
        let known = &snapshot.body.revisions[0];
        let kept = newest.entry(known.source.clone()).or_insert((known.revision, snapshot));
        if known.revision > kept.0 {
            *kept = (known.revision, snapshot);
        }
    }
    newest.into_values().map(|(_, snapshot)| snapshot.clone()).collect()
}

/// Where two documents that should be one differ.
fn difference(one: &Snapshot, other: &Snapshot) -> Option<String> {
    let texts = [one, other].map(|snapshot| {
        let mut without = snapshot.clone();
        let facts = std::mem::take(&mut without.body.facts);
        let facts = facts.iter().map(|packed| packed.unpacked().to_json());
        format!("{}{}", without.to_json(), facts.collect::<String>())
    });
    let [mut one, mut other] = [texts[0].lines(), texts[1].lines()];
    loop {
        match (one.next(), other.next()) {
            (None, None) => return None,
            (one, other) if one == other => {}
            (one, other) => return Some(format!("{one:?} is not {other:?}")),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_merged_before_the_newest_word_of_each_epoch_counts_whole(
        ops in prop::collection::vec((any::<bool>(), op()), 1..40),
        places in prop::collection::vec(any::<prop::sample::Index>(), 24),
        since in 0i64..60,
    ) {
        let mut agents = [Agent::new("node-a"), Agent::new("node-b")];
        let mut served = Vec::new();
        for (second, (which, op)) in (2..).zip(ops) {
            served.extend(agents[usize::from(which)].step(op, second));
        }
        served.extend(agents.iter_mut().map(|agent| agent.step(Op::Pull, 50).unwrap()));
        let expected = merge(newest(&served));
        // Any two of what there is become one, until one is left; each was in a file.
        let mut left = served.clone();
        for place in places.iter().cycle() {
            if left.len() == 1 {
                break;
            }
            let first = left.swap_remove(place.index(left.len()));
            let second = left.swap_remove(place.index(left.len()));
            left.push(Snapshot::from_json(&merge(vec![first, second]).to_json(), "file").unwrap());
        }
        prop_assert_eq!(difference(&left[0], &expected), None, "one by one");
        prop_assert_eq!(difference(&merge(served.clone()), &expected), None, "at once");
        let again = merge(vec![served[0].clone(), expected.clone()]);
        prop_assert_eq!(difference(&again, &expected), None, "again");
        // What follows is the same for whoever asks no more of it.
        let mut without_facts = expected.clone();
        without_facts.body.facts.clear();
        prop_assert_eq!(difference(&answer_within(vec![expected.clone()], &Span::default()), &without_facts), None, "once and for all");
        let span = Span::new(Some(t(since)), None).unwrap();
        prop_assert_eq!(difference(&merge_within(vec![left.remove(0)], &span), &merge_within(served, &span)), None, "of a span");
    }
}
