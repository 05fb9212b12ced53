//! Keeps the resident memory near what is in use: a snapshot of a large graph is built, written and
//! dropped, and the allocator would keep its pages.
//!
//! glibc only: musl's allocator, which the image has, gives freed pages back by itself
//! (docs/benchmarks.md).

/// One arena for all threads: memory that one arena holds free is of no use to another. Call it
/// before the first thread starts.
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: numbers only.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free memory back to the system. Takes milliseconds after something large was dropped.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number only.
    unsafe {
        libc::malloc_trim(0);
    }
}
