//! The program that sees what redirected connections dialled. It stands in the way of every
//! getsockopt of the node, so it is attached when the first proxy listens, once, and stays: each
//! attaching makes calls that are under way take the long way.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use guardrail_graph::observe::PROXY_PORTS;

use crate::bpf;

/// The program, loaded, and its link once it is attached.
#[derive(Debug)]
pub(crate) struct Redirects {
    program: OwnedFd,
    link: Option<OwnedFd>,
    /// Where its link belongs.
    pin: Option<PathBuf>,
    is_attached: bool,
    /// The network namespace of this process, which is the node's: its listeners are no pod's.
    node: Option<u64>,
}

impl Redirects {
    pub(crate) fn new(program: OwnedFd) -> Self {
        let node = std::fs::metadata("/proc/self/ns/net").map(|ns| ns.ino()).ok();
        Self { program, link: None, pin: None, is_attached: false, node }
    }

    /// Its link gets this name, or has it already from an earlier agent.
    pub(crate) fn pin_at(&mut self, path: PathBuf) {
        self.is_attached = path.exists();
        self.pin = Some(path);
    }

    pub(crate) fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.is_attached
    }

    /// Whether a listening socket is a reason to attach it: it may be that of a proxy in a pod.
    pub(crate) fn is_wanted(&self, port: u16, netns: u32) -> bool {
        !self.is_attached && PROXY_PORTS.contains(&port) && self.node != Some(netns.into())
    }

    /// Attaches it. It is not tried again, whatever comes of it.
    pub(crate) fn attach(&mut self, cgroup_root: &Path) -> io::Result<()> {
        self.is_attached = true;
        let root = File::open(cgroup_root)?;
        let link = bpf::attach_getsockopt(self.program.as_fd(), root.as_fd())?;
        match &self.pin {
            Some(path) => bpf::pin(link.as_fd(), path)?,
            None => self.link = Some(link),
        }
        Ok(())
    }
}
