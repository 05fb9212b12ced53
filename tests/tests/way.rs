//! The whole way: from the first plan to a closed workload, an unknown caller, an exception and its
//! end; on real packets (docs/lifecycle.md).

use std::fs;

use guardrail_tests::{
    agent::Agent,
    bins,
    shop::Shop,
    small,
    way::{self, Ends, Step},
};

/// Without white space: tables wrap where they must.
fn flat(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn from_the_first_plan_to_the_end_of_an_exception() {
    if !bins::can_run("the whole way") {
        return;
    }
    let mut shop = Shop::start(&bins::find("guardrail-lab-app"), &["node-a"], 5).unwrap();
    let agent = Agent::start(&shop.lab, 0, &[]).unwrap();
    shop.run().unwrap();
    small::eventually_true(&agent, &shop.truth().unwrap()).unwrap();
    let directory = shop.lab.directory.join("way");
    let mut steps = Vec::new();
    way::walk(&shop.lab, &agent, &directory, &Ends::of_shop(&shop), &mut |step| {
        steps.push(step.clone());
        Ok(())
    })
    .unwrap();
    let said: Vec<(&str, String)> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Command { line, stdout, stderr, .. } => {
                Some((line.split(' ').nth(1).unwrap(), flat(&format!("{stdout}{stderr}"))))
            }
            _ => None,
        })
        .collect();
    let of = |command: &str, nth: usize| {
        let all: Vec<&String> = said.iter().filter(|(name, _)| *name == command).map(|(_, said)| said).collect();
        all[nth]
    };
    let has = |said: &str, words: &[&str]| words.iter().for_each(|w| assert!(said.contains(&flat(w)), "{w}: {said}"));
    has(of("status", 0), &["data constrain open constrain", "1 sensitive workload open"]);
    has(of("drift", 0), &["GD001 denied-flow", "ops/Deployment/metrics->data/StatefulSet/db:5432/TCP was observed"]);
    // In force now: nothing is left to do but what the plan leaves open.
    assert!(!of("status", 1).contains("sensitiveworkloadopen"), "{}", of("status", 1));
    // Nobody else connects anew meanwhile, so it is likely only.
    has(of("blocked", 0), &["likely", "ops/Deployment/metrics", "data/StatefulSet/db", "5432/TCP", "unanswered"]);
    has(
        of("unblock", 0),
        &[
            "The smallest rule that opens it",
            "It opens nothing else.",
            "Written: exception metrics-db-5432 at guardrail.yaml",
        ],
    );
    has(
        of("drift", 1),
        &["GD023 exception-over", "GD025 exception-left", "exception metrics-db-5432 of team-ops ended 1 hour"],
    );
    let names: Vec<String> = fs::read_dir(directory.join("policies"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|name| name.contains("guardrail-exception")), "{names:?}");
    // What it let through is no reason for a rule that stays.
    let allow = fs::read_to_string(directory.join("policies/data.guardrail-allow-statefulset-db.yaml")).unwrap();
    assert!(!allow.contains("metrics"), "{allow}");
    // The shop still works under what is in force.
    shop.run_again(1).unwrap();
    small::eventually_true(&agent, &shop.truth().unwrap()).unwrap();
}
