//! The life of policies: a plan with environments and phases, where each namespace stands, what
//! changes from one state to the next.
//!
//! Pure: no IO, no clock (time is an argument). Text and values in, values out; see
//! ARCHITECTURE.md.
#![forbid(unsafe_code)]

pub mod admission;
pub mod blocked;
pub mod diff;
pub mod drift;
pub mod exceptions;
pub mod export;
pub mod in_force;
pub mod init;
pub mod page;
pub mod plan;
pub mod prune;
pub mod status;
pub mod unblock;
