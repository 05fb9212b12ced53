//! NetworkPolicy semantics: evaluate, generate, explain, lint.

pub mod emit;
pub mod generate;
pub mod report;
