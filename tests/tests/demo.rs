//! The demo cleans up after itself, whatever ends it.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use guardrail_tests::{
    bins,
    lab::{cgroup, cleanup, process, wait_until},
};

const LIMIT: Duration = Duration::from_secs(60);

/// A demo that is in the middle of its traffic, the name of its lab, and a process of it.
fn running(output: &str) -> (Child, String, u32) {
    let child = Command::new(bins::find("guardrail-demo"))
        .args(["--seconds", "45", "--output", output])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let prefix = format!("{}{}-", cleanup::PREFIX, child.id());
    let root = cgroup::mount().unwrap();
    let (name, agent) = wait_until(LIMIT, "the demo runs an agent and Prometheus", || {
        let name = names(&root).into_iter().find(|n| n.starts_with(&prefix))?;
        let pid_in = |service: &str| {
            let procs = root.join(&name).join(format!("node-a/system.slice/{service}.service/cgroup.procs"));
            fs::read_to_string(procs).ok()?.lines().next()?.parse().ok()
        };
        let _: u32 = pid_in("prometheus")?;
        Some((name.clone(), pid_in("guardrail-agent")?))
    })
    .unwrap();
    (child, name, agent)
}

fn names(root: &PathBuf) -> Vec<String> {
    fs::read_dir(root).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn is_gone(pid: u32) {
    wait_until(LIMIT, "the demo's agent is gone", || (!PathBuf::from(format!("/proc/{pid}")).exists()).then_some(()))
        .unwrap();
}

#[test]
fn the_demo_leaves_nothing_behind_after_ctrl_c() {
    if !bins::can_run("the demo and Ctrl-C") {
        return;
    }
    let output = std::env::temp_dir().join(format!("guardrail-demo-interrupted-{}", std::process::id()));
    let (mut demo, name, agent) = running(output.to_str().unwrap());
    // SAFETY: our own child, not yet waited for.
    unsafe { libc::kill(demo.id().cast_signed(), libc::SIGINT) };
    let status = process::wait(&mut demo, LIMIT).unwrap();
    assert_eq!(status.code(), Some(130), "{status}");
    assert!(!cleanup::cgroup_directory(&name).unwrap().exists());
    assert!(!cleanup::temporary_directory(&name).exists());
    assert!(!output.exists(), "an interrupted demo leaves no half result");
    is_gone(agent);
}

#[test]
fn a_demo_that_crashed_takes_its_processes_with_it_and_the_next_lab_removes_the_rest() {
    if !bins::can_run("the demo and a crash") {
        return;
    }
    let output = std::env::temp_dir().join(format!("guardrail-demo-crashed-{}", std::process::id()));
    let (mut demo, name, agent) = running(output.to_str().unwrap());
    demo.kill().unwrap();
    demo.wait().unwrap();
    // The kernel ends the children of a process that dies; without the agent's process there are no
    // programs either.
    is_gone(agent);
    cleanup::remove_leftovers().unwrap();
    assert!(!cleanup::cgroup_directory(&name).unwrap().exists());
    assert!(!cleanup::temporary_directory(&name).exists());
}
