//! The guardrail command.
fn main() {}
