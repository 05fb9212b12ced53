//! NetworkPolicy semantics: read, evaluate, generate, explain, lint.
//!
//! Pure: no IO, no clock. Text and objects in, values out; see ARCHITECTURE.md.
#![forbid(unsafe_code)]

pub mod check;
pub mod emit;
pub mod evaluate;
pub mod exception;
pub mod explain;
pub mod export;
pub mod generate;
pub mod lint;
pub mod memory;
pub mod model;
mod parallel;
pub mod prove;
pub mod read;
pub mod report;
mod schedule;
pub mod words;
