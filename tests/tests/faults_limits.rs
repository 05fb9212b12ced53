//! The agent's own limits: no file descriptor or no memory is left, or it does not run for a while.

use std::{
    fs,
    net::TcpStream,
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use guardrail_tests::{
    agent::{Agent, LISTEN},
    app::scenario::{Call, How, Scenario, Serve},
    bins,
    compare::compare,
    lab::{bpffs::BpfFs, wait_until},
    small::{
        base, cluster, deployment, eventually, eventually_true, go, lab, pair, pair_edge, same, start, state, truth,
    },
    trouble,
};

const LIMIT: Duration = Duration::from_secs(40);

/// Descriptors that the agent has.
fn descriptors(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.pid())).map_or(0, Iterator::count)
}

#[test]
fn without_a_file_descriptor_it_goes_on_observing_neither_spins_nor_forgets_and_recovers() {
    if !bins::can_run("no file descriptor is left") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let mut used = 0;
    {
        let agent = Agent::start(&lab, 0, &[]).unwrap();
        used = used.max(descriptors(&agent));
    }
    // Room for a few connections only: far fewer than the agent would take at once.
    let limit = used + 12;
    let agent = Agent::start_prepared(&lab, 0, &["--state-interval", "1"], |command, _| {
        trouble::few_descriptors(command, limit as u64);
        Ok(())
    })
    .unwrap();
    let failures = |agent: &Agent| {
        let of = |what: &str| agent.metric(&format!("guardrail_{what}_failures_total")).unwrap();
        of("state") + of("export")
    };
    assert_eq!(failures(&agent), 0.0);
    wait_until(LIMIT, "the first state", || state(&agent.state_dir).ok()).unwrap();
    // Clients that connect and say nothing, many more than there is room for.
    let connect = || (0..60).map(|_| TcpStream::connect(LISTEN).unwrap()).collect::<Vec<_>>();
    let pile = lab.nodes[0].netns.run(connect);
    wait_until(LIMIT, "every descriptor is in use", || (descriptors(&agent) >= limit - 1).then_some(())).unwrap();
    let (cpu, began) = (agent.cpu_time().unwrap(), Instant::now());
    go(&mut processes).unwrap();
    // The cgroup tree is overrun while it cannot be read: the pods that live keep their names.
    agent.signal(libc::SIGSTOP);
    for number in 0..1000 {
        let path = lab.nodes[0].cgroup.join(format!("flood-{number}.slice"));
        fs::create_dir(&path).unwrap();
        fs::remove_dir(&path).unwrap();
    }
    agent.signal(libc::SIGCONT);
    wait_until(LIMIT, "a write has failed", || agent.said().contains("Too many open files").then_some(()))
        .unwrap_or_else(|e| panic!("{e}\n{}", agent.said()));
    while began.elapsed() < Duration::from_secs(3) {
        std::thread::yield_now();
    }
    let busy = (agent.cpu_time().unwrap() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    assert!(busy < 0.5, "{:.0} % of a CPU while clients wait in vain", busy * 100.0);
    drop(pile);
    processes[1].go().unwrap();
    processes[1].wait_for_nth("done", 2, Instant::now() + LIMIT).unwrap();
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    assert!(failures(&agent) > 0.0, "{}", agent.said());
    wait_until(LIMIT, "the state is whole again", || {
        let edge = pair_edge(&state(&agent.state_dir).ok()?).ok()?;
        (edge["opened"] == 20).then_some(())
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", agent.said()));
}

#[test]
fn too_few_file_descriptors_to_start_are_refused_with_one_sentence_and_the_state_stays() {
    if !bins::can_run("too few file descriptors") {
        return;
    }
    let (_processes, lab) = pair().unwrap();
    let mut agent = Agent::start(&lab, 0, &[]).unwrap();
    let directory = agent.state_dir.clone();
    assert!(agent.terminate().unwrap().success());
    let state = base(&directory).unwrap();
    let before = fs::read(&state).unwrap();
    // Each number ends the start at another place; one of them where the state is opened.
    for limit in 8..=24 {
        let agent = Agent::spawn_prepared(&lab, 0, &[], |command, _| {
            trouble::few_descriptors(command, limit);
            Ok(())
        });
        let said = agent.unwrap().refused().unwrap_or_else(|e| panic!("with {limit}: {e:#}"));
        assert!(said.contains("Too many open files") || said.contains("os error 24"), "with {limit}: {said}");
        assert_eq!(fs::read(&state).unwrap(), before, "with {limit}: {said}");
    }
}

/// What a suspended agent cannot see in time must be found afterwards: new flows by the thousand,
/// pods that came and went, names that were asked for.
#[test]
fn an_agent_that_is_suspended_for_30_s_under_load_loses_no_edge_and_no_pod_that_came_and_went_meanwhile() {
    const TARGETS: u32 = 6_000;
    const SUSPENDED: Duration = Duration::from_secs(30);
    if !bins::can_run("a suspended agent") {
        return;
    }
    let mut c = cluster(&["node-a"]);
    let crawler = deployment(&mut c, "crawler", 8080, 0);
    let server = deployment(&mut c, "server", 8080, 0);
    let steady = deployment(&mut c, "steady", 8080, 0);
    let jobs: Vec<_> = (0..3).map(|i| deployment(&mut c, &format!("job-{i}"), 8080, 0)).collect();
    let to = format!("{}:8080", c.pod(&server).addresses.0);
    let lab = lab(c).unwrap();
    let everything = Scenario { serve: vec![Serve::tcp(443)], ..Scenario::default() };
    let internet = lab.start_on_internet("everything", everything).unwrap();
    internet.wait_for("ready", Instant::now() + LIMIT).unwrap();
    let flood = (0..2u32).map(|part| {
        let first = u32::from(std::net::Ipv4Addr::new(100, 64, 0, 0)) + part * TARGETS / 2;
        let address = std::net::Ipv4Addr::from(first);
        let mut call = Call::new(&format!("{address}:443"), How::Tcp, TARGETS / 2).pause(0, 0).timeout(10_000);
        call.spread = TARGETS / 2;
        call.payload_bytes = (1, 1);
        call
    });
    let serve = Scenario { serve: vec![Serve::tcp(8080)], ..Scenario::default() };
    let calls = Scenario { after: flood.collect(), ..Scenario::default() };
    // Some 28 s of calls, beside the flood.
    let all_the_time = Scenario { after: vec![Call::new(&to, How::Tcp, 700).pause(30, 50)], ..Scenario::default() };
    let mut processes = start(&lab, vec![(&server, serve), (&crawler, calls), (&steady, all_the_time)]).unwrap();
    let agent = Agent::start(&lab, 0, &[]).unwrap();
    agent.signal(libc::SIGSTOP);
    let began = Instant::now();
    processes.iter_mut().for_each(|process| process.go().unwrap());
    // 6,000 hints of 64 bytes fill a ring of 256 KiB, and 1,000 cgroups of some 700 bytes theirs;
    // the pods come in between.
    for (number, job) in jobs.iter().enumerate() {
        for flood in 0..350 {
            let path = lab.nodes[0].cgroup.join(format!("flood-{number}-{flood}.slice"));
            fs::create_dir(&path).unwrap();
            fs::remove_dir(&path).unwrap();
        }
        let scenario =
            Scenario { after: vec![Call::new(&to, How::Tcp, 5)], exit_when_done: true, ..Scenario::default() };
        let mut process = lab.start_in_pod(job, "", scenario).unwrap();
        process.wait_for("ready", Instant::now() + LIMIT).unwrap();
        process.go().unwrap();
        process.wait_for("done", Instant::now() + LIMIT).unwrap();
        drop(process);
        lab.remove_pod_cgroup(job).unwrap();
    }
    for process in &processes[1..] {
        process.wait_for("done", Instant::now() + 2 * LIMIT).unwrap();
    }
    wait_until(LIMIT, "the time is over", || (began.elapsed() >= SUSPENDED).then_some(())).unwrap();
    agent.signal(libc::SIGCONT);
    let truth = truth(&lab).unwrap();
    assert_eq!(truth.edges.len(), TARGETS as usize + jobs.len() + 1);
    let snapshot = eventually(LIMIT, || agent.snapshot(), |s| same(&compare(s, &truth))).unwrap();
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    for reason in ["ring_full", "cgroup_ring_full"] {
        let series = format!(r#"guardrail_events_lost_total{{reason="{reason}",class="hint"}}"#);
        assert!(agent.metric(&series).unwrap() > 0.0, "the ring ran over: {reason}");
    }
}

#[test]
fn an_agent_with_pins_that_the_kernel_kills_for_its_memory_loses_no_connection() {
    if !bins::can_run("an OOM kill") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let pins = BpfFs::mount(&lab.directory).unwrap().pins();
    let pinned = ["--pin", pins.to_str().unwrap(), "--state-interval", "1"];
    let mut limit = None;
    let mut agent = Agent::start_prepared(&lab, 0, &pinned, |command, _| {
        limit = trouble::MemoryLimit::give(command)?;
        Ok(())
    })
    .unwrap();
    let Some(limit) = &limit else {
        eprintln!("DID NOT RUN: an OOM kill needs the memory controller of cgroup v1");
        return;
    };
    go(&mut processes).unwrap();
    wait_until(LIMIT, "the first 10 connections are stored", || {
        pair_edge(&state(&agent.state_dir).ok()?).ok().filter(|edge| edge["opened"] == 10)
    })
    .unwrap();
    processes[1].go().unwrap();
    processes[1].wait_for_nth("done", 2, Instant::now() + LIMIT).unwrap();
    // An inventory of 64 MiB, where there is room for 16 more.
    limit.leave(16 << 20).unwrap();
    let large = lab.directory.join("large");
    fs::File::create(&large).unwrap().set_len(64 << 20).unwrap();
    fs::rename(large, lab.inventory()).unwrap();
    let ended = agent.wait_ended(LIMIT).unwrap();
    assert_eq!(ended.signal(), Some(libc::SIGKILL), "{ended}\n{}", agent.said());
    assert_eq!(limit.kills().unwrap(), 1, "it was the kernel");
    drop(agent);
    processes[1].go().unwrap();
    processes[1].wait_for_nth("done", 3, Instant::now() + LIMIT).unwrap();
    lab.write_inventory().unwrap();
    let agent = Agent::start(&lab, 0, &pinned).unwrap();
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    assert_eq!(pair_edge(&snapshot).unwrap()["opened"], 30);
    assert_eq!(snapshot["coverage"]["complete"], true, "{}", snapshot["coverage"]);
    let window = &snapshot["window"]["nodes"]["node-a"];
    assert_eq!(window.as_array().map(Vec::len), Some(1), "the hooks were there all the time: {window}");
}
