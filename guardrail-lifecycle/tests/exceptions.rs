//! Exceptions of a plan in an export of the shop: one that has ended never appears.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use guardrail_graph::{Snapshot, Timestamp};
use guardrail_lifecycle::{
    export::{aim, declare, open},
    plan,
};
use guardrail_policy::{
    exception,
    export::export,
    generate::{Options, Phase},
};
use proptest::{collection::vec, prelude::*, sample::select};

fn shop() -> Snapshot {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guardrail-cli/tests/data/shop.json");
    Snapshot::from_json(&fs::read_to_string(path).unwrap(), "shop.json").unwrap()
}

const WORKLOADS: [&str; 4] =
    ["shop/Deployment/mailer", "shop/Deployment/frontend", "shop/Deployment/cart", "data/StatefulSet/postgres"];
/// Both ends of every exception, in hours after this time.
const START: &str = "2026-03-01T12:00:00Z";

/// Who, to whom, port, hours until the end, whether it is another environment's.
type Drawn = (&'static str, &'static str, u16, u64, bool);

fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
    let one = (
        select(&WORKLOADS[..]),
        select(&WORKLOADS[..]),
        select(&[22, 5432, 8080][..]),
        0..20u64,
        prop::bool::weighted(0.2),
    );
    vec(one, 1..6)
}

/// `PROPTEST_CASES` sets the number of worlds.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn one_that_has_ended_never_appears_and_one_that_has_not_is_written_or_told_of(
        all in drawn(),
        hours in 0..20u64,
        phase in select(&["constrain", "default-deny"][..]),
    ) {
        let start: Timestamp = START.parse().unwrap();
        let at = |hours: u64| start.after(Duration::from_hours(hours));
        let mut text = format!("apiVersion: guardrail.dev/v1alpha1\nkind: Plan\nspec:\n  environments:\n    production: {{phase: {phase}, egress: true, gates: {{window: 0s, coverage: 0}}}}\n    staging: {{}}\n  exceptions:\n");
        for (index, (from, to, port, end, is_elsewhere)) in all.iter().enumerate() {
            let where_to = if *is_elsewhere { ", environments: [staging]" } else { "" };
            writeln!(text, "  - {{id: e{index}, from: {from}, to: {to}, ports: [{port}], expires: {}, reason: r, owner: o{where_to}}}", at(*end)).unwrap();
        }
        let plan = plan::read("guardrail.yaml", text.as_bytes()).unwrap();
        let (snapshot, now) = (shop(), at(hours));
        let mut options = Options::new(Phase::Observe);
        options.accept_inferred = true;
        declare(&mut options, &plan, now);
        aim(&mut options, &snapshot, plan.environment("production").unwrap());
        open(&mut options, &plan, "production", now);
        let exported = export(&snapshot, &options);
        let is_open = |index: usize| at(all[index].3) > now && !all[index].4;
        for (name, text) in &exported.files {
            let named = name.split_once('.').and_then(|(_, rest)| exception::named(rest.strip_suffix(".yaml")?));
            if let Some((id, end)) = named {
                let index: usize = id[1..].parse().unwrap();
                prop_assert!(end > now && end == at(all[index].3) && is_open(index), "{}", name);
                prop_assert!(text.contains(&format!("guardrail.dev/expires: \"{end}\"")), "{}", text);
            }
        }
        for index in 0..all.len() {
            let told = exported.exceptions.iter().filter(|side| side.id == format!("e{index}")).count();
            prop_assert_eq!(told, if is_open(index) { 2 } else { 0 }, "e{}", index);
        }
    }
}
