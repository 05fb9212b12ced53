//! Nothing stays in the kernel: after a shutdown, after a mere drop, and after a start that failed.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
    sync::Mutex,
};

use guardrail_common::VERIFIER_INSTRUCTION_CEILING;
use guardrail_kernel::{Kernel, KernelConfig};

use self::kernel::{Agent, Pair, descriptors, is_linux_before, until};

/// These tests look at all descriptors of the process.
static ALONE: Mutex<()> = Mutex::new(());

/// `BPF_PROG_GET_FD_BY_ID`, `BPF_MAP_…`, `BPF_LINK_…` (`include/uapi/linux/bpf.h`).
const PROGRAM: libc::c_long = 13;
const MAP: libc::c_long = 14;
const LINK: libc::c_long = 30;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// An object by its id; ids are not used again soon.
fn object(kind: libc::c_long, id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    // SAFETY: the attributes are as long as said.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, kind, attr.as_mut_ptr(), size_of_val(&attr)) };
    match i32::try_from(fd) {
        // SAFETY: the descriptor is new and ours.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ids of the maps that a program uses.
fn maps_of(program: &OwnedFd) -> Vec<u32> {
    let mut ids = vec![0u32; 64];
    // `struct bpf_prog_info` up to `map_ids`, as 32-bit words: `nr_map_ids` is the 13th, the
    // address of the room for them follows.
    let mut info = [0u32; 16];
    let room = (ids.as_mut_ptr() as u64).to_ne_bytes();
    info[13] = ids.len() as u32;
    info[14] = u32::from_ne_bytes([room[0], room[1], room[2], room[3]]);
    info[15] = u32::from_ne_bytes([room[4], room[5], room[6], room[7]]);
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut attr = Attr {
        fd: program.as_raw_fd().cast_unsigned(),
        len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes of info and as many ids as there is room for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<Attr>()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    ids.truncate(info[13] as usize);
    ids
}

/// Every BPF object that this process holds, and what these hold.
fn held() -> BTreeSet<(libc::c_long, u32)> {
    let mut objects = BTreeSet::new();
    objects.extend(descriptors("link_id:").into_iter().map(|id| (LINK, id)));
    objects.extend(descriptors("map_id:").into_iter().map(|id| (MAP, id)));
    for id in descriptors("prog_id:") {
        objects.insert((PROGRAM, id));
        objects.extend(maps_of(&object(PROGRAM, id).expect("the program is there")).into_iter().map(|id| (MAP, id)));
    }
    objects
}

/// All of these go, within the deadline: the kernel frees programs and maps a little later.
fn assert_gone(objects: &BTreeSet<(libc::c_long, u32)>) {
    let left = || -> Vec<_> { objects.iter().filter(|(kind, id)| object(*kind, *id).is_ok()).collect() };
    assert!(until(|| left().is_empty()), "still in the kernel: {:?}", left());
    assert_eq!(held(), BTreeSet::new(), "no descriptor is left");
    let readers = fs::read_dir("/proc/self/task")
        .expect("/proc")
        .flatten()
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "kernel-reader"));
    assert_eq!(readers.count(), 0, "no thread is left");
}

fn count(objects: &BTreeSet<(libc::c_long, u32)>, kind: libc::c_long) -> usize {
    objects.iter().filter(|(of, _)| *of == kind).count()
}

#[test]
fn a_shutdown_leaves_no_program_no_link_no_map_and_no_thread() {
    let Some(lab) = Pair::new() else { return };
    let _alone = ALONE.lock();
    assert_eq!(held(), BTreeSet::new());
    let agent = Agent::start(&lab);
    let objects = held();
    // Nine hooks; the rings, FLOWS and the rest.
    assert!(count(&objects, PROGRAM) >= 10 && count(&objects, LINK) >= 10 && count(&objects, MAP) >= 9, "{objects:?}");
    let _ = agent.stop();
    assert_gone(&objects);
}

#[test]
fn the_verifier_walks_far_fewer_instructions_than_it_may() {
    let Some(lab) = Pair::new() else { return };
    let _alone = ALONE.lock();
    let agent = Agent::start(&lab);
    let objects = held();
    let walked: BTreeMap<String, u32> = aya::programs::loaded_programs()
        // Others may be gone by the time they are looked at.
        .filter_map(Result::ok)
        .filter(|program| objects.contains(&(PROGRAM, program.id())))
        .filter_map(|program| Some((program.name_as_str()?.to_owned(), program.verified_instruction_count()?)))
        .collect();
    drop(agent);
    if is_linux_before(5, 16) {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
        eprintln!(
            "NOT RUN: Linux {} does not tell; `cargo xtask vm-test` reads the verifier's log instead",
            release.trim()
        );
        return;
    }
    eprintln!("{walked:#?}");
    // Ten programs on hooks, and the iterator of sockets.
    assert!(walked.len() >= 11, "{walked:?}");
    let over = walked.iter().find(|(_, count)| **count > VERIFIER_INSTRUCTION_CEILING);
    assert_eq!(over, None, "the ceiling is {VERIFIER_INSTRUCTION_CEILING}");
}

#[test]
fn what_is_dropped_without_a_shutdown_leaves_nothing_though_nobody_receives() {
    let Some(lab) = Pair::new() else { return };
    let _alone = ALONE.lock();
    let agent = Agent::held(&lab, |config| config.channel_batches = 1);
    let objects = held();
    assert!(!objects.is_empty());
    drop(agent);
    assert_gone(&objects);
}

#[test]
fn without_udp_nothing_runs_per_packet() {
    let Some(lab) = Pair::new() else { return };
    let _alone = ALONE.lock();
    let agent = Agent::with(&lab, |config| config.udp = false);
    assert!(until(|| !agent.kernel.stats().programs.is_empty()));
    let names: Vec<_> = agent.kernel.stats().programs.into_keys().collect();
    assert_eq!(names, ["cgroup_mkdir", "cgroup_rmdir", "tcp_missed", "tcp_state"]);
    let objects = held();
    let _ = agent.stop();
    assert_gone(&objects);
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let Some(lab) = Pair::new() else { return };
    let _alone = ALONE.lock();
    // Too many entries for a map: the kernel refuses after the checks have passed.
    let mut config = KernelConfig::new(lab.cgroup().to_owned());
    config.flow_entries = u32::MAX;
    let error = Kernel::start(config, None).expect_err("such a map cannot be").to_string();
    assert!(error.contains("FLOWS"), "{error}");
    for (path, hint) in [(PathBuf::from("/no/such/place"), "/no/such/place"), (PathBuf::from("/proc"), "--cgroup-root")]
    {
        let error = Kernel::start(KernelConfig::new(path), None).expect_err("this is no cgroup").to_string();
        assert!(error.contains(hint), "{error}");
    }
    assert_eq!(held(), BTreeSet::new());
}
