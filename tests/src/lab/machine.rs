//! This machine and this process, as the kernel tells of them.

/// Whether the running kernel is older than this version.
pub fn is_linux_before(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
    let version: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).take(2).collect();
    version < vec![major, minor]
}

/// Makes the calling thread (or process) run on this CPU only.
pub fn pin(cpu: usize) {
    // SAFETY: a set on the stack; 0 is the caller.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// Numbers of this process's descriptors whose `/proc/self/fdinfo` has a line that begins with
/// `field`, with the number in that line.
pub fn descriptors(field: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").expect("/proc").flatten() {
        // It may be closed meanwhile, or be the directory itself.
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.strip_prefix(field)?.trim().parse::<u32>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    found
}
