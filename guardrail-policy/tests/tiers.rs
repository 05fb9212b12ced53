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
    explain::Question,
    model::{Direction, Protocol},
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

/// The rule that an explanation suggests, added to its policy, allows the connection. Whether there
/// was one.
fn remedy(world: &World, evaluator: &Evaluator, side: Side, flow: Flow<'_>) -> Result<bool, TestCaseError> {
    let direction = if side == Side::Ingress { Direction::Ingress } else { Direction::Egress };
    let protocol = Protocol::of_flow(flow.protocol).unwrap();
    let (src, dst) = (evaluator.end(flow.src).unwrap(), evaluator.end(flow.dst).unwrap());
    let question = Question { src: (&src, flow.src), dst: (&dst, flow.dst), protocol, port: flow.port };
    let explanation = evaluator.explain(&question);
    let explained = explanation.sides.iter().find(|s| s.direction == direction).unwrap();
    prop_assert!(!explained.allowed);
    // Conditions of other policies narrow what a rule for pods says.
    let requires = serde_json::to_string(&world.policies).unwrap().contains("Requires");
    let Some(smallest) = explained.smallest.as_ref().filter(|_| !requires) else { return Ok(false) };
    let mut changed = world.clone();
    let form = evaluator.forms().iter().find(|form| form.key() == smallest.policy).unwrap();
    let policy = changed.policies.iter_mut().find(|p| p["metadata"]["name"] == form.name.as_str()).unwrap();
    let spec = match smallest.section {
        Some(section) => &mut policy["specs"][section as usize],
        None => &mut policy["spec"],
    };
    let rule: Vec<serde_json::Value> = serde_saphyr::from_str(&smallest.yaml).unwrap();
    let list = &mut spec[direction.field()];
    if list.is_null() {
        *list = json!([]);
    }
    let at = smallest.before.map_or(0, |before| before as usize - 1);
    list.as_array_mut().unwrap().splice(at..at, rule);
    let changed = compile(&changed);
    let verdict =
        changed.evaluate(&changed.end(flow.src).unwrap(), &changed.end(flow.dst).unwrap(), protocol, flow.port);
    let now = if side == Side::Ingress { &verdict.ingress } else { &verdict.egress };
    // A deny of which nobody can tell whom it matches still stands against it.
    prop_assert!(
        !now.denies(),
        "{:?} of {:?}: {:?} after {:?}\n{:?}\n{}",
        side,
        flow,
        now,
        smallest,
        world.cilium,
        serde_json::to_string(&world.policies).unwrap()
    );
    Ok(true)
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
        let mut remedied = 0;
        for _ in 0..FLOWS {
            let (src, dst) = (draw.one(&ends), draw.one(&ends));
            let protocol = draw.one(&worlds::PROTOCOLS);
            let port = if protocol.starts_with("ICMP") { draw.one(&worlds::TYPES) } else { draw.one(&worlds::PORTS) };
            if stays_on_a_node(&evaluator, &src, &dst) {
                continue;
            }
            let (a, b) = (evaluator.end(&src).unwrap(), evaluator.end(&dst).unwrap());
            let known = Protocol::of_flow(protocol).unwrap();
            let verdict = evaluator.evaluate(&a, &b, known, port);
            let flow = Flow { src: &src, dst: &dst, protocol, port };
            for (side, actual) in [(Side::Egress, &verdict.egress), (Side::Ingress, &verdict.ingress)] {
                let (expected, guessed) = world.judge(side, flow);
                let actual_answer = match () {
                    () if actual.allows() => Answer::Allow,
                    () if actual.denies() => Answer::Deny,
                    () => Answer::Unproven,
                };
                if actual.denies() && remedied < 1 {
                    remedied += usize::from(remedy(&world, &evaluator, side, flow)?);
                }
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
