//! The lab itself, without guardrail: it must be sound before it may judge anything.

use std::{collections::BTreeSet, fs, time::Instant};

use guardrail_tests::{
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    lab::{Lab, cgroup, cleanup, plane::Sidecar},
    shop::Shop,
    small::{cluster, deployment, lab, start},
};

#[test]
fn the_shop_makes_the_same_true_edges_with_every_seed_and_leaves_nothing_behind() {
    if !bins::can_run("the shop without an agent") {
        return;
    }
    let app = bins::find("guardrail-lab-app");
    let mut all = BTreeSet::new();
    for seed in [1, 2] {
        let begin = Instant::now();
        let mut shop = Shop::start(&app, &["node-a", "node-b"], seed).unwrap();
        let started = begin.elapsed();
        shop.run().unwrap();
        let truth = shop.truth().unwrap();
        eprintln!("seed {seed}: started in {started:?}, done after {:?}, {} edges", begin.elapsed(), truth.edges.len());
        for (edge, evidence) in &truth.edges {
            eprintln!(
                "  {edge} opened {} found {} via {:?} families {:?}",
                evidence.opened, evidence.found, evidence.via, evidence.families
            );
        }
        assert!(truth.edges.len() >= 30, "{} edges", truth.edges.len());
        assert_eq!(truth.failed.len(), 2, "{:?}", truth.failed.keys());
        assert_eq!(truth.multicast.len(), 1);
        assert!(!truth.edges.keys().any(|e| e.server.ends_with("checkout-v2")));
        all.insert(truth.edges.keys().cloned().collect::<Vec<_>>());
        let name = shop.lab.name.clone();
        shop.stop().unwrap();
        drop(shop);
        assert!(!cleanup::cgroup_directory(&name).unwrap().exists());
        assert!(!cleanup::temporary_directory(&name).exists());
    }
    assert_eq!(all.len(), 1, "seeds change the schedule, not the edges");
}

#[test]
fn a_process_whose_connections_from_before_the_agent_fail_is_never_ready() {
    if !bins::can_run("a client without its server") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let client = deployment(&mut c, "client", 8080, 0);
    let nobody = deployment(&mut c, "nobody", 8080, 0);
    let call = Call::new(&format!("{}:8080", c.pod(&nobody).addresses.0), How::Held, 1);
    let lab = lab(c).unwrap();
    let error = start(&lab, vec![(&client, Scenario { before: vec![call], ..Scenario::default() })])
        .expect_err("nobody serves");
    assert_eq!(error.to_string(), format!("{client} ended before it was ready"));
}

#[test]
fn a_data_plane_is_a_few_lines_and_carries_what_pods_send() {
    if !bins::can_run("a lab on a data plane of its own") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let call = Call::new(&format!("{}:8080", c.pod(&server).addresses.0), How::Held, 1);
    let lab = Lab::start_on(Sidecar { inbound: 15006, outbound: None }, c, &bins::find("guardrail-lab-app")).unwrap();
    let proxy = Scenario { serve: vec![Serve::tcp(15006)], ..Scenario::default() };
    let _server = start(&lab, vec![(&server, proxy)]).unwrap();
    let _client = start(&lab, vec![(&client, Scenario { before: vec![call], ..Scenario::default() })])
        .expect("what was sent to 8080 arrives at 15006");
}

#[test]
fn what_a_crashed_lab_left_is_removed_by_the_next_one() {
    if !bins::can_run("removal of leftovers") {
        return;
    }
    // A process number that no process has, with any start time.
    let name = format!("{}4194999-1-0", cleanup::PREFIX);
    let nested = cgroup::mount().unwrap().join(&name).join("node-a/kubepods");
    fs::create_dir_all(&nested).unwrap();
    fs::create_dir_all(cleanup::temporary_directory(&name).join("state")).unwrap();
    let own = cleanup::claim_name().unwrap();
    fs::create_dir_all(cleanup::temporary_directory(&own)).unwrap();
    cleanup::remove_leftovers().unwrap();
    assert!(!cleanup::cgroup_directory(&name).unwrap().exists());
    assert!(!cleanup::temporary_directory(&name).exists());
    assert!(cleanup::temporary_directory(&own).exists(), "a living owner's things stay");
    cleanup::remove(&own).unwrap();
}
