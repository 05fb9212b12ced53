//! The guardrail DaemonSet agent.
