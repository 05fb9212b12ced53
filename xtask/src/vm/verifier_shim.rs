//! Preloaded into the tests inside the guest: asks the kernel for the verifier's statistics at each program load and writes the number of instructions it walked.
//!
//! `bpf_prog_info.verified_insns` exists since 5.16 only; the statistics line of the verifier's log ("processed N insns") is the same number on every kernel.
//! Compiled alone (`rustc --crate-type cdylib`), since xtask itself is a program. x86-64 Linux only: `syscall(2)`'s variable arguments are taken as six integers.

use std::{
    ffi::{c_char, c_int, c_long, c_uint, c_void},
    fs::OpenOptions,
    io::Write as _,
    sync::OnceLock,
};

const SYS_BPF: c_long = 321;
const BPF_PROG_LOAD: c_long = 5;
/// `BPF_LOG_STATS`: only the closing statistics.
const LOG_STATS: u32 = 4;
/// The variable that names the file to append to.
const FILE: &str = "GUARDRAIL_VERIFIER_LOG";

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

type Syscall = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

fn real() -> Syscall {
    static REAL: OnceLock<Syscall> = OnceLock::new();
    *REAL.get_or_init(|| {
        // SAFETY: RTLD_NEXT is -1; libc's own `syscall` always exists and has this shape for integer arguments on x86-64.
        unsafe {
            let next = dlsym(usize::MAX as *mut c_void, c"syscall".as_ptr());
            assert!(!next.is_null(), "libc has no syscall()");
            std::mem::transmute::<*mut c_void, Syscall>(next)
        }
    })
}

/// `syscall(2)`, passed on; program loads without a log of their own get one.
///
/// # Safety
/// As `syscall(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let size = c as c_uint as usize;
    if number == SYS_BPF && a as c_int as c_long == BPF_PROG_LOAD && size >= size_of::<Load>() {
        // SAFETY: the caller passes a bpf_attr of `size` bytes.
        return unsafe { load(b as *mut c_void, size) };
    }
    // SAFETY: as the caller's call.
    unsafe { real()(number, a, b, c, d, e, f) }
}

unsafe fn load(attr: *mut c_void, size: usize) -> c_long {
    // SAFETY: `attr` points to `size` bytes, at least a Load.
    let own = unsafe { attr.cast::<Load>().read_unaligned() };
    let pass = |attr: *mut c_void| unsafe { real()(SYS_BPF, BPF_PROG_LOAD, attr as c_long, size as c_long, 0, 0, 0) };
    if own.log_level != 0 || own.log_buf != 0 {
        return pass(attr);
    }
    let mut copy = vec![0_u64; size.div_ceil(8)];
    let mut log = vec![0_u8; 1 << 16];
    // SAFETY: `copy` has at least `size` bytes; a Load lies at its start.
    unsafe {
        std::ptr::copy_nonoverlapping(attr.cast::<u8>(), copy.as_mut_ptr().cast(), size);
        let load = copy.as_mut_ptr().cast::<Load>();
        (*load).log_level = LOG_STATS;
        (*load).log_size = log.len() as u32;
        (*load).log_buf = log.as_mut_ptr() as u64;
    }
    let fd = pass(copy.as_mut_ptr().cast());
    if fd >= 0 {
        note(&own.prog_name, &log);
    } else {
        // SAFETY: this thread's errno; the caller reads it after we return.
        let errno = unsafe { *__errno_location() };
        drop((copy, log));
        // SAFETY: as above; freeing may have changed it.
        unsafe { *__errno_location() = errno };
    }
    fd
}

/// Appends `name instructions`; the library's probes of the kernel (no name, or `aya_…`) are left out.
fn note(name: &[u8; 16], log: &[u8]) {
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();
    let (name, log) = (text(name), text(log));
    let Some(count) = log.split("processed ").nth(1).and_then(|rest| rest.split(' ').next()) else {
        return;
    };
    let Ok(path) = std::env::var(FILE) else {
        return;
    };
    if name.is_empty() || name.starts_with("aya_") {
        return;
    }
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        // A line that cannot be written is a program missing from the report, and that is an error there.
        let _ = file.write_all(format!("{name} {count}\n").as_bytes());
    }
}
