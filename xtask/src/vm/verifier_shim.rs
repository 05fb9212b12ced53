//! Preloaded into the tests: asks the kernel for the verifier's statistics at each program load,
//! and writes down the number of instructions it walked and which source lines are left of the
//! program.
//!
//! A verifier removes what it takes for dead code, and older ones are sometimes wrong (see `begin`
//! in the programs' `udp.rs`): what a newer kernel keeps, an older one must not drop.
//!
//! `bpf_prog_info.verified_insns` exists since 5.16 only; the statistics line of the verifier's log
//! ("processed N insns") is the same number on every kernel. Compiled alone (`rustc --crate-type
//! cdylib`), since xtask itself is a program. Linux on x86-64 and AArch64: there `syscall(2)`'s
//! variable arguments come where six integers would.

use std::{
    ffi::{c_char, c_int, c_long, c_uint, c_void},
    fs::OpenOptions,
    io::Write as _,
    sync::{Mutex, OnceLock},
};

#[path = "../../../guardrail-kernel/src/bpf/attr.rs"]
#[expect(dead_code, reason = "only some commands are of interest here")]
mod attr;

use attr::{Info, Load, OBJ_GET_INFO_BY_FD, PROG_LOAD};

#[cfg(target_arch = "x86_64")]
const SYS_BPF: c_long = 321;
#[cfg(target_arch = "aarch64")]
const SYS_BPF: c_long = 280;
const BPF_BTF_LOAD: c_long = 18;
/// `BPF_LOG_STATS`: only the closing statistics.
const LOG_STATS: u32 = 4;
/// The variable that names the file to append to.
const FILE: &str = "GUARDRAIL_VERIFIER_LOG";
/// The variable that names the directory for the source lines that are left.
const LINES_DIRECTORY: &str = "GUARDRAIL_VERIFIER_LINES";

/// The start of `union bpf_attr` for `BPF_BTF_LOAD`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoadBtf {
    btf: u64,
    log_buf: u64,
    size: u32,
}

/// `struct bpf_prog_info` up to `line_info_rec_size`, as 32-bit words, and where in it we read.
const INFO_WORDS: usize = 46;
const LINE_COUNT: usize = 37;
const LINES: usize = 38;
const LINE_BYTES: usize = 43;

/// `struct bpf_line_info`: instruction, file name and text as places in the strings of the BTF,
/// line number above ten bits of column.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Line {
    instruction: u32,
    file: u32,
    text: u32,
    line_column: u32,
}

/// The BTF that was loaded last: that of the programs, which follow it.
static BTF: Mutex<Vec<u8>> = Mutex::new(Vec::new());

type Syscall = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

fn real() -> Syscall {
    static REAL: OnceLock<Syscall> = OnceLock::new();
    *REAL.get_or_init(|| {
        // SAFETY: RTLD_NEXT is -1; libc's own `syscall` always exists and has this shape for
        // integer arguments on these architectures.
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
    if number == SYS_BPF && a as c_int as c_long == PROG_LOAD && size >= size_of::<Load>() {
        // SAFETY: the caller passes a bpf_attr of `size` bytes.
        return unsafe { load(b as *mut c_void, size) };
    }
    if number == SYS_BPF && a as c_int as c_long == BPF_BTF_LOAD && size >= size_of::<LoadBtf>() {
        // SAFETY: the caller passes a bpf_attr of `size` bytes, whose BTF is as long as it says.
        let bytes = unsafe {
            let attr = (b as *const LoadBtf).read_unaligned();
            std::slice::from_raw_parts(attr.btf as *const u8, attr.size as usize)
        };
        // Probes of what the kernel knows are a few bytes.
        if let Ok(mut btf) = BTF.lock()
            && bytes.len() > 1000
        {
            bytes.clone_into(&mut btf);
        }
    }
    // SAFETY: as the caller's call.
    unsafe { real()(number, a, b, c, d, e, f) }
}

unsafe fn load(attr: *mut c_void, size: usize) -> c_long {
    // SAFETY: `attr` points to `size` bytes, at least a Load.
    let own = unsafe { attr.cast::<Load>().read_unaligned() };
    let pass = |attr: *mut c_void| unsafe { real()(SYS_BPF, PROG_LOAD, attr as c_long, size as c_long, 0, 0, 0) };
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
        note_lines(&own.prog_name, fd as c_uint);
    } else {
        // SAFETY: this thread's errno; the caller reads it after we return.
        let errno = unsafe { *__errno_location() };
        drop((copy, log));
        // SAFETY: as above; freeing may have changed it.
        unsafe { *__errno_location() = errno };
    }
    fd
}

/// Writes `count file:line:column` for each source line that is left of the program, once for each
/// name, if the directory is named.
fn note_lines(name: &[u8; 16], fd: u32) {
    let name = text(name);
    let Ok(directory) = std::env::var(LINES_DIRECTORY) else {
        return;
    };
    if name.is_empty() || name.starts_with("aya_") {
        return;
    }
    let Ok(mut file) = OpenOptions::new().create_new(true).write(true).open(format!("{directory}/{name}")) else {
        return;
    };
    let info = |lines: &mut [Line]| -> Option<usize> {
        let mut words = [0_u32; INFO_WORDS];
        let room = lines.as_mut_ptr() as u64;
        words[LINE_COUNT] = lines.len() as u32;
        (words[LINES], words[LINES + 1]) = (room as u32, (room >> 32) as u32);
        words[LINE_BYTES] = size_of::<Line>() as u32;
        let mut attr = Info { fd, len: size_of_val(&words) as u32, info: words.as_mut_ptr() as u64 };
        // SAFETY: the kernel writes as many words and lines as there is room for.
        let result = unsafe {
            real()(SYS_BPF, OBJ_GET_INFO_BY_FD, (&raw mut attr) as c_long, size_of::<Info>() as c_long, 0, 0, 0)
        };
        (result == 0).then_some(words[LINE_COUNT] as usize)
    };
    let Some(count) = info(&mut []) else {
        return;
    };
    let mut lines = vec![Line::default(); count];
    if info(&mut lines).is_none() {
        return;
    }
    let Ok(btf) = BTF.lock() else {
        return;
    };
    let word = |at: usize| btf.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes);
    let string = |offset: u32| {
        // `struct btf_header`: its own length, then places of types and strings behind it.
        let at = word(4)? as usize + word(16)? as usize + offset as usize;
        btf.get(at..)?.split(|&byte| byte == 0).next().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let mut counts = std::collections::BTreeMap::new();
    for line in &lines {
        let file = string(line.file).unwrap_or_default();
        *counts.entry((file, line.line_column >> 10, line.line_column & 0x3ff)).or_insert(0) += 1;
    }
    let report: String =
        counts.iter().map(|((file, line, column), count)| format!("{count} {file}:{line}:{column}\n")).collect();
    // What cannot be written is missing from the report, and nothing left of a program is an error
    // there.
    let _ = file.write_all(report.as_bytes());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// Appends `name instructions`; the library's probes of the kernel (no name, or `aya_…`) are left
/// out.
fn note(name: &[u8; 16], log: &[u8]) {
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
        // A line that cannot be written is a program missing from the report, and that is an error
        // there.
        let _ = file.write_all(format!("{name} {count}\n").as_bytes());
    }
}
