//! This machine and this process, as the kernel tells of them.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

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

/// How many CPUs this machine has, whatever this process may use.
pub fn cpus() -> usize {
    // SAFETY: no pointers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).expect("there are CPUs")
}

/// When the CPUs were held last.
static HELD_LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Leave to hold the CPUs of this machine. One test of a process has it at a time, and none sooner
/// than a second after the one before: the kernel lets others run regardless after a second
/// (`sched_rt_runtime_us`; the fair server since Linux 6.12).
pub struct HoldCpus(MutexGuard<'static, Option<Instant>>);

impl HoldCpus {
    /// Waits for its turn.
    pub fn wait() -> Self {
        let last = HELD_LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = *last {
            thread::sleep((last + Duration::from_secs(1)).saturating_duration_since(Instant::now()));
        }
        Self(last)
    }

    /// Runs something while a real-time thread holds each CPU, so that no other process of ordinary
    /// priority does: what a timer does meanwhile, it does in the time of one of these threads.
    /// Keep it well below a second.
    pub fn during<T: Send>(mut self, run: impl FnOnce() -> T + Send) -> T {
        let is_over = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            for cpu in 0..cpus() {
                let is_over = &is_over;
                scope.spawn(move || {
                    pin(cpu);
                    be_real_time(1);
                    while !is_over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            // Above the others, or it would never come to its end.
            let result = scope
                .spawn(|| {
                    be_real_time(2);
                    run()
                })
                .join();
            is_over.store(true, Ordering::Relaxed);
            result
        });
        *self.0 = Some(Instant::now());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Gives the calling thread this real-time priority (`SCHED_FIFO`).
fn be_real_time(priority: libc::c_int) {
    let priority = libc::sched_param { sched_priority: priority };
    // SAFETY: the structure outlives the call; 0 is the caller.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    assert_eq!(result, 0, "a real-time priority: {}", std::io::Error::last_os_error());
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
