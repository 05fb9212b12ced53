//! cgroups as the kernel side tells them, and the border of the observed subtree.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{collections::BTreeSet, fs, net::UdpSocket, os::unix::fs::MetadataExt as _};

use guardrail_graph::{
    observe::{CgroupId, FlowCounts, Observation},
    peer::Protocol::{Tcp, Udp},
};

use self::kernel::{Agent, Half, LEFT, Observed, Pair, RIGHT, SocketPod, at, cgroup_of, client, server, until};

/// What was reported of cgroups: made (with path) and removed, in order.
fn reported(seen: &Observed) -> Vec<(CgroupId, Option<String>)> {
    seen.0
        .iter()
        .filter_map(|o| match o {
            Observation::CgroupCreated { id, path, .. } => Some((*id, Some(path.clone()))),
            Observation::CgroupRemoved { id, .. } => Some((*id, None)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_cgroup_that_is_made_and_removed_at_once_is_told_with_its_path() {
    let Some(lab) = Pair::new() else { return };
    let agent = Agent::start(&lab);
    let path = lab.cgroup().join("kubepods.slice").join("cri-containerd-0123.scope");
    fs::create_dir_all(&path).expect("made");
    let id = CgroupId(fs::metadata(&path).expect("there").ino());
    fs::remove_dir(&path).expect("removed");
    agent.wait("made and removed", |seen| reported(seen).contains(&(id, None)));
    let (seen, stats) = agent.stop();
    let of: Vec<_> = reported(&seen).into_iter().filter(|(reported, _)| *reported == id).collect();
    assert_eq!(of, [(id, Some(lab.path_of(&path))), (id, None)]);
    let at: Vec<_> =
        seen.0
            .iter()
            .filter_map(|o| match o {
                Observation::CgroupCreated { id: reported, at, .. }
                | Observation::CgroupRemoved { id: reported, at } => (*reported == id).then_some(*at),
                _ => None,
            })
            .collect();
    assert!(at[0] < at[1], "{at:?}");
    assert_eq!((stats.events["cgroup_created"], stats.events["cgroup_removed"]), (3, 1), "root, parent, child");
}

#[test]
fn cgroups_that_are_there_at_the_start_and_those_of_later_have_paths_from_the_same_root() {
    let Some(lab) = Pair::new() else { return };
    let (early, late) = (lab.cgroup().join("early/a"), lab.cgroup().join("early/b"));
    fs::create_dir_all(&early).expect("made");
    let agent = Agent::start(&lab);
    fs::create_dir(&late).expect("made");
    let id = |path: &std::path::Path| CgroupId(fs::metadata(path).expect("there").ino());
    let expected: BTreeSet<_> = [lab.cgroup(), &lab.cgroup().join("early"), &early, &late]
        .map(|path| (id(path), Some(lab.path_of(path))))
        .into();
    agent.wait("the later one", |seen| reported(seen).iter().any(|(reported, _)| *reported == id(&late)));
    let (seen, _) = agent.stop();
    let reported = reported(&seen);
    assert_eq!(reported.len(), expected.len(), "each once: {reported:?}");
    assert_eq!(reported.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn a_cgroup_made_anew_under_the_same_path_is_another_and_a_nested_one_is_its_own() {
    let Some(lab) = Pair::new() else { return };
    let db = lab.pod("db", Half::Right);
    let agent = Agent::start(&lab);
    let listener = db.listen(at(RIGHT, 8100));
    let name = "kubepods.slice/kubepods-pod0.slice/cri-containerd-0123.scope";
    let mut ids = Vec::new();
    let mut connect = |name: &str| {
        let pod = lab.pod(name, Half::Left);
        let connection = pod.connect(at(RIGHT, 8100)).expect("connected");
        drop((listener.accept().expect("accepted"), connection));
        ids.push(cgroup_of(&pod));
        pod.path.clone()
    };
    let path = connect(name);
    assert!(until(|| fs::remove_dir(&path).is_ok()), "the first one is empty and goes");
    assert_eq!(connect(name), path);
    let nested = connect(&format!("{name}/inner"));
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 3, "three cgroups: {ids:?}");
    let whole = FlowCounts { opened: 1, closed: 1, ..FlowCounts::default() };
    let of = |cgroup| kernel::Key { cgroup, ..client(&db, Tcp, LEFT, RIGHT, 8100) };
    let server = (server(&db, Tcp, RIGHT, LEFT, 8100), FlowCounts { opened: 3, closed: 3, ..FlowCounts::default() });
    let seen = agent.finish(&[(of(ids[0]), whole), (of(ids[1]), whole), (of(ids[2]), whole), server]);
    let reported = reported(&seen);
    for (id, path) in [(ids[0], &path), (ids[1], &path), (ids[2], &nested)] {
        assert!(reported.contains(&(id, Some(lab.path_of(path)))), "{id:?}: {reported:?}");
    }
    assert!(reported.contains(&(ids[0], None)), "the first one's end: {reported:?}");
}

#[test]
fn a_flood_of_cgroups_that_overruns_the_ring_is_made_good_and_counted() {
    const CGROUPS: usize = 1500;
    let Some(lab) = Pair::new() else { return };
    // While nothing is received the reader waits: what comes meanwhile must fit the ring (256 KiB,
    // a record each of some 700 bytes), and does not.
    let mut agent = Agent::held(&lab, |config| config.channel_batches = 1);
    let mut expected = BTreeSet::new();
    for number in 0..CGROUPS {
        let path = lab.cgroup().join(format!("pod-{number}"));
        fs::create_dir(&path).expect("made");
        let id = CgroupId(fs::metadata(&path).expect("there").ino());
        expected.insert((id, Some(lab.path_of(&path))));
        if number % 2 == 0 {
            fs::remove_dir(&path).expect("removed");
            expected.insert((id, None));
        }
    }
    agent.receive();
    agent.wait("all of them", |seen| expected.is_subset(&reported(seen).into_iter().collect()));
    let (seen, stats) = agent.stop();
    let reported: Vec<_> =
        reported(&seen).into_iter().filter(|(_, path)| path.as_deref() != Some(&lab.path_of(lab.cgroup()))).collect();
    assert_eq!(reported.len(), expected.len(), "each once");
    assert_eq!(reported.into_iter().collect::<BTreeSet<_>>(), expected);
    let lost: u64 = seen.losses().values().sum();
    assert_eq!(stats.losses.values().sum::<u64>(), lost);
    let is_hint =
        |reason: guardrail_graph::observe::LossReason| reason.class() == guardrail_graph::observe::LossClass::Hint;
    assert!(seen.losses().keys().all(|(reason, _)| is_hint(*reason)), "{:?}", seen.losses());
}

/// One of everything, from left to right.
struct Traffic {
    from: SocketPod,
    to: SocketPod,
    served: UdpSocket,
    listener: std::net::TcpListener,
}

impl Traffic {
    fn new(lab: &Pair) -> Self {
        let (from, to) = (lab.pod("from", Half::Left), lab.pod("to", Half::Right));
        let (served, listener) = (to.udp_at(at(RIGHT, 53)), to.listen(at(RIGHT, 8001)));
        Self { from, to, served, listener }
    }

    fn run(&self) {
        let connection = self.from.connect(at(RIGHT, 8001)).expect("connected");
        drop((self.listener.accept().expect("accepted"), connection));
        self.from.connect(at(RIGHT, 8002)).expect_err("nobody listens");
        let socket = self.from.udp(at(RIGHT, 53));
        socket.send_to(&[1; 30], at(RIGHT, 53)).expect("sent");
        let mut buffer = [0; 100];
        let (_, peer) = self.served.recv_from(&mut buffer).expect("received");
        self.served.send_to(&[2; 40], peer).expect("sent");
        socket.recv_from(&mut buffer).expect("received");
        drop(self.to.listen(at(RIGHT, 8003)));
        fs::create_dir(self.to.path.join("inner")).expect("made");
        fs::remove_dir(self.to.path.join("inner")).expect("removed");
    }

    /// What of it is a flow.
    fn flows(&self, found: u64) -> Vec<(kernel::Key, FlowCounts)> {
        let (from, to) = (&self.from, &self.to);
        let tcp = FlowCounts { opened: 1, closed: 1, ..FlowCounts::default() };
        let open = FlowCounts { found, ..FlowCounts::default() };
        let mut flows = vec![
            (client(from, Tcp, LEFT, RIGHT, 8001), tcp),
            (server(to, Tcp, RIGHT, LEFT, 8001), tcp),
            (client(from, Tcp, LEFT, RIGHT, 8002), FlowCounts { refused: 1, ..FlowCounts::default() }),
            (
                client(from, Udp, LEFT, RIGHT, 53),
                FlowCounts { opened: 1, bytes_sent: 30, bytes_received: 40, ..FlowCounts::default() },
            ),
            (
                server(to, Udp, RIGHT, LEFT, 53),
                FlowCounts { opened: 1, bytes_sent: 40, bytes_received: 30, ..FlowCounts::default() },
            ),
        ];
        if found > 0 {
            flows.push((client(from, Tcp, LEFT, RIGHT, 8004), open));
            flows.push((server(to, Tcp, RIGHT, LEFT, 8004), open));
        }
        flows
    }
}

#[test]
fn an_agent_sees_its_own_subtree_whole_and_nothing_of_another() {
    let (Some(mine), Some(theirs)) = (Pair::new(), Pair::new()) else { return };
    let (my_traffic, their_traffic) = (Traffic::new(&mine), Traffic::new(&theirs));
    // Open in both before any agent starts.
    let before: Vec<_> = [&my_traffic, &their_traffic]
        .map(|traffic| {
            let listener = traffic.to.listen(at(RIGHT, 8004));
            let connection = traffic.from.connect(at(RIGHT, 8004)).expect("connected");
            let accepted = listener.accept().expect("accepted");
            (listener, connection, accepted)
        })
        .into();
    let agents = [Agent::start(&mine), Agent::start(&theirs)];
    their_traffic.run();
    my_traffic.run();
    let [my_agent, their_agent] = agents;
    for (agent, lab, traffic) in [(my_agent, &mine, &my_traffic), (their_agent, &theirs, &their_traffic)] {
        let seen = agent.finish(&traffic.flows(1));
        let own = reported(&seen);
        assert!(
            own.iter().filter_map(|(_, path)| path.as_ref()).all(|path| path.starts_with(&lab.path_of(lab.cgroup()))),
            "{own:?}"
        );
        let known: BTreeSet<_> = own.iter().map(|(id, _)| *id).collect();
        assert!(seen.cgroups().is_subset(&known), "{:?}", seen.cgroups());
        let ports: BTreeSet<u16> = seen
            .0
            .iter()
            .filter_map(|o| match o {
                Observation::Listening { port, .. } => Some(*port),
                _ => None,
            })
            .collect();
        assert_eq!(ports, BTreeSet::from([8001, 8003, 8004]));
    }
    drop(before);
}

#[test]
fn an_agent_at_the_root_of_the_hierarchy_sees_what_is_anywhere_below() {
    let Some(lab) = Pair::new() else { return };
    let traffic = Traffic::new(&lab);
    // As on a node. Whatever else runs on this machine is seen too.
    let agent = Agent::with(&lab, |config| config.cgroup_root = lab.mount.clone());
    traffic.run();
    let expected = traffic.flows(0);
    agent.wait("one of everything", |seen| {
        let flows = seen.flows();
        expected.iter().all(|(key, counts)| flows.get(key) == Some(counts))
    });
    let (seen, _) = agent.stop();
    assert!(reported(&seen).contains(&(cgroup_of(&traffic.to), Some(lab.path_of(&traffic.to.path)))));
}
