//! guardrail's list of commands.
fn main() {}
