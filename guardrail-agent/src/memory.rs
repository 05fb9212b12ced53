//! Keeps the resident memory near what is in use: a snapshot of a large graph is built, written and
//! dropped, and the allocator would keep its pages.
//!
//! glibc only: musl's allocator, which the image has, gives freed pages back by itself
//! (docs/benchmarks.md).

/// What is so large is mapped by itself, and given back as it is freed.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 128 << 10;

/// One arena for all threads: memory that one arena holds free is of no use to another. Large
/// tables lie outside it: by default each one that is freed raises the size from which on they do,
/// and one that grew inside leaves holes that what is small keeps open. Call it before the first
/// thread starts.
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: numbers only.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
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

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Bytes of what is mapped by itself.
    fn mapped() -> usize {
        // SAFETY: numbers only.
        unsafe { libc::mallinfo2() }.hblkhd
    }

    #[test]
    fn a_large_table_is_mapped_by_itself_also_after_one_was_freed() {
        const LARGE: usize = 16 << 20;
        use_one_arena();
        for _ in 0..2 {
            let table = std::hint::black_box(Vec::<u8>::with_capacity(LARGE));
            assert!(mapped() >= LARGE);
            drop(table);
        }
    }
}
