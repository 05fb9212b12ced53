//! What the kernel tests stand on: a [`Lab`] of two connected network namespaces below a cgroup of its own, [`Pod`]s whose sockets the test uses itself, and the
//! [`Agent`] under test, which observes that cgroup and nothing else.
//!
//! A pod is a process that does one thing: it makes sockets, in its own cgroup and network namespace, and hands their descriptors to the test. Both are fixed when a
//! socket is made, so the test can drive both ends of a connection from one thread, in whatever order it wants, while its own cgroup is a third one.

mod agent;
mod bpffs;
mod lab;
mod pod;
mod process;
mod socket;

pub(crate) use self::{
    agent::{Agent, Key, Seen, Stored, client, server, until},
    bpffs::BpfFs,
    lab::{LEFT, LEFT_V6, Lab, RIGHT, RIGHT_V6, Side},
    pod::Pod,
    process::{Child, in_netns, is_linux_before, pin},
    socket::{at, connect, descriptors, mapped, set_option, set_option_bytes},
};
