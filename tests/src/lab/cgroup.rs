//! cgroup v2 directories of the lab, in the shapes that kubelet gives them.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{cluster::Pod, lab::wait_until};

/// Where cgroup v2 is mounted, from `/proc/self/mountinfo` (proc(5)).
///
/// # Errors
/// It is not mounted.
pub fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    mounts
        .lines()
        .find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4).map(PathBuf::from))?
        })
        .context("no cgroup v2 is mounted")
}

/// How a node's kubelet names cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// systemd driver, containerd, nested as kind does it.
    NestedSystemd,
    /// systemd driver, CRI-O.
    SystemdCrio,
    /// cgroupfs driver, containerd.
    Cgroupfs,
}

impl Driver {
    /// The container's cgroup below the node's.
    #[must_use]
    pub fn path(self, pod: &Pod) -> String {
        let Pod { uid, container, .. } = pod;
        let under = uid.replace('-', "_");
        match self {
            Self::NestedSystemd => format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{under}.slice/cri-containerd-{container}.scope"
            ),
            Self::SystemdCrio => {
                format!(
                    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/crio-{container}.scope"
                )
            }
            Self::Cgroupfs => format!("kubepods/burstable/pod{uid}/{container}"),
        }
    }
}

/// Kills everything in a cgroup and removes it with all its children. A cgroup that does not exist
/// is fine.
///
/// # Errors
/// Something survives for a minute: emulated machines are slow.
pub fn remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    // Gone between the check and the write is as good as killed.
    let _ = fs::write(root.join("cgroup.kill"), "1");
    wait_until(Duration::from_secs(60), &format!("no process is left in {}", root.display()), || {
        let events = fs::read_to_string(root.join("cgroup.events")).unwrap_or_default();
        (!events.contains("populated 1")).then_some(())
    })?;
    // A process that is just exiting may hold its cgroup busy for a moment.
    wait_until(Duration::from_secs(60), &format!("{} can be removed", root.display()), || {
        remove_tree(root);
        (!root.exists()).then_some(())
    })
}

fn remove_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}
