//! What the kernel tests stand on: the lab's [`Pair`] of connected namespaces below a cgroup of its
//! own, and the [`Agent`] under test, which observes that cgroup and nothing else.

mod agent;

pub(crate) use guardrail_tests::lab::{
    bpffs::BpfFs,
    fork::Forked,
    machine::{HoldCpus, cpus, descriptors, is_linux_before, pin},
    pair::{Half, LEFT, LEFT_V6, Pair, RIGHT, RIGHT_V6, SocketPod},
    socket::{at, connect, mapped, set_deaf, set_option, set_option_bytes},
    until, wait_until,
};

pub(crate) use self::agent::{Agent, Key, Observed, Stored, cgroup_of, client, server};
