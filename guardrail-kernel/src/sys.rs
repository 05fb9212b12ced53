//! bpf(2) commands that aya does not offer: batched lookups, lookup-and-delete, statistics of a
//! program. And poll, eventfd.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::Duration,
};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
/// `BPF_TRACE_ITER` of `enum bpf_attach_type`.
const BPF_TRACE_ITER: u32 = 28;
/// `BPF_MAP_TYPE_HASH`.
pub(crate) const MAP_TYPE_HASH: u32 = 1;
/// `BPF_F_NO_PREALLOC`: memory for elements that are there.
pub(crate) const NO_PREALLOC: u32 = 1;

/// Flag of an update: only if there is no such key.
pub(crate) const NOEXIST: u64 = 1;

/// `bpf_attr` for one element.
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

/// `bpf_attr.batch`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `bpf_attr.info`.
#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

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
pub(crate) struct Table<const K: usize, const V: usize> {
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
    pub(crate) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { fd: fd.try_clone_to_owned()?, take: true, batch: true, keys: Vec::new(), values: Vec::new() })
    }

    fn element(&self, key: Option<&[u8; K]>, value: *mut u8, flags: u64) -> Element {
        Element {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            value_or_next: value as u64,
            flags,
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
        let mut value = [0; V];
        let mut attr = self.element(Some(key), value.as_mut_ptr(), 0);
        // SAFETY: key and value are as long as the map's.
        found(unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attr) }, value)
    }

    /// Sets a value.
    pub(crate) fn set(&self, key: &[u8; K], value: &[u8; V], flags: u64) -> io::Result<()> {
        let mut attr = self.element(Some(key), value.as_ptr().cast_mut(), flags);
        // SAFETY: key and value are as long as the map's; the kernel only reads them.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }
    }

    /// Deletes a key, if it is there.
    pub(crate) fn delete(&self, key: &[u8; K]) -> io::Result<()> {
        let mut attr = self.element(Some(key), std::ptr::null_mut(), 0);
        // SAFETY: the key is as long as the map's.
        found(unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) }, ()).map(|_| ())
    }

    /// Deletes a key and gives its last value.
    pub(crate) fn take(&mut self, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
        if self.take {
            let mut value = [0; V];
            let mut attr = self.element(Some(key), value.as_mut_ptr(), 0);
            // SAFETY: key and value are as long as the map's.
            match unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) } {
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
    pub(crate) fn for_each(&mut self, mut each: impl FnMut(&[u8; K], &[u8; V])) -> io::Result<()> {
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
            if found(unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) }, ())?.is_none() {
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
            let mut attr = Batch {
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
            let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
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

/// A new map.
pub(crate) fn create_map(kind: u32, key: usize, value: usize, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = [kind, key as u32, value as u32, entries, flags];
    // SAFETY: the first five members of `bpf_attr` for this command; the rest is taken for zero.
    unsafe { descriptor(BPF_MAP_CREATE, &mut attr) }
}

/// `bpf_attr` for pinned objects.
#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Gives an object a name in a BPF file system: it lives as long as the name.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    let mut attr = Pin { path: name.as_ptr() as u64, fd: fd.as_raw_fd().cast_unsigned(), flags: 0 };
    // SAFETY: the kernel reads the path to its end.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }
}

/// The object of a name in a BPF file system.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = c_path(path)?;
    let mut attr = Pin { path: name.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads the path to its end.
    unsafe { descriptor(BPF_OBJ_GET, &mut attr) }
}

/// One pass over what an iterator program tells.
pub(crate) fn iterate(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // prog_fd, target_fd, attach_type, flags.
    let mut link = [program.as_raw_fd().cast_unsigned(), 0, BPF_TRACE_ITER, 0];
    // SAFETY: no pointers.
    let link = unsafe { descriptor(BPF_LINK_CREATE, &mut link)? };
    let mut iterator = [link.as_raw_fd().cast_unsigned(), 0];
    // SAFETY: no pointers. The iterator keeps its link.
    unsafe { descriptor(BPF_ITER_CREATE, &mut iterator) }
}

/// Statistics of a program, from `struct bpf_prog_info` (`include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProgramInfo {
    pub(crate) run_time_ns: u64,
    pub(crate) run_cnt: u64,
    pub(crate) recursion_misses: u64,
}

/// Reads a program's statistics. Members that an older kernel lacks read as 0.
pub(crate) fn program_info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    /// `struct bpf_prog_info` up to and including `recursion_misses`, as words.
    const WORDS: usize = 27;
    let mut info = [0u64; WORDS];
    let mut attr = Info { fd: fd.as_raw_fd().cast_unsigned(), len: (WORDS * 8) as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: `info` is `len` bytes; all zero asks for no arrays.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(ProgramInfo { run_time_ns: info[24], run_cnt: info[25], recursion_misses: info[26] })
}

/// An event counter, to wake a thread out of [`wait`].
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an event counter.
pub(crate) fn notify(fd: BorrowedFd<'_>) {
    let one = 1u64;
    // SAFETY: eight bytes are read. It fails only if the counter is at its end, and then the waiter
    // wakes anyway.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// Takes what an event counter counted.
pub(crate) fn acknowledge(fd: BorrowedFd<'_>) {
    let mut count = 0u64;
    // SAFETY: eight bytes are written. It fails if nothing was counted, which is as good.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
}

/// Waits until one of the descriptors is readable, or the time is over.
pub(crate) fn wait(fds: &[libc::c_int], timeout: Duration) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the array has as many elements as said.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    match result {
        -1 => Err(io::Error::last_os_error())
            .or_else(|error| if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }),
        _ => Ok(()),
    }
}

/// Size of a page, bytes.
pub(crate) fn page_bytes() -> u32 {
    // SAFETY: no pointers.
    u32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
