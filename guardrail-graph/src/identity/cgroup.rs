//! cgroup paths of the kubelet's making.
//!
//! Two drivers, three runtimes, nested or not:
//! - systemd:
//!   `…/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope`,
//!   the uid with `_` for `-`
//! - cgroupfs: `…/kubepods/burstable/podUID/ID`
//! - kind and other nested kubelets:
//!   `/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUID.slice/…`, `/kubelet/kubepods/…`
//! - scopes: `cri-containerd-ID.scope` (containerd), `crio-ID.scope` (CRI-O; `crio-conmon-ID.scope`
//!   is its monitor and no container), `docker-ID.scope` (cri-dockerd), `ID` alone (cgroupfs);
//!   containerd on systemd without slices also writes `SLICE:cri-containerd:ID`.
//!
//! Containers may have cgroups of their own below theirs.

/// What a path says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CgroupOwner {
    /// A pod's cgroup, or one below it.
    Pod {
        /// The uid in the path, with `-`: `metadata.uid`, or the config hash of a static pod.
        uid: String,
        /// The container id, if the path goes as deep and is not the runtime's monitor.
        container: Option<String>,
    },
    /// Anything else: a process of the node.
    Host,
}

/// Parses a path below the cgroup v2 root. Total: what is not a pod's is the host's.
#[must_use]
pub fn parse(path: &str) -> CgroupOwner {
    let mut components = path.split('/').filter(|c| !c.is_empty()).peekable();
    let mut below_kubepods = false;
    while let Some(component) = components.next() {
        let uid = if below_kubepods { pod_component(component) } else { None };
        if let Some(uid) = uid {
            return CgroupOwner::Pod { uid, container: components.peek().and_then(|c| container_component(c)) };
        }
        below_kubepods |= is_kubepods(component);
        // With the systemd driver the pod's own slice name repeats the whole chain, so it counts
        // even as the first component.
        if below_kubepods && let Some(uid) = pod_component(component) {
            return CgroupOwner::Pod { uid, container: components.peek().and_then(|c| container_component(c)) };
        }
    }
    CgroupOwner::Host
}

/// `kubepods`, `kubepods.slice`, `kubepods-burstable.slice`, `kubelet-kubepods.slice`, …
fn is_kubepods(component: &str) -> bool {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    // containerd without systemd slices writes `kubepods-besteffort-podUID.slice:cri-containerd:ID`
    // as one component.
    let name = name.split(':').next().unwrap_or(name);
    name.split('-').any(|part| part == "kubepods")
}

fn pod_component(component: &str) -> Option<String> {
    let name = component.split(':').next().unwrap_or(component);
    let (uid, systemd) = match name.strip_suffix(".slice") {
        Some(slice) => (slice.rsplit_once("-pod").map(|(_, uid)| uid).or_else(|| slice.strip_prefix("pod"))?, true),
        None => (name.strip_prefix("pod")?, false),
    };
    is_uid(uid).then(|| if systemd { uid.replace('_', "-") } else { uid.to_owned() })
}

/// A uid is a UUID (with `_` under systemd); a static pod's hash is 32 hex digits. Other uids are
/// allowed by the API, so any sane word counts.
fn is_uid(uid: &str) -> bool {
    uid.len() >= 8 && uid.len() <= 128 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn container_component(component: &str) -> Option<String> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let name = name.rsplit(':').next().unwrap_or(name);
    // conmon's cgroup is a sibling of the container's.
    if name.starts_with("crio-conmon-") {
        return None;
    }
    let id = match name.rsplit_once('-') {
        Some((_, id)) => id,
        None => name,
    };
    (id.len() >= 12 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "a7bf59f4-2705-4b3d-a70d-a2bd39fdc0bd";
    const SYSTEMD: &str = "a7bf59f4_2705_4b3d_a70d_a2bd39fdc0bd";
    const ID: &str = "1d2e411e1aaa60a4ad56adc9512c9a26b3f106779fbef60538bf471d4869c034";

    #[test]
    fn pods_of_every_driver_runtime_and_class_are_recognised() {
        let systemd = [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SYSTEMD}.slice/crio-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod{SYSTEMD}.slice/docker-{ID}.scope"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{SYSTEMD}.slice/cri-containerd-{ID}.scope"
            ),
            format!(
                "/system.slice/docker-{ID}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SYSTEMD}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{SYSTEMD}.slice/cri-containerd-{ID}.scope/init.scope/app.slice"),
            format!("/kubepods.slice/kubepods-pod{SYSTEMD}.slice/crio-{ID}.scope/container"),
            format!("/system.slice/containerd.service/kubepods-besteffort-pod{SYSTEMD}.slice:cri-containerd:{ID}"),
        ];
        let cgroupfs = [
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/besteffort/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/{ID}/deeper/still"),
            format!("/kubelet/kubepods/pod{UID}/{ID}"),
            format!("/docker/{ID}/kubelet/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/burstable/pod{UID}/crio-{ID}"),
        ];
        for path in systemd.iter().chain(&cgroupfs) {
            let expected = match path.starts_with("/system.slice/containerd.service") {
                // One component holds pod and container.
                true => CgroupOwner::Pod { uid: UID.into(), container: None },
                false => CgroupOwner::Pod { uid: UID.into(), container: Some(ID.into()) },
            };
            assert_eq!(parse(path), expected, "{path}");
        }
    }

    #[test]
    fn a_pod_level_cgroup_and_the_monitor_of_a_container_are_the_pods_without_container() {
        for path in [
            format!("/kubepods.slice/kubepods-pod{SYSTEMD}.slice"),
            format!("/kubepods.slice/kubepods-pod{SYSTEMD}.slice/crio-conmon-{ID}.scope"),
            format!("/kubepods/burstable/pod{UID}"),
        ] {
            assert_eq!(parse(&path), CgroupOwner::Pod { uid: UID.into(), container: None }, "{path}");
        }
    }

    #[test]
    fn a_container_cannot_nest_its_way_into_another_pod() {
        let other = "bbbbbbbb-2705-4b3d-a70d-a2bd39fdc0bd";
        for below in [
            format!("kubepods/pod{other}/{ID}"),
            format!("kubepods.slice/kubepods-pod{}.slice", other.replace('-', "_")),
            format!("pod{other}"),
            format!("x:kubepods-pod{other}.slice:cri-containerd:{ID}"),
        ] {
            for own in [
                format!("/kubepods/burstable/pod{UID}/{ID}"),
                format!("/kubepods.slice/kubepods-pod{SYSTEMD}.slice/cri-containerd-{ID}.scope"),
            ] {
                let path = format!("{own}/{below}");
                assert!(matches!(parse(&path), CgroupOwner::Pod { uid, .. } if uid == UID), "{path}");
            }
        }
    }

    #[test]
    fn a_static_pod_shows_its_config_hash() {
        let hash = "0123456789abcdef0123456789abcdef";
        for path in [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods/burstable/pod{hash}/{ID}"),
        ] {
            assert_eq!(parse(&path), CgroupOwner::Pod { uid: hash.into(), container: Some(ID.into()) }, "{path}");
        }
    }

    #[test]
    fn everything_else_is_the_host() {
        for path in [
            "/",
            "",
            "/system.slice/kubelet.service",
            "/kubepods.slice/kubepods-burstable.slice",
            "/kubepods",
            "/user.slice/user-1000.slice/podman-1234567890.scope",
            "/machine.slice/libpod-1d2e411e1aaa60a4ad56adc9512c9a26b3f106779fbef60538bf471d4869c034.scope",
            "/system.slice/pod12345678-like.service",
            "/kubepods/burstable/pod",
        ] {
            assert_eq!(parse(path), CgroupOwner::Host, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_gives_an_answer(path in "(/(kubepods|pod|[a-z0-9_.:-]{0,40})){0,6}|.{0,200}") {
            let _ = parse(&path);
        }
    }
}
