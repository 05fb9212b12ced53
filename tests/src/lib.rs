//! The lab: ground-truth tests of guardrail on a real kernel.
