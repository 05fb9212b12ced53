//! bpf(2): the commands that aya does not offer (batched lookups, lookup-and-delete, pins,
//! iterators, statistics of a program), and programs made of bare instructions, which tests load.
//!
//! The only place in user space that calls bpf(2), but for aya. Every error is that of the call, as
//! bpf(2) lists them.

mod attr;

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// `BPF_MAP_TYPE_HASH`.
pub const MAP_TYPE_HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`.
pub const MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_F_NO_PREALLOC`: memory for elements that are there.
pub const NO_PREALLOC: u32 = 1;

/// Flag of an update: only if there is no such key.
pub const NOEXIST: u64 = 1;

/// # Safety
/// `attr` is the form that `command` expects, and every address in it is valid for what the kernel
/// writes or reads there.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// For commands that give a descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn descriptor<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match i32::try_from(result) {
        // SAFETY: the descriptor is new and ours.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A hash map with keys of `K` bytes and values of `V` bytes.
#[derive(Debug)]
pub struct Table<const K: usize, const V: usize> {
    fd: OwnedFd,
    /// LOOKUP_AND_DELETE works on this kernel's hashes (≥ 5.14).
    take: bool,
    /// LOOKUP_BATCH works (≥ 5.6).
    batch: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl<const K: usize, const V: usize> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Elements per batch. A hash's batch ends at a bucket's end, so it must hold the fullest bucket.
const BATCH: usize = 512;

impl<const K: usize, const V: usize> Table<K, V> {
    /// A table over its own descriptor of the map.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { fd: fd.try_clone_to_owned()?, take: true, batch: true, keys: Vec::new(), values: Vec::new() })
    }

    fn element(&self, key: Option<&[u8; K]>, value: *mut u8, flags: u64) -> attr::Element {
        attr::Element {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            value_or_next: value as u64,
            flags,
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
        let mut value = [0; V];
        let mut attr = self.element(Some(key), value.as_mut_ptr(), 0);
        // SAFETY: key and value are as long as the map's.
        found(unsafe { bpf(attr::MAP_LOOKUP_ELEM, &mut attr) }, value)
    }

    /// Sets a value.
    pub fn set(&self, key: &[u8; K], value: &[u8; V], flags: u64) -> io::Result<()> {
        let mut attr = self.element(Some(key), value.as_ptr().cast_mut(), flags);
        // SAFETY: key and value are as long as the map's; the kernel only reads them.
        unsafe { bpf(attr::MAP_UPDATE_ELEM, &mut attr) }
    }

    /// Deletes a key, if it is there.
    pub fn delete(&self, key: &[u8; K]) -> io::Result<()> {
        let mut attr = self.element(Some(key), std::ptr::null_mut(), 0);
        // SAFETY: the key is as long as the map's.
        found(unsafe { bpf(attr::MAP_DELETE_ELEM, &mut attr) }, ()).map(|_| ())
    }

    /// Deletes a key and gives its last value.
    pub fn take(&mut self, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
        if self.take {
            let mut value = [0; V];
            let mut attr = self.element(Some(key), value.as_mut_ptr(), 0);
            // SAFETY: key and value are as long as the map's.
            match unsafe { bpf(attr::MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) } {
                // Not for this kind of map before 5.14: EINVAL or ENOTSUPP (524).
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | 524)) => self.take = false,
                result => return found(result, value),
            }
        }
        let value = self.get(key)?;
        self.delete(key)?;
        Ok(value)
    }

    /// Calls `each` for every element. Elements that are changed meanwhile may be seen twice; those
    /// that stay are seen at least once.
    pub fn for_each(&mut self, mut each: impl FnMut(&[u8; K], &[u8; V])) -> io::Result<()> {
        if self.batch {
            match self.batches(&mut each) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | 524)) => self.batch = false,
                result => return result,
            }
        }
        let mut key: Option<[u8; K]> = None;
        loop {
            let mut next = [0; K];
            let mut attr = self.element(key.as_ref(), next.as_mut_ptr(), 0);
            // SAFETY: both keys are as long as the map's.
            if found(unsafe { bpf(attr::MAP_GET_NEXT_KEY, &mut attr) }, ())?.is_none() {
                return Ok(());
            }
            if let Some(value) = self.get(&next)? {
                each(&next, &value);
            }
            key = Some(next);
        }
    }

    fn batches(&mut self, each: &mut impl FnMut(&[u8; K], &[u8; V])) -> io::Result<()> {
        let mut room = BATCH;
        let (mut position, mut next) = ([0u8; 8], [0u8; 8]);
        let mut first = true;
        loop {
            self.keys.resize(room * K, 0);
            self.values.resize(room * V, 0);
            let mut attr = attr::Batch {
                in_batch: if first { 0 } else { position.as_mut_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: u32::try_from(room).unwrap_or(u32::MAX),
                map_fd: self.fd.as_raw_fd().cast_unsigned(),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers hold `count` elements; a position in a hash is four bytes.
            let result = unsafe { bpf(attr::MAP_LOOKUP_BATCH, &mut attr) };
            let end = match result {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let keys = self.keys.as_chunks::<K>().0;
            let values = self.values.as_chunks::<V>().0;
            for (key, value) in keys.iter().zip(values).take(attr.count as usize) {
                each(key, value);
            }
            if end {
                return Ok(());
            }
            position = next;
            first = false;
        }
    }
}

/// ENOENT is no error but "not there".
fn found<T>(result: io::Result<()>, value: T) -> io::Result<Option<T>> {
    match result {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A program made of instructions.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// `enum bpf_prog_type`.
    pub program_type: u32,
    /// `enum bpf_attach_type`: where it will be attached.
    pub attach_type: u32,
    /// Its name, as `bpftool prog` shows it: letters, digits and `_`, ended by a zero.
    pub name: [u8; 16],
    /// The instructions, as `struct bpf_insn` lies in memory.
    pub instructions: &'a [u64],
}

/// Loads a program under the licence GPL.
pub fn load(code: &Code<'_>) -> io::Result<OwnedFd> {
    let mut attr = attr::Load {
        prog_type: code.program_type,
        insn_cnt: u32::try_from(code.instructions.len()).unwrap_or(u32::MAX),
        insns: code.instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: code.name,
        prog_ifindex: 0,
        expected_attach_type: code.attach_type,
    };
    // SAFETY: the instructions and the licence outlive the call, and there are as many as said.
    unsafe { descriptor(attr::PROG_LOAD, &mut attr) }
}

/// Attaches a program to a cgroup, with `BPF_F_ALLOW_…` as flags. It stays until [`detach`], or as
/// long as the cgroup.
pub fn attach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32, flags: u32) -> io::Result<()> {
    let mut attr = attachment(program, cgroup, attach_type, flags);
    // SAFETY: numbers only.
    unsafe { bpf(attr::PROG_ATTACH, &mut attr) }
}

/// Detaches a program from a cgroup.
pub fn detach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<()> {
    let mut attr = attachment(program, cgroup, attach_type, 0);
    // SAFETY: numbers only.
    unsafe { bpf(attr::PROG_DETACH, &mut attr) }
}

fn attachment(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32, flags: u32) -> attr::Attach {
    attr::Attach {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_bpf_fd: program.as_raw_fd().cast_unsigned(),
        attach_type,
        attach_flags: flags,
        replace_bpf_fd: 0,
    }
}

/// A new map.
pub fn create_map(kind: u32, key: usize, value: usize, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = [kind, key as u32, value as u32, entries, flags];
    // SAFETY: the first five members of `bpf_attr` for this command; the rest is taken for zero.
    unsafe { descriptor(attr::MAP_CREATE, &mut attr) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Gives an object a name in a BPF file system: it lives as long as the name.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    let mut attr = attr::Pin { path: name.as_ptr() as u64, fd: fd.as_raw_fd().cast_unsigned(), flags: 0 };
    // SAFETY: the kernel reads the path to its end.
    unsafe { bpf(attr::OBJ_PIN, &mut attr) }
}

/// The object of a name in a BPF file system.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = c_path(path)?;
    let mut attr = attr::Pin { path: name.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads the path to its end.
    unsafe { descriptor(attr::OBJ_GET, &mut attr) }
}

/// The number of a link, from `struct bpf_link_info` (`include/uapi/linux/bpf.h`, Linux 5.8).
pub fn link_id(link: BorrowedFd<'_>) -> io::Result<u32> {
    // type, id.
    let mut info = [0_u32; 2];
    let mut attr = attr::Info {
        fd: link.as_raw_fd().cast_unsigned(),
        len: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes no more than `len` bytes to `info`, which outlives the call.
    unsafe { bpf(attr::OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info[1])
}

/// Whether a link of this number is there. To ask takes hold of it for an instant.
pub fn link_exists(id: u32) -> bool {
    // link_id, next_id, open_flags.
    let mut attr = [id, 0, 0];
    // SAFETY: no pointers.
    unsafe { descriptor(attr::LINK_GET_FD_BY_ID, &mut attr) }.is_ok()
}

/// Attaches a program to the getsockopt calls of a cgroup and those below it, until the link is
/// closed.
pub fn attach_getsockopt(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // prog_fd, target_fd, attach_type, flags.
    let (program, cgroup) = (program.as_raw_fd().cast_unsigned(), cgroup.as_raw_fd().cast_unsigned());
    let mut link = [program, cgroup, attr::CGROUP_GETSOCKOPT, 0];
    // SAFETY: no pointers.
    unsafe { descriptor(attr::LINK_CREATE, &mut link) }
}

/// One pass over what an iterator program tells.
pub fn iterate(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // prog_fd, target_fd, attach_type, flags.
    let mut link = [program.as_raw_fd().cast_unsigned(), 0, attr::TRACE_ITER, 0];
    // SAFETY: no pointers.
    let link = unsafe { descriptor(attr::LINK_CREATE, &mut link)? };
    let mut iterator = [link.as_raw_fd().cast_unsigned(), 0];
    // SAFETY: no pointers. The iterator keeps its link.
    unsafe { descriptor(attr::ITER_CREATE, &mut iterator) }
}

/// Statistics of a program, from `struct bpf_prog_info` (`include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Time spent in it, ns; 0 unless the kernel counts it.
    pub run_time_ns: u64,
    /// Runs; 0 unless the kernel counts them.
    pub run_cnt: u64,
    /// Runs that were skipped because it ran already on that CPU.
    pub recursion_misses: u64,
}

/// Reads a program's statistics. Members that an older kernel lacks read as 0.
pub fn program_info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    /// `struct bpf_prog_info` up to and including `recursion_misses`, as words.
    const WORDS: usize = 27;
    let mut info = [0u64; WORDS];
    let mut attr =
        attr::Info { fd: fd.as_raw_fd().cast_unsigned(), len: (WORDS * 8) as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: `info` is `len` bytes; all zero asks for no arrays.
    unsafe { bpf(attr::OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(ProgramInfo { run_time_ns: info[24], run_cnt: info[25], recursion_misses: info[26] })
}
