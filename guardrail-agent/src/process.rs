//! What the agent itself costs, as of now, from `/proc/self` (proc(5)).

use std::fs;

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

/// The names under which Prometheus knows a process's own figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Time on a CPU since start, in user and kernel mode, seconds.
    pub cpu_seconds: f64,
    /// Resident memory, bytes. The kernel's maps are not in it.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// How many may be open at most.
    pub max_fds: u64,
}

impl Usage {
    /// Of this process. What cannot be read is 0.
    #[must_use]
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let (ran, pages) = parse(&stat).unwrap_or_default();
        Self {
            cpu_seconds: ran as f64 / clock_ticks_per_second().max(1) as f64,
            resident_bytes: pages * page_size() as u64,
            // One of them is the directory that is being read.
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |fds| (fds.count() as u64).saturating_sub(1)),
            max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        }
    }
}

/// Ticks on a CPU and resident pages: fields 14, 15 and 24 of `/proc/PID/stat`, counted after the
/// name, which may hold anything.
fn parse(stat: &str) -> Option<(u64, u64)> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system, fields.nth(8)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_counted_after_a_name_with_blanks_and_brackets() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 11 22 0 0 20 0 3 0 999 1048576 300 18446744073709551615";
        assert_eq!(parse(stat), Some((33, 300)));
        assert_eq!(parse("7 (x"), None);
    }

    #[test]
    fn a_running_process_has_memory_and_descriptors() {
        let usage = Usage::now();
        assert!(usage.resident_bytes > 100_000 && (3..=usage.max_fds).contains(&usage.open_fds), "{usage:?}");
    }
}
