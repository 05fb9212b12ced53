//! The guardrail DaemonSet agent.
fn main() {}
