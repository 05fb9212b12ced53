//! poll(2), eventfd(2), and the size of a page.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

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
