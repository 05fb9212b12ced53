//! The kernel side's user-space half: load and attach the programs, then turn maps and rings into
//! [`Observation`]s.
//!
//! In: the running kernel. Out: [`Batch`]es of observations on a bounded channel, and
//! [`KernelStats`]. One thread owns every map and ring. A slow receiver makes that thread wait, so
//! rings fill (a counted *hint* loss); no edge is lost, because the sweep reads the FLOWS map.
//!
//! ```no_run
//! # use guardrail_kernel::{Kernel, KernelConfig, find_cgroup2_root};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = KernelConfig::new(find_cgroup2_root()?);
//! // Blocking: load, attach, walk the cgroups, list the sockets. When it returns, everything
//! // needed for readiness is done.
//! let (kernel, mut batches) = Kernel::start(config, None)?;
//! for warning in kernel.warnings() { eprintln!("{warning}"); }
//! let reader = std::thread::spawn(move || while batches.blocking_recv().is_some() {});
//! // Blocking: the final sweep goes through the channel, so something must keep receiving until
//! // `None`.
//! let last = kernel.shutdown()?;
//! # drop((last, reader));
//! # Ok(()) }
//! ```

mod batch;
pub mod bpf;
mod btf;
mod cgroup;
mod checkpoint;
pub mod clock;
mod config;
mod dns;
mod error;
mod fold;
#[doc(hidden)]
pub mod fuzzing;
mod journal;
mod kernel;
mod load;
mod object;
mod offsets;
mod pin;
mod preflight;
mod reader;
mod redirects;
mod sockets;
mod start;
mod stats;
mod sys;

pub use crate::{
    batch::{Batch, Mark},
    cgroup::find_cgroup2_root,
    checkpoint::{Checkpoint, CheckpointError},
    config::{BpfLogLevel, KernelConfig},
    error::{KernelError, ReaderDied},
    kernel::{Kernel, Pinned},
    object::OBJECT,
    pin::unpin,
    stats::{KernelStats, ProgramStats},
};
