//! The kernel programs, as the build script has made them.

/// The programs' object file. Empty in a build without them (`AYA_BUILD_SKIP=1`).
#[cfg(not(guardrail_no_programs))]
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guardrail"));
/// The programs' object file: this build has none.
#[cfg(guardrail_no_programs)]
pub static OBJECT: &[u8] = &[];
