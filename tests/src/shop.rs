//! The shop: the scenario of the end-to-end test and of the demo.
//!
//! It has every kind of traffic that observers usually get wrong. Order: servers and the clients
//! whose connections are to be older than the agent start first ([`Shop::start`]); then the caller
//! starts its agents; then [`Shop::run`] starts the rest and waits for its end.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    app::scenario::{Call, How, Scenario, Serve},
    cluster::{Cluster, Kind, Port, ServicePort, Target, node_addresses},
    lab::{BLACK_HOLE, EXTERNAL_CLIENT, EXTERNAL_SERVER, Lab, process::AppProcess},
    truth::Truth,
};

/// Node port of the web frontend.
pub const WEB_NODE_PORT: u16 = 30080;
/// Group and port of the multicast sender.
pub const MULTICAST: &str = "239.255.13.37:6000";
/// How long any step may take before the lab gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running shop.
#[derive(Debug)]
pub struct Shop {
    /// Its processes; before the lab, so that they end before it is removed.
    processes: Vec<AppProcess>,
    /// The lab that it runs in.
    pub lab: Lab,
    seed: u64,
}

fn tcp(name: &'static str, number: u16) -> Port {
    Port { name, protocol: "TCP", number }
}

fn udp(name: &'static str, number: u16) -> Port {
    Port { name, protocol: "UDP", number }
}

fn front(name: &'static str, protocol: &'static str, port: u16, target: Target) -> ServicePort {
    ServicePort { name, protocol, port, target, node_port: None }
}

/// The shop's cluster on one or two nodes.
#[must_use]
pub fn cluster(nodes: &[&str], salt: u64) -> Cluster {
    let mut c = Cluster::new(nodes, salt);
    let last = nodes.len() - 1;
    c.workload("kube-system", Kind::Deployment, "coredns", &[udp("dns", 53), tcp("dns-tcp", 53)], &[0]);
    c.workload("shop", Kind::Deployment, "web", &[tcp("http", 8080)], &[0, last, 0]);
    c.workload("shop", Kind::Deployment, "api", &[tcp("http", 8080)], &[0, last]);
    c.workload("shop", Kind::Deployment, "cart", &[tcp("grpc", 9090)], &[0, last]);
    c.workload("shop", Kind::Deployment, "checkout-v1", &[tcp("http", 8080)], &[0]);
    c.workloads.last_mut().expect("just added").labels.insert("part".into(), "checkout".into());
    c.workload("shop", Kind::Deployment, "checkout-v2", &[tcp("http", 8080)], &[last]);
    c.workloads.last_mut().expect("just added").labels.insert("part".into(), "checkout".into());
    c.workload("shop", Kind::Deployment, "search", &[tcp("search", 9200)], &[last]);
    c.workload("shop", Kind::Deployment, "legacy", &[], &[0]);
    c.workload("data", Kind::StatefulSet, "db", &[tcp("postgres", 5432)], &[0, last]);
    c.workload("data", Kind::Deployment, "queue", &[tcp("amqp", 5672)], &[0]);
    c.workload("data", Kind::Deployment, "worker", &[], &[0, last]);
    c.workload("data", Kind::StatefulSet, "cache-east", &[udp("gossip", 7946)], &[0]);
    c.workload("data", Kind::StatefulSet, "cache-west", &[udp("gossip", 7946)], &[last]);
    c.workload("data", Kind::CronJob, "report", &[], &[0]);
    c.workload("ops", Kind::Deployment, "metrics", &[udp("statsd", 9125)], &[0]);
    let every: Vec<_> = (0..nodes.len()).collect();
    c.host_workload("ops", Kind::DaemonSet, "node-exporter", &[tcp("metrics", 9100)], &every);
    c.workload("ops", Kind::Deployment, "discovery", &[], &[0]);
    c.workload("ops", Kind::Deployment, "probe", &[], &[last]);

    c.service(
        "kube-system",
        "kube-dns",
        "coredns",
        &[front("dns", "UDP", 53, Target::Name("dns")), front("dns-tcp", "TCP", 53, Target::Name("dns-tcp"))],
    );
    let web = ServicePort { node_port: Some(WEB_NODE_PORT), ..front("http", "TCP", 80, Target::Name("http")) };
    c.service("shop", "web", "web", &[web]);
    c.service("shop", "api", "api", &[front("http", "TCP", 80, Target::Name("http"))]);
    c.service("shop", "cart", "cart", &[front("grpc", "TCP", 9090, Target::Name("grpc"))]);
    let checkout = c.service("shop", "checkout", "", &[front("http", "TCP", 80, Target::Number(8080))]);
    checkout.selector = ("part".into(), "checkout".into());
    checkout.only_reached = Some("checkout-v1".into());
    c.service("shop", "search", "search", &[front("search", "TCP", 9200, Target::Number(9200))]);
    c.service("data", "db", "db", &[front("postgres", "TCP", 5432, Target::Name("postgres"))]).headless = true;
    c.service("data", "queue", "queue", &[front("amqp", "TCP", 5672, Target::Name("amqp"))]);
    c.service("ops", "statsd", "metrics", &[front("statsd", "UDP", 8125, Target::Name("statsd"))]);
    c.external_names = BTreeMap::from([(
        "payments.example.com".to_owned(),
        vec![EXTERNAL_SERVER.0.parse().expect("an address"), EXTERNAL_SERVER.1.parse().expect("an address")],
    )]);
    c
}

const API: &str = "api.shop.svc.cluster.local:80";
const CART: &str = "cart.shop.svc.cluster.local:9090";
const CHECKOUT: &str = "checkout.shop.svc.cluster.local:80";
const SEARCH: &str = "search.shop.svc.cluster.local:9200";
const QUEUE: &str = "queue.data.svc.cluster.local:5672";
const STATSD: &str = "statsd.ops.svc.cluster.local:8125";
const DB0: &str = "db-0.db.data.svc.cluster.local:5432";
const DB: &str = "db.data.svc.cluster.local:5432";
const PAYMENTS: &str = "payments.example.com:443";

impl Shop {
    /// Makes the lab and starts what must be older than the agent. `app` is the path of
    /// `guardrail-lab-app`.
    ///
    /// # Errors
    /// The lab cannot be made, or a process is not ready in time.
    pub fn start(app: &Path, nodes: &[&str], seed: u64) -> Result<Self> {
        let salt = seed ^ u64::from(std::process::id()) << 20 ^ crate::app::log::now_ns();
        let lab = Lab::start(cluster(nodes, salt), app)?;
        let mut shop = Self { processes: Vec::new(), lab, seed };
        // Names first; then plain servers; then those that hold connections to them.
        for stage in 0..4 {
            let first = shop.processes.len();
            for (key, scenario) in shop.early(stage) {
                let scenario = shop.complete(scenario);
                let process = match key.strip_prefix("internet/") {
                    Some(name) => shop.lab.start_on_internet(name, scenario)?,
                    None => shop.lab.start_in_pod(&key, "", scenario)?,
                };
                shop.processes.push(process);
            }
            shop.wait_for(first, "ready")?;
        }
        Ok(shop)
    }

    /// Starts the rest, lets everybody make their calls and waits until all are done. The
    /// one-second pod is gone then.
    ///
    /// # Errors
    /// A process fails or is not done in time.
    pub fn run(&mut self) -> Result<()> {
        let first = self.processes.len();
        for (key, scenario) in self.late() {
            let scenario = self.complete(scenario);
            let process = match key.strip_prefix("host/") {
                Some(name) => self.lab.start_on_node(0, name, scenario)?,
                None => match key.strip_prefix("internet/") {
                    Some(name) => self.lab.start_on_internet(name, scenario)?,
                    None => self.lab.start_in_pod(&key, "", scenario)?,
                },
            };
            self.processes.push(process);
        }
        self.wait_for(first, "ready")?;
        for process in &mut self.processes {
            process.go()?;
        }
        self.report("")?;
        self.wait_for(0, "done")
    }

    /// Lets everybody make their calls once more, after [`Shop::run`] had them made `rounds` times.
    ///
    /// # Errors
    /// A process fails or is not done in time.
    pub fn run_again(&mut self, rounds: usize) -> Result<()> {
        self.processes.iter_mut().try_for_each(AppProcess::go)?;
        let deadline = Instant::now() + PATIENCE;
        self.processes.iter().try_for_each(|p| p.wait_for_nth("done", rounds + 1, deadline)).context("the shop")
    }

    /// Runs the CronJob's pod to its end, as a process whose name has this suffix: each run needs a
    /// log of its own.
    ///
    /// # Errors
    /// It fails or is not done in time.
    pub fn report(&self, suffix: &str) -> Result<()> {
        let key = self.pods("report").remove(0);
        let mut report = self.lab.start_in_pod(&key, suffix, self.complete(report()))?;
        report.wait_for("ready", Instant::now() + PATIENCE)?;
        report.go()?;
        report.wait_for("done", Instant::now() + PATIENCE)?;
        report.stop()?;
        self.lab.remove_pod_cgroup(&key)
    }

    /// The truth so far.
    ///
    /// # Errors
    /// The logs contradict each other.
    pub fn truth(&self) -> Result<Truth> {
        Truth::from_records(&self.lab.cluster, &self.lab.records()?)
    }

    /// Ends every process in an orderly way, which closes all held connections.
    ///
    /// # Errors
    /// One of them had failed.
    pub fn stop(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(AppProcess::stop)
    }

    fn wait_for(&self, first: usize, word: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        self.processes[first..].iter().try_for_each(|p| p.wait_for(word, deadline)).context("the shop")
    }

    fn complete(&self, scenario: Scenario) -> Scenario {
        Scenario { seed: self.seed, resolver: self.lab.resolver(), ..scenario }
    }

    /// Keys of a workload's pods.
    #[must_use]
    pub fn pods(&self, workload: &str) -> Vec<String> {
        let cluster = &self.lab.cluster;
        cluster
            .pods
            .iter()
            .filter(|p| cluster.workloads[p.workload].name == workload)
            .map(crate::cluster::Pod::key)
            .collect()
    }

    fn each(&self, workload: &str, scenario: &Scenario) -> Vec<(String, Scenario)> {
        self.pods(workload).into_iter().map(|key| (key, scenario.clone())).collect()
    }

    fn early(&self, stage: u32) -> Vec<(String, Scenario)> {
        let any: IpAddr = [0u16; 8].into();
        let listen = |port: u16, backlog: i32, mptcp: bool, v6_only: bool| Serve::Tcp {
            bind: SocketAddr::new(any, port),
            backlog,
            mptcp,
            reuse_port: false,
            v6_only,
        };
        let serves = |serve: Serve| Scenario { serve: vec![serve], ..Scenario::default() };
        let mut all = Vec::new();
        match stage {
            0 => {
                let dns = Serve::Dns { bind: SocketAddr::new(any, 53), records: self.lab.cluster.dns_records() };
                all.extend(self.each("coredns", &serves(dns)));
                let payments = Scenario {
                    serve: vec![
                        Serve::tcp(443),
                        // One of several addresses of this host: an answer from the wildcard would
                        // come from another one.
                        Serve::Udp {
                            bind: SocketAddr::new(EXTERNAL_SERVER.0.parse().expect("an address"), 123),
                            reply: true,
                            ignore: false,
                        },
                    ],
                    ..Scenario::default()
                };
                all.push(("internet/payments".into(), payments));
            }
            1 => {
                all.extend(self.each("search", &serves(listen(9200, 128, false, true))));
                all.extend(self.each("checkout-v2", &serves(Serve::tcp(8080))));
                let metrics = Scenario { serve: vec![Serve::udp(9125)], after: self.scrapes(), ..Scenario::default() };
                all.extend(self.each("metrics", &metrics));
                let exporter = Scenario {
                    serve: vec![Serve::Tcp {
                        bind: SocketAddr::new(any, 9100),
                        backlog: 16,
                        mptcp: false,
                        reuse_port: true,
                        v6_only: false,
                    }],
                    after: vec![Call::new(STATSD, How::UdpConnected, 8)],
                    ..Scenario::default()
                };
                all.extend(self.each("node-exporter", &exporter));
                // Two servers whose accepted sockets look like a client's: no backlog, and
                // Multipath TCP.
                all.extend(self.each("queue", &serves(listen(5672, 0, false, false))));
                let cart = Scenario {
                    after: vec![Call::new(STATSD, How::UdpMapped, 6)],
                    ..serves(listen(9090, 128, true, false))
                };
                all.extend(self.each("cart", &cart));
                all.push((self.pods("db").remove(0), serves(Serve::tcp(5432))));
            }
            2 => {
                let api = Scenario {
                    before: vec![Call::new(DB0, How::Held, 4)],
                    after: vec![
                        Call::new(STATSD, How::UdpUnconnected, 10),
                        Call::new(PAYMENTS, How::Tcp, 5),
                        Call::new(PAYMENTS, How::Tcp, 3).v6(),
                        Call::new("203.0.113.10:123", How::UdpConnected, 3),
                    ],
                    ..serves(Serve::tcp(8080))
                };
                all.extend(self.each("api", &api));
                let checkout = Scenario {
                    before: vec![Call::new(CART, How::HeldMptcp, 2)],
                    after: vec![Call::new(PAYMENTS, How::Tcp, 5)],
                    ..serves(Serve::tcp(8080))
                };
                all.extend(self.each("checkout-v1", &checkout));
                let worker = Scenario {
                    before: vec![Call::new(QUEUE, How::Held, 2)],
                    after: vec![Call::new(DB, How::Tcp, 10), Call::new(API, How::Tcp, 6).v6()],
                    ..Scenario::default()
                };
                all.extend(self.each("worker", &worker));
                // The second one replicates from the first.
                let before = vec![Call::new(DB0, How::Held, 1)];
                all.push((self.pods("db").remove(1), Scenario { before, ..serves(Serve::tcp(5432)) }));
            }
            _ => {
                let web = Scenario {
                    before: vec![Call::new(CART, How::Held, 1)],
                    after: vec![
                        Call::new(API, How::Tcp, 25),
                        Call::new(API, How::Tcp, 5).v6(),
                        Call::new(CHECKOUT, How::Tcp, 8),
                        Call::new(SEARCH, How::Tcp, 8).v6(),
                        Call::new(STATSD, How::UdpConnected, 10),
                    ],
                    ..serves(Serve::tcp(8080))
                };
                all.extend(self.each("web", &web));
            }
        }
        all
    }

    fn late(&self) -> Vec<(String, Scenario)> {
        let mut all = Vec::new();
        let legacy = Scenario {
            after: vec![
                Call::new("api.shop.svc.cluster.local", How::DnsMusl, 5),
                Call::new("db.data.svc.cluster.local", How::DnsTcp, 3),
                Call::new(CART, How::Held, 2),
            ],
            ..Scenario::default()
        };
        all.extend(self.each("legacy", &legacy));
        for (own, other) in [("cache-east", "cache-west"), ("cache-west", "cache-east")] {
            let gossip = Serve::Udp { bind: "0.0.0.0:7946".parse().expect("an address"), reply: false, ignore: false };
            let peer = self.lab.cluster.pod(&self.pods(other)[0]).addresses.0;
            let after = vec![Call::new(&format!("{peer}:7946"), How::UdpFromServed, 10)];
            all.extend(self.each(own, &Scenario { serve: vec![gossip], after, ..Scenario::default() }));
        }
        let node = self.node_address(0);
        let discovery = Scenario {
            after: vec![
                Call::new(MULTICAST, How::Multicast, 5),
                Call::new(&format!("{node}:{WEB_NODE_PORT}"), How::Tcp, 5),
            ],
            ..Scenario::default()
        };
        all.extend(self.each("discovery", &discovery));
        let probe = Scenario {
            after: vec![
                // Refused; where policies are enforced, unanswered.
                Call::new("db-0.db.data.svc.cluster.local:5433", How::Tcp, 1),
                Call::new(&format!("{BLACK_HOLE}:443"), How::Tcp, 2).timeout(300),
            ],
            ..Scenario::default()
        };
        all.extend(self.each("probe", &probe));
        let web = self.lab.cluster.pod(&self.pods("web")[0]).addresses.0;
        all.push((
            "host/kubelet".into(),
            Scenario { after: vec![Call::new(&format!("{web}:8080"), How::Tcp, 3)], ..Scenario::default() },
        ));
        let mut customer = Call::new(&format!("{node}:{WEB_NODE_PORT}"), How::Tcp, 5);
        customer.sources =
            Some(crate::app::scenario::AddressRange { first: EXTERNAL_CLIENT.parse().expect("an address"), count: 1 });
        all.push(("internet/customer".into(), Scenario { after: vec![customer], ..Scenario::default() }));
        all
    }

    fn scrapes(&self) -> Vec<Call> {
        (0..self.lab.cluster.nodes.len())
            .map(|node| Call::new(&format!("{}:9100", self.node_address(node)), How::Tcp, 5))
            .collect()
    }

    fn node_address(&self, node: usize) -> Ipv4Addr {
        node_addresses(node).0
    }
}

/// The CronJob's pod: a few questions to the database, then it is gone, within a second.
fn report() -> Scenario {
    Scenario { after: vec![Call::new(DB, How::Tcp, 3)], exit_when_done: true, ..Scenario::default() }
}
