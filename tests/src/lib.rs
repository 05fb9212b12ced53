//! The lab: pods made of a kubelet-shaped cgroup and a network namespace, real processes in them,
//! and their own log as ground truth.
//!
//! - [`apiserver`]: a small Kubernetes API server that replays recordings of a real one and
//!   misbehaves on demand.
//! - [`app`]: what the application binary `guardrail-lab-app` does, and the scenario file that
//!   tells it so.
//! - [`container`]: runs a program as a container runtime would: read-only root, capabilities,
//!   seccomp.
//! - [`deployed`]: the agent as deploy/ runs it, in such a container.
//! - [`cluster`]: a small Kubernetes cluster as data: workloads, pods, Services; its inventory as
//!   YAML, its Services as address translation.
//! - [`enforce`]: NetworkPolicies as packet filters at the pods' ends of their links, so that what
//!   was exported is tried on real packets.
//! - [`held`]: observe, export, enforce, and again: everything that happened works.
//! - [`lab`]: makes such a cluster real on this machine, and removes it again whatever happens.
//! - [`tries`]: single connections, and what `guardrail check` says of them.
//! - [`truth`]: the edges that must be found, from the applications' logs and the lab's own table
//!   alone.
//! - [`agent`]: runs `guardrail-agent` on a node of the lab and compares what it says with the
//!   truth.
//! - [`shop`]: the scenario that the end-to-end test and the demo share.
//! - [`way`]: the whole way from a plan to the end of an exception, which they share, too.
//!
//! The lab judges guardrail through its files, sockets and exit codes only: nothing here uses its
//! crates, but [`bpf`], which loads programs by the wrapper of bpf(2) in guardrail-kernel.

pub mod agent;
pub mod apiserver;
pub mod app;
pub mod bins;
pub mod bpf;
pub mod cluster;
pub mod compare;
pub mod container;
pub mod deployed;
pub mod enforce;
pub mod held;
pub mod lab;
pub mod policies;
pub mod prometheus;
pub mod shop;
pub mod small;
pub mod tries;
pub mod trouble;
pub mod truth;
pub mod way;
