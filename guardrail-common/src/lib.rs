//! Wire records that cross the guardrail kernel boundary, and their total decoder.
