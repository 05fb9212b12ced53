//! The compiled evaluator and a naive one agree on random clusters with policies of all dialects
//! (docs/semantics.md, the rules for Cilium's kinds and for tiers).
//!
//! `PROPTEST_CASES` sets the number of worlds; the second tier of `cargo xtask test` asks for more.

#[path = "tiers/naive.rs"]
mod naive;
#[path = "tiers/worlds.rs"]
mod worlds;

use guardrail_policy::{
    evaluate::{CiliumOptions, Cluster, Dataplane, Evaluator},
    read::{Expect, Reader},
};
use naive::{Answer, Flow, Side, World};
use proptest::{collection::vec, prelude::*};
use serde_json::json;
use worlds::Choices;

/// Connections that are asked about in each world.
const FLOWS: usize = 40;

/// The world as the crate reads it: one text with all objects.
fn compile(world: &World) -> Evaluator {
    let list = |items: Vec<&serde_json::Value>| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    let text = list(world.objects.iter().chain(&world.policies).collect());
    let mut reader = Reader::new();
    reader.add("world.json", text.as_bytes(), Expect::Anything);
    let set = reader.finish().unwrap_or_else(|e| panic!("{e}\n{text}"));
    let text = list(world.objects.iter().collect());
    let objects = guardrail_graph::inventory::read::objects(&text, "world.json").unwrap().objects;
    let cluster =
        Cluster::from_objects(&objects).with_facts(&set.facts).with_names(world.names.clone(), world.all_names);
    let dataplane = match &world.cilium {
        Some(options) => Dataplane::Cilium(CiliumOptions::from_keys(options).unwrap()),
        None => Dataplane::Kubernetes,
    };
    let refused: Vec<_> = set.forms.iter().flat_map(|form| dataplane.refuses(form)).collect();
    assert!(refused.is_empty(), "{refused:?}");
    Evaluator::mixed(cluster, set.policies, set.forms, &dataplane)
}

/// Both ends are one node: no policy has a say about what never leaves it.
fn stays_on_a_node(evaluator: &Evaluator, src: &str, dst: &str) -> bool {
    let ends = [src, dst].map(|end| evaluator.end(end).unwrap());
    ends.iter().all(guardrail_policy::evaluate::End::is_node)
}

/// Few worlds take seconds without optimisation; a failing one is not shrunk for long.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    ProptestConfig { cases, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_naive_and_the_compiled_evaluator_agree_on_all_dialects(numbers in vec(any::<u16>(), 2_000), picks in vec(any::<u16>(), 4 * FLOWS)) {
        let mut draw = Choices::new(&numbers);
        let (world, ends) = worlds::world(&mut draw);
        let evaluator = compile(&world);
        let mut draw = Choices::new(&picks);
        for _ in 0..FLOWS {
            let (src, dst) = (draw.one(&ends), draw.one(&ends));
            let protocol = draw.one(&worlds::PROTOCOLS);
            let port = if protocol.starts_with("ICMP") { draw.one(&worlds::TYPES) } else { draw.one(&worlds::PORTS) };
            if stays_on_a_node(&evaluator, &src, &dst) {
                continue;
            }
            let (a, b) = (evaluator.end(&src).unwrap(), evaluator.end(&dst).unwrap());
            let known = guardrail_policy::model::Protocol::of_flow(protocol).unwrap();
            let verdict = evaluator.evaluate(&a, &b, known, port);
            let flow = Flow { src: &src, dst: &dst, protocol, port };
            for (side, actual) in [(Side::Egress, &verdict.egress), (Side::Ingress, &verdict.ingress)] {
                let (expected, guessed) = world.judge(side, flow);
                let actual_answer = match () {
                    () if actual.allows() => Answer::Allow,
                    () if actual.denies() => Answer::Deny,
                    () => Answer::Unproven,
                };
                // To be less sure than one could be is right, where something is open at all.
                let careful = actual_answer == Answer::Unproven && guessed;
                prop_assert!(
                    actual_answer == expected || careful,
                    "{:?} of {:?}: expected {:?}, got {:?}\nnames {:?} {}\noptions {:?}\n{}\n{}",
                    side, flow, expected, actual, world.names, world.all_names, world.cilium,
                    serde_json::to_string(&world.policies).unwrap(), serde_json::to_string(&world.objects).unwrap(),
                );
            }
        }
    }
}
