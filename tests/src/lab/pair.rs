//! Two network namespaces joined by a cable, and pods whose sockets the test uses itself.
//!
//! A [`SocketPod`] is a process that does one thing: it makes sockets, in its own cgroup and
//! network namespace, and hands their descriptors to the test. Both are fixed when a socket is
//! made, so the test can drive both ends of a connection from one thread, in whatever order it
//! wants, while its own cgroup is a third one.

mod pod;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use self::pod::SocketPod;
use super::{bpffs::BpfFs, cgroup, netns::Netns, site::Site};
use crate::bins;

/// Addresses of the two ends.
pub const LEFT: &str = "10.77.0.1";
/// See [`LEFT`].
pub const RIGHT: &str = "10.77.0.2";
/// See [`LEFT`].
pub const LEFT_V6: &str = "fd77::1";
/// See [`LEFT`].
pub const RIGHT_V6: &str = "fd77::2";

/// Left: has also 10.76.0.0/16, all of it. Routes 10.98.0.0/16 to the right, which drops it
/// silently, and 10.99.0.0/16, which the right refuses with ICMP.
const LEFT_SETUP: &str = "link set left up
addr add 10.77.0.1/24 dev left
addr add fd77::1/64 dev left nodad
route add local 10.76.0.0/16 dev lo
route add 10.98.0.0/16 via 10.77.0.2
route add 10.99.0.0/16 via 10.77.0.2
route add 239.0.0.0/8 dev left
";
const RIGHT_SETUP: &str = "link set right up
addr add 10.77.0.2/24 dev right
addr add fd77::2/64 dev right nodad
route add 10.76.0.0/16 via 10.77.0.1
route add blackhole 10.98.0.0/16
route add unreachable 10.99.0.0/16
route add 239.0.0.0/8 dev right
";

/// Which namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// [`LEFT`].
    Left,
    /// [`RIGHT`].
    Right,
}

/// The lab of one test. Make it first, so that it is dropped last.
#[derive(Debug)]
pub struct Pair {
    /// The cgroup v2 mount.
    pub mount: PathBuf,
    /// The cgroup and the files of the test.
    pub site: Site,
    left: Netns,
    right: Netns,
}

impl Pair {
    /// A new lab. `None`: this is not root, and the test cannot run (which is a failure where
    /// `CI=true` says that it must).
    ///
    /// # Panics
    /// The kernel refuses something.
    #[must_use]
    pub fn new() -> Option<Self> {
        if !bins::can_run("a test of the kernel side") {
            return None;
        }
        let mount = cgroup::mount().expect("a cgroup v2 mount");
        let site = Site::new().expect("the cgroup and the directory of the test are made");
        let netns = |forwarding| Netns::new(forwarding).expect("a network namespace");
        let lab = Self { mount, site, left: netns(false), right: netns(false) };
        let right = lab.right.path();
        lab.ip(Half::Left, &format!("link add left type veth peer name right netns {}\n{LEFT_SETUP}", right.display()));
        lab.ip(Half::Right, RIGHT_SETUP);
        lab.sysctl(Half::Right, "net/ipv4/ip_forward", "1");
        Some(lab)
    }

    /// `ip -batch` in one namespace.
    ///
    /// # Panics
    /// A line fails.
    #[track_caller]
    pub fn ip(&self, side: Half, batch: &str) {
        self.netns(side).ip(batch).expect("ip (package iproute2) does as it is told");
    }

    /// Sets a network setting of one namespace.
    ///
    /// # Panics
    /// There is no such setting.
    pub fn sysctl(&self, side: Half, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        self.netns(side).run(|| fs::write(&path, value)).expect("the setting is written");
    }

    /// The namespace of one side.
    #[must_use]
    pub fn netns(&self, side: Half) -> &Netns {
        match side {
            Half::Left => &self.left,
            Half::Right => &self.right,
        }
    }

    /// The cgroup of the test.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.site.cgroup
    }

    /// A pod below the test's cgroup.
    ///
    /// # Panics
    /// Its cgroup cannot be made.
    #[must_use]
    pub fn pod(&self, name: &str, side: Half) -> SocketPod {
        let path = self.cgroup().join(name);
        fs::create_dir_all(&path).expect("the pod's cgroup is made");
        SocketPod::new(&path, self.netns(side))
    }

    /// A BPF file system of the test's own.
    ///
    /// # Panics
    /// It cannot be mounted.
    #[must_use]
    pub fn bpffs(&self) -> BpfFs {
        BpfFs::mount(&self.site.directory).expect("a BPF file system is mounted")
    }

    /// Path of a cgroup from the root of the hierarchy, as long as the mount shows all of it.
    ///
    /// # Panics
    /// It is not below the mount.
    #[must_use]
    pub fn path_of(&self, directory: &Path) -> String {
        format!("/{}", directory.strip_prefix(&self.mount).expect("below the mount").display())
    }
}
