//! Makes a [`Cluster`] real: node namespaces on a bridge behind a router, pod namespaces routed
//! through their node, cgroups, Services.
//!
//! Everything lives in network namespaces of its own; the machine's namespace, addresses, routes
//! and rules are never touched. Several labs may run beside each other.

pub mod bpffs;
pub mod cgroup;
pub mod cleanup;
pub mod fork;
pub mod machine;
pub mod netns;
pub mod pair;
pub mod plane;
pub mod process;
pub mod site;
pub mod socket;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    cgroup::Driver,
    netns::Netns,
    plane::{DataPlane, KubeProxy},
    process::AppProcess,
    site::Site,
};
use crate::{
    app::{log::Record, scenario::Scenario},
    cluster::{Cluster, Pod, inventory, node_addresses},
    container::Container,
};

/// A server on the internet, IPv4 and IPv6.
pub const EXTERNAL_SERVER: (&str, &str) = ("203.0.113.10", "2001:db8::10");
/// An address on the internet where packets vanish.
pub const BLACK_HOLE: &str = "203.0.113.99";
/// A client on the internet.
pub const EXTERNAL_CLIENT: &str = "198.51.100.7";
/// Internet addresses that sockets may use with `IP_FREEBIND`: 100.64.0.0/15 without configuration.
pub const EXTERNAL_RANGE: &str = "100.64.0.0/15";

/// Polls `condition` every few milliseconds until it gives a value.
///
/// # Errors
/// It gives none within `limit`; the message says `what` was waited for.
pub fn wait_until<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain: {what}", limit.as_secs_f32());
        }
        thread::sleep(Duration::from_millis(3));
    }
}

/// Whether the condition holds within a minute: emulated machines are slow.
pub fn until(mut holds: impl FnMut() -> bool) -> bool {
    wait_until(Duration::from_secs(60), "a condition", || holds().then_some(())).is_ok()
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its root cgroup: what the agent gets as `--cgroup-root`.
    pub cgroup: PathBuf,
    /// How its kubelet names cgroups.
    pub driver: Driver,
}

/// A running lab. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    /// Its unique name.
    pub name: String,
    /// The cluster as data.
    pub cluster: Cluster,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The internet: a router with addresses of its own.
    pub internet: Netns,
    pods: BTreeMap<String, Netns>,
    /// Files: scenarios, logs, inventory.
    pub directory: PathBuf,
    app: PathBuf,
    plane: Box<dyn DataPlane>,
    /// Dropped last.
    site: Site,
}

impl Lab {
    /// Makes the cluster real, without any process in it. `app` is the path of `guardrail-lab-app`.
    ///
    /// # Errors
    /// Not root, a tool is missing, or the kernel refuses something.
    pub fn start(cluster: Cluster, app: &Path) -> Result<Self> {
        Self::start_on(KubeProxy, cluster, app)
    }

    /// As [`Lab::start`], on another data plane.
    ///
    /// # Errors
    /// As [`Lab::start`], and those of the data plane.
    pub fn start_on(plane: impl DataPlane + 'static, cluster: Cluster, app: &Path) -> Result<Self> {
        let site = Site::new()?;
        let mut lab = Self {
            name: site.name.clone(),
            directory: site.directory.clone(),
            plane: Box::new(plane),
            cluster,
            nodes: Vec::new(),
            internet: Netns::new(true)?,
            pods: BTreeMap::new(),
            app: app.to_owned(),
            site,
        };
        lab.build()?;
        Ok(lab)
    }

    fn build(&mut self) -> Result<()> {
        fs::create_dir(self.site.cgroup.join("internet"))?;
        self.internet.ip(&format!(
            "link add br0 type bridge\nlink set br0 up\naddr add 172.18.0.1/24 dev br0\naddr add fd00:172:18::1/64 dev br0 nodad\n\
             addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\naddr add {BLACK_HOLE}/32 dev lo\naddr add {EXTERNAL_CLIENT}/32 dev lo\n\
             route add local {EXTERNAL_RANGE} dev lo\n",
            EXTERNAL_SERVER.0, EXTERNAL_SERVER.1
        ))?;
        self.internet.feed(
            &mut Command::new("iptables-restore"),
            &format!("*filter\n-A INPUT -d {BLACK_HOLE}/32 -j DROP\nCOMMIT\n"),
        )?;
        for index in 0..self.cluster.nodes.len() {
            self.build_node(index)?;
        }
        let pods: Vec<Pod> = self
            .cluster
            .pods
            .iter()
            .filter(|p| p.present && !self.cluster.workloads[p.workload].host_network)
            .cloned()
            .collect();
        for pod in pods {
            self.build_pod(&pod)?;
        }
        for (index, node) in self.nodes.iter().enumerate() {
            self.plane.node(&self.cluster, index, &node.netns)?;
        }
        self.write_inventory()
    }

    fn build_node(&mut self, index: usize) -> Result<()> {
        let name = self.cluster.nodes[index].clone();
        let netns = Netns::new(true)?;
        let (v4, v6) = node_addresses(index);
        self.internet.ip(&format!(
            "link add node{index} type veth peer name eth0 netns {}\nlink set node{index} master br0 up\n\
             route add 10.244.{index}.0/24 via {v4}\nroute add fd00:10:244:{index:x}::/64 via {v6}\n",
            netns.path().display()
        ))?;
        let mut lines = format!("link set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n");
        lines.push_str("route add default via 172.18.0.1\nroute add default via fd00:172:18::1\n");
        for other in (0..self.cluster.nodes.len()).filter(|&o| o != index) {
            let (via4, via6) = node_addresses(other);
            writeln!(
                lines,
                "route add 10.244.{other}.0/24 via {via4}\nroute add fd00:10:244:{other:x}::/64 via {via6}"
            )?;
        }
        netns.ip(&lines)?;
        let cgroup = self.site.cgroup.join(&name);
        fs::create_dir_all(cgroup.join("system.slice"))?;
        let driver = if index.is_multiple_of(2) { Driver::NestedSystemd } else { Driver::Cgroupfs };
        self.nodes.push(Node { name, netns, cgroup, driver });
        Ok(())
    }

    fn build_pod(&mut self, pod: &Pod) -> Result<()> {
        let netns = Netns::new(false)?;
        self.attach(pod, &netns)?;
        self.plane.pod(&self.cluster, pod, &netns, &self.nodes[pod.node].netns)?;
        self.pods.insert(pod.key(), netns);
        Ok(())
    }

    /// Gives a pod's namespace its cable, addresses and routes; the node learns the way to it.
    fn attach(&self, pod: &Pod, netns: &Netns) -> Result<()> {
        let number = self.cluster.pods.iter().position(|p| p.uid == pod.uid).context("a pod of this cluster")?;
        let (v4, v6) = pod.addresses;
        self.nodes[pod.node].netns.ip(&format!(
            "link add veth{number} type veth peer name eth0 netns {}\nlink set veth{number} up\naddr add 169.254.1.1/32 dev veth{number}\n\
             addr add fe80::1/64 dev veth{number} nodad\nroute replace {v4}/32 dev veth{number}\nroute replace {v6}/128 dev veth{number}\n",
            netns.path().display()
        ))?;
        netns.ip(&format!(
            "link set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\nroute add 169.254.1.1 dev eth0 scope link\n\
             route add default via 169.254.1.1 dev eth0\nroute add default via fe80::1 dev eth0\n"
        ))
    }

    /// Takes a pod off the network and puts another one, which was not present, in its place with
    /// the same addresses. The inventory on disk stays as it is: whoever reads it learns of the
    /// change later ([`Lab::write_inventory`]).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn move_addresses(&mut self, from: &str, to: &str) -> Result<()> {
        let old = self.index_of(from)?;
        let new = self.index_of(to)?;
        self.cluster.pods[new].addresses = self.cluster.pods[old].addresses;
        self.cluster.pods[old].present = false;
        self.cluster.pods[new].present = true;
        let node = &self.nodes[self.cluster.pods[old].node];
        node.netns.ip(&format!("link del veth{old}\n"))?;
        self.build_pod(&self.cluster.pods[new].clone())
    }

    fn index_of(&self, key: &str) -> Result<usize> {
        self.cluster.pods.iter().position(|p| p.key() == key).with_context(|| format!("no pod {key} in the lab"))
    }

    /// Writes the inventory of the cluster as it is now, in one step.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_inventory(&self) -> Result<()> {
        let next = self.directory.join("inventory.next");
        fs::write(&next, inventory::yaml(&self.cluster))?;
        fs::rename(next, self.inventory()).context("cannot put the inventory in its place")
    }

    /// The inventory file.
    #[must_use]
    pub fn inventory(&self) -> PathBuf {
        self.directory.join("inventory.yaml")
    }

    /// The container cgroup of a pod.
    #[must_use]
    pub fn pod_cgroup(&self, pod: &Pod) -> PathBuf {
        let node = &self.nodes[pod.node];
        node.cgroup.join(node.driver.path(pod))
    }

    /// Starts a process of the application in a pod. Its `process` and `log` are filled in: the
    /// pod's key, with `suffix` if it is not empty.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_in_pod(&self, key: &str, suffix: &str, scenario: Scenario) -> Result<AppProcess> {
        let pod = self.cluster.pod(key);
        let cgroup = self.pod_cgroup(pod);
        fs::create_dir_all(&cgroup)?;
        let netns = self.pods.get(key).unwrap_or(&self.nodes[pod.node].netns);
        self.start_app(&format!("{key}{suffix}"), scenario, netns, &cgroup)
    }

    /// Starts a process of a pod that has its sockets in another pod's network namespace, as the
    /// proxy of a node does.
    ///
    /// # Errors
    /// As [`Lab::start_in_pod`]; the other pod has no namespace of its own.
    pub fn start_in_namespace_of(&self, pod: &str, key: &str, scenario: Scenario) -> Result<AppProcess> {
        let cgroup = self.pod_cgroup(self.cluster.pod(key));
        fs::create_dir_all(&cgroup)?;
        let netns = self.pods.get(pod).with_context(|| format!("{pod} has no namespace of its own"))?;
        self.start_app(&format!("{key}:in:{pod}"), scenario, netns, &cgroup)
    }

    /// Removes the cgroup of a pod whose processes have ended.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_pod_cgroup(&self, key: &str) -> Result<()> {
        let cgroup = self.pod_cgroup(self.cluster.pod(key));
        cgroup::remove(cgroup.parent().context("a container's cgroup lies in its pod's")?)
    }

    /// Starts a process of the application on the internet; its name is `internet/NAME`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_on_internet(&self, name: &str, scenario: Scenario) -> Result<AppProcess> {
        self.start_app(&format!("internet/{name}"), scenario, &self.internet, &self.site.cgroup.join("internet"))
    }

    /// Starts a process of the application on a node, outside any pod; its name is
    /// `host/NODE/NAME`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start_on_node(&self, node: usize, name: &str, scenario: Scenario) -> Result<AppProcess> {
        let node = &self.nodes[node];
        let cgroup = node.cgroup.join(format!("system.slice/{name}.service"));
        fs::create_dir_all(&cgroup)?;
        self.start_app(&format!("host/{}/{name}", node.name), scenario, &node.netns, &cgroup)
    }

    fn start_app(&self, process: &str, mut scenario: Scenario, netns: &Netns, cgroup: &Path) -> Result<AppProcess> {
        let stem = process.replace('/', "+");
        scenario.process = process.to_owned();
        scenario.log = self.directory.join(format!("{stem}.log"));
        let file = self.directory.join(format!("{stem}.json"));
        fs::write(&file, serde_json::to_vec_pretty(&scenario)?)?;
        AppProcess::start(process, &self.app, &file, netns, cgroup)
    }

    /// Starts another program on a node, outside any pod (`system.slice/NAME.service`).
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn_on_node(&self, node: usize, name: &str, command: Command) -> Result<Child> {
        let node = &self.nodes[node];
        let cgroup = node.cgroup.join(format!("system.slice/{name}.service"));
        fs::create_dir_all(&cgroup)?;
        process::spawn(command, &node.netns, &cgroup)
    }

    /// As [`Lab::spawn_on_node`], inside a container that shares the node's network. The command is
    /// a path inside.
    ///
    /// # Errors
    /// The container cannot be made, or the process not started.
    pub fn spawn_contained(&self, node: usize, name: &str, command: Command, container: &Container) -> Result<Child> {
        let node = &self.nodes[node];
        let cgroup = node.cgroup.join(format!("system.slice/{name}.service"));
        fs::create_dir_all(&cgroup)?;
        process::spawn_then(command, &node.netns, &cgroup, container.prepare()?)
    }

    /// Every record that the applications wrote so far.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "log") {
                for line in fs::read_to_string(entry.path())?.lines() {
                    // The last line may be half written while its process runs.
                    if let Ok(record) = serde_json::from_str(line) {
                        records.push(record);
                    }
                }
            }
        }
        records.sort_by_key(|r: &Record| r.at_ns);
        Ok(records)
    }

    /// The cluster's DNS server, `kube-dns` in `kube-system`.
    #[must_use]
    pub fn resolver(&self) -> Option<SocketAddr> {
        let service = self.cluster.services.iter().find(|s| s.name == "kube-dns")?;
        Some(SocketAddr::new(service.addresses.0.into(), 53))
    }
}
