//! Network namespaces without names: they live as long as a file descriptor or a process in them,
//! so a crash leaves none behind.

use std::{
    fs::File,
    io::{self, Write as _},
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};

/// A network namespace.
#[derive(Debug)]
pub struct Netns(OwnedFd);

impl Netns {
    /// A new one with loopback up, IPv6 without duplicate address detection, and no reverse path
    /// filter. `forwarding` makes it a router.
    ///
    /// # Errors
    /// Not root, or the kernel refuses.
    pub fn new(forwarding: bool) -> Result<Self> {
        let make = move || -> Result<Self> {
            // SAFETY: plain system call; it concerns only this short-lived thread.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error()).context("cannot make a network namespace");
            }
            let sysctls = [
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/router_solicitations", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv4/ip_forward", if forwarding { "1" } else { "0" }),
                ("ipv6/conf/all/forwarding", if forwarding { "1" } else { "0" }),
            ];
            for (name, value) in sysctls {
                std::fs::write(format!("/proc/sys/net/{name}"), value)
                    .with_context(|| format!("cannot set net/{name}"))?;
            }
            raise_loopback().context("cannot set up the loopback device")?;
            Ok(Self(File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")?.into()))
        };
        thread::spawn(make).join().expect("the namespace thread does not panic")
    }

    /// A path by which `ip` finds this namespace while we live.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs `work` on a thread inside this namespace; sockets it opens stay there.
    ///
    /// # Panics
    /// `work` panics, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(self.0.as_fd()).expect("a namespace that we made can be entered");
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip -batch` with these lines inside this namespace.
    ///
    /// # Errors
    /// A line fails; the message names it.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed(Command::new("ip").args(["-batch", "-"]), lines)
    }

    /// Runs a command inside this namespace with `input` on its standard input.
    ///
    /// # Errors
    /// It cannot be started, or fails; the message has its standard error.
    pub fn feed(&self, command: &mut Command, input: &str) -> Result<()> {
        self.run(|| {
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {command:?}"))?;
            child
                .stdin
                .take()
                .expect("piped")
                .write_all(input.as_bytes())
                .with_context(|| format!("{command:?} does not read its input"))?;
            let output = child.wait_with_output()?;
            if !output.status.success() {
                bail!("{command:?} failed: {}\ninput:\n{input}", String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(())
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves the calling thread into a network namespace. Async-signal-safe: also used between fork and
/// exec.
///
/// # Errors
/// As `setns(2)`.
pub fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain system call on a valid descriptor.
    if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets `lo` up in the namespace of the calling thread (netdevice(7)).
fn raise_loopback() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: all zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request names a device and its flags, which this command reads.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
