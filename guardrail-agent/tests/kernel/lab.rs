//! Two network namespaces joined by a veth pair, and a cgroup of the test's own.

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use guardrail_agent::kernel::find_cgroup2_root;

use super::{
    Pod,
    agent::until,
    process::{in_netns, new_netns},
};

/// Addresses of the two ends.
pub(crate) const LEFT: &str = "10.77.0.1";
/// See [`LEFT`].
pub(crate) const RIGHT: &str = "10.77.0.2";
/// See [`LEFT`].
pub(crate) const LEFT_V6: &str = "fd77::1";
/// See [`LEFT`].
pub(crate) const RIGHT_V6: &str = "fd77::2";

/// Left: has also 10.76.0.0/16, all of it. Routes 10.98.0.0/16 to the right, which drops it silently, and 10.99.0.0/16, which the right refuses with ICMP.
const LEFT_SETUP: &str = "link set lo up
link set left up
addr add 10.77.0.1/24 dev left
addr add fd77::1/64 dev left nodad
route add local 10.76.0.0/16 dev lo
route add 10.98.0.0/16 via 10.77.0.2
route add 10.99.0.0/16 via 10.77.0.2
route add 239.0.0.0/8 dev left
";
const RIGHT_SETUP: &str = "link set lo up
link set right up
addr add 10.77.0.2/24 dev right
addr add fd77::2/64 dev right nodad
route add 10.76.0.0/16 via 10.77.0.1
route add blackhole 10.98.0.0/16
route add unreachable 10.99.0.0/16
route add 239.0.0.0/8 dev right
";

/// Prefix of the cgroups that tests make; the process id follows, so that what a killed run left can be told.
const PREFIX: &str = "guardrail-kernel-test-";

/// Which namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// [`LEFT`].
    Left,
    /// [`RIGHT`].
    Right,
}

/// The lab of one test. Make it first, so that it is dropped last.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The cgroup2 mount.
    pub(crate) mount: PathBuf,
    /// The test's cgroup.
    pub(crate) cgroup: PathBuf,
    left: OwnedFd,
    right: OwnedFd,
}

impl Lab {
    /// A new lab. `None`: this is not root, and the test cannot run (which is a failure where `CI=true` says that it must).
    pub(crate) fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // SAFETY: no arguments.
        if unsafe { libc::geteuid() } != 0 {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "kernel tests need root, and CI=true says that they must run"
            );
            eprintln!("NOT RUN: kernel tests need root");
            return None;
        }
        let mount = find_cgroup2_root().expect("a cgroup2 mount");
        remove_left_overs(&mount);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = mount.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&cgroup).expect("the test's cgroup is made");
        let (left, right) = (new_netns(), new_netns());
        let lab = Self { mount, cgroup, left, right };
        let peer = format!("/proc/{}/fd/{}", std::process::id(), lab.right.as_raw_fd());
        lab.ip(Side::Left, &format!("link add left type veth peer name right netns {peer}\n{LEFT_SETUP}"));
        lab.ip(Side::Right, RIGHT_SETUP);
        lab.sysctl(Side::Right, "net/ipv4/ip_forward", "1");
        Some(lab)
    }

    /// `ip -batch` in one namespace.
    pub(crate) fn ip(&self, side: Side, batch: &str) {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), batch).expect("written");
        let output = in_netns(self.netns(side), || {
            Command::new("ip").arg("-batch").arg(file.path()).output().expect("ip (package iproute2) runs")
        });
        assert!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Sets a network setting of one namespace.
    pub(crate) fn sysctl(&self, side: Side, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        in_netns(self.netns(side), || fs::write(&path, value)).expect("the setting is written");
    }

    /// The namespace of one side.
    pub(crate) fn netns(&self, side: Side) -> &OwnedFd {
        match side {
            Side::Left => &self.left,
            Side::Right => &self.right,
        }
    }

    /// A pod below the test's cgroup.
    pub(crate) fn pod(&self, name: &str, side: Side) -> Pod {
        let path = self.cgroup.join(name);
        fs::create_dir_all(&path).expect("the pod's cgroup is made");
        Pod::new(&path, self.netns(side))
    }

    /// Path of a cgroup from the root of the hierarchy, as long as the mount shows all of it.
    pub(crate) fn path_of(&self, directory: &Path) -> String {
        format!("/{}", directory.strip_prefix(&self.mount).expect("below the mount").display())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The processes inside have ended, but the kernel may still be at it.
        let gone = until(|| remove(&self.cgroup));
        if !gone && !std::thread::panicking() {
            panic!("{} cannot be removed", self.cgroup.display());
        }
    }
}

/// Removes a cgroup with all below it. Whether it is gone.
fn remove(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
    !cgroup.exists()
}

/// Removes what killed runs left.
fn remove_left_overs(mount: &Path) {
    for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).map(str::to_owned);
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}
