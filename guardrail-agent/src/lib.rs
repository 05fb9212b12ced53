//! The guardrail DaemonSet agent: kernel events and inventory in; metrics, graph and allow-lists out.
//!
//! [`daemon`] wires [`kernel`], [`inventory`], the pure observer of guardrail-graph, [`http`], [`metrics`] and [`files`] together; it decides
//! nothing about identity or policy.

pub mod auth;
pub mod config;
pub mod daemon;
pub mod files;
pub mod http;
pub mod inventory;
pub mod kernel;
pub mod kube;
pub mod memory;
pub mod metrics;
pub mod serve;
pub mod state;
