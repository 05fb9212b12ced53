//! How long export and proof take: 10,000 edges over 1,000 workloads in 50 namespaces. Prints one
//! line of figures; started by `cargo xtask bench policy`.

use std::{collections::BTreeSet, time::Instant};

use guardrail_graph::snapshot::Side;
use guardrail_policy::{
    emit,
    export::export,
    generate::{Options, Phase, plan_for},
    prove::prove,
};

mod synthetic;

use synthetic::{Size, peak_memory_mib};

fn main() {
    let size = Size { workloads: 1_000, namespaces: 50, edges: 10_000, nodes: 20 };
    let snapshot = size.snapshot(&BTreeSet::from([Side::Client, Side::Server]), 0);
    for (phase, egress) in [(Phase::DefaultDeny, false), (Phase::DefaultDeny, true), (Phase::Constrain, false)] {
        let mut options = Options::new(phase);
        options.egress = egress;
        let before = Instant::now();
        let generated = export(&snapshot, &options);
        let took = before.elapsed();
        assert!(generated.problems.is_empty(), "{:?}", generated.problems);
        let before = Instant::now();
        let decision = plan_for(&snapshot, &options);
        let planned = before.elapsed();
        let before = Instant::now();
        let files = emit::policies(&decision.plan, &options, &decision.stopped);
        let printed = before.elapsed();
        let before = Instant::now();
        let policies = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let proof = prove(&snapshot, &options, &decision, policies);
        let proven = before.elapsed();
        assert!(proof.problems.is_empty());
        println!(
            "export {phase}{}: {} ms (plan {}, print {}, prove {}); {} policies, {} edges and {} pairs judged, peak memory {} MiB",
            if egress { " with egress" } else { "" },
            took.as_millis(),
            planned.as_millis(),
            printed.as_millis(),
            proven.as_millis(),
            generated.plan.policies.len(),
            generated.proof.edges_judged,
            generated.proof.pairs_judged,
            peak_memory_mib().map_or_else(|| "?".to_owned(), |m| m.to_string()),
        );
    }
}
