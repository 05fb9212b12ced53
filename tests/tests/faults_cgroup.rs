//! The cgroup tree under somebody else's hands: other programs on the same cgroup, and cgroups that
//! come and go by the thousand.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use guardrail_tests::{
    agent::Agent,
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    bpf::{Hook, Program, Sharing},
    compare::compare,
    lab::{Lab, process::AppProcess},
    small::{cluster, deployment, eventually, eventually_true, go, lab, same, start, truth},
};

const LIMIT: Duration = Duration::from_secs(40);

/// A client that calls a server over TCP and UDP each time it is told to go, and their lab.
fn tcp_and_udp() -> (Vec<AppProcess>, Lab) {
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let client = deployment(&mut c, "client", 8080, 0);
    let address = c.pod(&server).addresses.0;
    let lab = lab(c).unwrap();
    let serve = vec![Serve::tcp(8080), Serve::udp(5300)];
    let calls = vec![
        Call::new(&format!("{address}:8080"), How::Tcp, 10),
        Call::new(&format!("{address}:5300"), How::UdpUnconnected, 10),
    ];
    let processes = start(
        &lab,
        vec![
            (&server, Scenario { serve, ..Scenario::default() }),
            (&client, Scenario { after: calls, ..Scenario::default() }),
        ],
    )
    .unwrap();
    (processes, lab)
}

#[test]
fn other_programs_attached_before_and_after_ours_see_everything_and_so_do_we() {
    if !bins::can_run("other programs on the same cgroup") {
        return;
    }
    let (mut processes, lab) = tcp_and_udp();
    let cgroup = &lab.nodes[0].cgroup;
    let attach = || Hook::ALL.map(|hook| Program::attach(hook, cgroup, Sharing::Multi).unwrap());
    let runs = |of: &[Program; 3]| of.each_ref().map(Program::runs);
    let before = attach();
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let after = attach();
    let earlier = runs(&before);
    go(&mut processes).unwrap();
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    for (hook, (a, b)) in Hook::ALL.iter().zip(runs(&before).iter().zip(runs(&after))) {
        assert!(*a > 0 && b > 0, "{hook:?} ran {a} and {b} times");
    }
    assert!(runs(&before).iter().zip(earlier).all(|(now, then)| *now > then));
    // The agent takes only its own programs with it.
    assert_eq!(agent.terminate().unwrap().code(), Some(0));
    let earlier = [runs(&before), runs(&after)];
    processes[1].go().unwrap();
    processes[1].wait_for_nth("done", 2, Instant::now() + LIMIT).unwrap();
    for (now, then) in [runs(&before), runs(&after)].iter().flatten().zip(earlier.iter().flatten()) {
        assert!(now > then, "{now} runs, {then} before");
    }
}

#[test]
fn a_cgroup_that_somebody_holds_for_himself_is_refused_with_its_path() {
    if !bins::can_run("a cgroup held without multi") {
        return;
    }
    let (_processes, lab) = tcp_and_udp();
    let cgroup = &lab.nodes[0].cgroup;
    for (sharing, at) in
        [(Sharing::None, cgroup.as_path()), (Sharing::Override, cgroup), (Sharing::None, cgroup.parent().unwrap())]
    {
        let holder = Program::attach(Hook::Ingress, at, sharing).unwrap();
        let said = Agent::spawn(&lab, 0, &[]).unwrap().refused().unwrap();
        for hint in ["udp_ingress", "BPF_F_ALLOW_MULTI", &cgroup.display().to_string()] {
            assert!(said.contains(hint), "{sharing:?}: '{hint}' is missing in: {said}");
        }
        // What was attached before the refusal is gone again, and without UDP there is nothing to
        // share.
        let mut agent = Agent::start(&lab, 0, &["--udp", "off"]).unwrap();
        assert_eq!(agent.terminate().unwrap().code(), Some(0));
        drop(holder);
    }
    Agent::start(&lab, 0, &[]).unwrap();
}

/// Makes and removes cgroups below `parent` until told to stop, counting them.
fn churn(parent: &std::path::Path, stop: &AtomicBool, made: &AtomicU64) {
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let path = parent.join(format!("kubepods-burstable-pod{number:08x}_0000_4000_8000_000000000000.slice"));
        fs::create_dir(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        made.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn two_thousand_cgroups_a_second_cost_a_short_lived_pod_neither_its_name_nor_its_edges() {
    if !bins::can_run("a flood of cgroups") {
        return;
    }
    const JOBS: usize = 4;
    let mut c = cluster(&["node-a"]);
    let server = deployment(&mut c, "server", 8080, 0);
    let jobs: Vec<_> = (0..JOBS).map(|i| deployment(&mut c, &format!("job-{i}"), 8080, 0)).collect();
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c).unwrap();
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let _server = start(&lab, vec![(&server, serve)]).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    let parents: Vec<_> = (0..2).map(|i| lab.nodes[0].cgroup.join(format!("flood-{i}.slice"))).collect();
    parents.iter().for_each(|p| fs::create_dir(p).unwrap());
    let (stop, made, began) = (AtomicBool::new(false), AtomicU64::new(0), Instant::now());
    thread::scope(|scope| {
        for parent in &parents {
            scope.spawn(|| churn(parent, &stop, &made));
        }
        // A panic in here must not leave the others running.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for job in &jobs {
                let calls = vec![Call::new(&to, How::Tcp, 5)];
                let mut process = lab
                    .start_in_pod(job, "", Scenario { after: calls, exit_when_done: true, ..Scenario::default() })
                    .unwrap();
                process.wait_for("ready", Instant::now() + LIMIT).unwrap();
                process.go().unwrap();
                process.wait_for("done", Instant::now() + LIMIT).unwrap();
                drop(process);
                lab.remove_pod_cgroup(job).unwrap();
            }
            // Long enough for more than a ring and more than the kernel's list of recent ones.
            while made.load(Ordering::Relaxed) < 8_000 && began.elapsed() < LIMIT {
                thread::yield_now();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    let rate = made.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    eprintln!("{} cgroups made and removed, {rate:.0} a second", made.load(Ordering::Relaxed));
    let truth = truth(&lab).unwrap();
    assert_eq!(truth.edges.len(), JOBS);
    let snapshot = eventually(LIMIT, || agent.snapshot(), |s| same(&compare(s, &truth))).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    let (_, page) = agent.get("/metrics").unwrap();
    for line in page.lines().filter(|l| l.starts_with("guardrail_events_lost_total{") && l.contains(r#"class="edge""#))
    {
        assert!(line.ends_with(" 0"), "{line}");
    }
    eprintln!(
        "cgroup_ring_full: {}",
        agent.metric(r#"guardrail_events_lost_total{reason="cgroup_ring_full",class="hint"}"#).unwrap()
    );
}
