//! The agent under the security context of deploy/, on a real kernel: it must observe with exactly
//! these rights, and say what is missing with fewer.

use std::{fs, time::Duration};

use guardrail_tests::{
    agent::Agent,
    bins,
    compare::{edges, has_mark, number},
    container::Container,
    deployed::Deployed,
    lab::Lab,
    small::{base, cluster, eventually, eventually_true, go, lab, pair, truth},
};
use serde_json::Value;

fn deployed(lab: &Lab, overlay: &str) -> Deployed {
    let container = Container::of_program(lab.directory.join("container"), &bins::find("guardrail-agent")).unwrap();
    Deployed::new(lab, 0, overlay, container).unwrap()
}

/// Waits for the end of an agent that must refuse to start, and gives what it said.
fn refusal(mut agent: Agent) -> String {
    let error = agent.wait_ready().expect_err("it must not become ready");
    assert!(error.to_string().contains("exit status: 2"), "{error:#}");
    agent.said()
}

#[test]
fn the_agent_observes_with_exactly_the_rights_that_deploy_gives() {
    if !bins::can_run("the agent in a container") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let mut agent = deployed(&lab, "plain").spawn(&lab, 0).unwrap();
    agent.wait_ready().unwrap();
    let (_, ready) = agent.get("/readyz").unwrap();
    assert!(!ready.contains("[!]"), "nothing is missed: {ready}");

    let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", agent.pid())).unwrap();
    let status = proc("status");
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let three = format!("{:016x}", (1_u64 << 12) | (1 << 38) | (1 << 39));
    assert_eq!([field("CapPrm:"), field("CapEff:"), field("CapBnd:")], [&*three; 3]);
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
    let mounts = proc("mountinfo");
    let options = |point: &str| {
        let line = mounts.lines().rfind(|l| l.split(' ').nth(4) == Some(point));
        line.unwrap_or_else(|| panic!("no {point} in {mounts}")).split(' ').nth(5).unwrap().to_owned()
    };
    assert!(["/", "/sys", "/host/cgroup"].iter().all(|p| options(p).starts_with("ro")), "{mounts}");

    // What deploy/ states beside its memory limit.
    assert!(agent.map_bytes().unwrap() < 21 << 20, "{}", agent.map_bytes().unwrap());

    go(&mut processes).unwrap();
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    let all = edges(&snapshot);
    assert_eq!(all.len(), 1);
    assert!(all.values().all(|edge| has_mark(edge, "found-at-start")), "the older connection is found: {all:?}");
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
    assert!(base(&agent.state_dir).is_some());
}

#[test]
fn without_the_nodes_processes_the_agent_runs_and_says_what_it_misses() {
    if !bins::can_run("the agent in a container without hostPID") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let mut agent = deployed(&lab, "without-host-pid").spawn(&lab, 0).unwrap();
    agent.wait_ready().unwrap();
    let (_, ready) = agent.get("/readyz").unwrap();
    assert!(ready.contains("hostPID") && ready.contains("connections older than the agent"), "{ready}");
    go(&mut processes).unwrap();
    let seen = |snapshot: &Value| match edges(snapshot).into_values().collect::<Vec<_>>().as_slice() {
        [edge] if number(edge, "opened") == 10 && !has_mark(edge, "found-at-start") => Ok(()),
        other => Err(format!("not just the 10 new connections: {other:?}")),
    };
    eventually(Duration::from_secs(20), || agent.snapshot(), seen).unwrap();
}

#[test]
fn pins_need_no_further_right_and_close_the_gap_of_a_rollout() {
    if !bins::can_run("the agent in a container with pins") {
        return;
    }
    let (mut processes, lab) = pair().unwrap();
    let deployed = deployed(&lab, "pinned");
    let mut agent = deployed.spawn(&lab, 0).unwrap();
    agent.wait_ready().unwrap();
    assert_eq!(agent.terminate().unwrap().code(), Some(0), "{}", agent.said());
    drop(agent);
    // Nobody is there now but the kernel.
    go(&mut processes).unwrap();
    let mut agent = deployed.spawn(&lab, 0).unwrap();
    agent.wait_ready().unwrap();
    let snapshot = eventually_true(&agent, &truth(&lab).unwrap()).unwrap();
    let intervals = snapshot["window"]["nodes"]["node-a"].as_array().cloned().unwrap_or_default();
    assert_eq!(intervals.len(), 1, "one window without a gap: {}", snapshot["window"]);
}

#[test]
fn a_seccomp_profile_that_blocks_bpf_is_named_as_a_suspect_and_the_overlay_helps() {
    if !bins::can_run("the agent under a seccomp profile that blocks bpf()") {
        return;
    }
    let lab = lab(cluster(&["node-a"])).unwrap();
    let mut plain = deployed(&lab, "plain");
    plain.container.refused.push(libc::SYS_bpf);
    let said = refusal(plain.spawn(&lab, 0).unwrap());
    for suspect in ["EPERM", "seccomp", "memlock", "capabilities"] {
        assert!(said.contains(suspect), "{suspect} in: {said}");
    }
    deployed(&lab, "seccomp-unconfined").spawn(&lab, 0).unwrap().wait_ready().unwrap();
}

#[test]
fn a_capability_that_is_missing_is_named() {
    if !bins::can_run("the agent in a container with fewer capabilities") {
        return;
    }
    let lab = lab(cluster(&["node-a"])).unwrap();
    for (name, number) in guardrail_tests::container::CAPABILITIES {
        let mut fewer = deployed(&lab, "plain");
        if !fewer.container.capabilities.contains(&number) {
            continue;
        }
        fewer.container.capabilities.retain(|c| *c != number);
        let said = refusal(fewer.spawn(&lab, 0).unwrap());
        assert!(said.contains(&format!("CAP_{name}")), "{name}: {said}");
    }
    // Only the hooks that see packets are a matter of the network's administration.
    let mut tcp_only = deployed(&lab, "plain");
    tcp_only.container.capabilities.retain(|c| *c != 12);
    tcp_only.args.push("--udp=off".to_owned());
    tcp_only.spawn(&lab, 0).unwrap().wait_ready().unwrap();
}
