//! The guardrail DaemonSet agent.

pub mod kernel;
