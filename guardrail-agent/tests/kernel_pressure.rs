//! What happens at the bounds: a ring far too small, a map far too small, a cgroup over its budget.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use guardrail_graph::{
    observe::{FlowCounts, LossReason, Observation, Remote},
    peer::Protocol::{Tcp, Udp},
};

use self::kernel::{Agent, Key, LEFT, Lab, RIGHT, Side, at, client, server, until};

/// An hour: what is observed is what the end finds.
const NEVER: Duration = Duration::from_secs(3600);

/// One of 65,536 addresses where nobody answers.
fn nobody(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 98, high, low)
}

#[test]
fn a_ring_of_one_page_and_20_000_new_keys_lose_no_flow_only_hints_and_count_those() {
    const KEYS: u16 = 20_000;
    let Some(lab) = Lab::new() else { return };
    let web = lab.pod("web", Side::Left);
    let mut agent = Agent::held(&lab, |config| {
        config.ring_bytes = 4096;
        config.flow_entries = 65_536;
        config.new_keys_per_cgroup = 65_536;
        // While nobody receives, the reader waits with two batches in hand: the ring must run over.
        config.channel_batches = 1;
    });
    let socket = web.udp(at("10.98.0.0", 0));
    for number in 0..KEYS {
        let to = SocketAddr::new(nobody(number).into(), 1000 + number % 7);
        socket.send_to(&[0; 8], to).expect("sent");
    }
    agent.receive();
    agent.wait("every key", |seen| seen.flows().len() == usize::from(KEYS));
    let (seen, stats) = agent.stop();
    let expected: BTreeMap<Key, FlowCounts> = (0..KEYS)
        .map(|number| {
            let key = client(&web, Udp, LEFT, &nobody(number).to_string(), 1000 + number % 7);
            (key, FlowCounts { opened: 1, bytes_sent: 8, ..FlowCounts::default() })
        })
        .collect();
    assert!(seen.flows() == expected, "the flows are these and no others");
    let hints_lost = stats.losses[&LossReason::RingFull];
    assert!(hints_lost > 0, "the ring ran over");
    assert_eq!(
        hints_lost + stats.events["flow_hint"],
        u64::from(KEYS),
        "each new key is a hint, read or counted as lost"
    );
    assert_eq!(seen.losses(), BTreeMap::from([((LossReason::RingFull, None), hints_lost)]), "nothing else is lost");
    assert_eq!(stats.losses.values().sum::<u64>(), hints_lost);
}

#[test]
fn a_map_of_256_entries_names_the_cgroups_whose_remotes_it_could_not_keep() {
    let Some(lab) = Lab::new() else { return };
    let (early, many, late) = (lab.pod("early", Side::Left), lab.pod("many", Side::Left), lab.pod("late", Side::Left));
    let agent = Agent::with(&lab, |config| {
        config.flow_entries = 256;
        config.sweep_interval = NEVER;
    });
    let send = |pod: &kernel::Pod, to: Ipv4Addr, port: u16| {
        let socket = pod.udp(at("10.98.0.0", 0));
        socket.send_to(&[0; 4], SocketAddr::new(to.into(), port)).expect("sent");
    };
    send(&early, nobody(0), 900);
    // Ninety per cent are 230 entries; then one coarse key for all.
    for number in 0..400 {
        send(&many, nobody(number), 901);
    }
    // A coarse key for each port, while there is room (256 entries), then none.
    for port in 0..60 {
        send(&late, nobody(0), 1000 + port);
    }
    let (seen, stats) = agent.stop();
    let flows = seen.flows();
    let once = FlowCounts { opened: 1, bytes_sent: 4, ..FlowCounts::default() };
    assert_eq!(flows[&client(&early, Udp, LEFT, "10.98.0.0", 900)], once);
    let of = |pod: &kernel::Pod, coarse: bool| -> Vec<u64> {
        flows
            .iter()
            .filter(|(key, _)| key.cgroup == pod.cgroup && (key.remote == Remote::Many) == coarse)
            .map(|(_, counts)| counts.opened)
            .collect()
    };
    assert_eq!(of(&many, false), vec![1; 229]);
    assert_eq!(of(&many, true), [400 - 229], "what has no entry of its own is in the coarse one");
    assert_eq!(of(&late, false), [0; 0]);
    assert_eq!(of(&late, true), vec![1; 256 - 231]);
    assert_eq!(
        seen.losses(),
        BTreeMap::from([
            ((LossReason::CoarseClient, Some(many.cgroup)), 400 - 229),
            ((LossReason::CoarseClient, Some(late.cgroup)), 256 - 231),
            ((LossReason::MapFull, Some(late.cgroup)), 60 - (256 - 231)),
        ])
    );
    assert_eq!(stats.map_capacity, 256);
}

#[test]
fn a_full_map_is_room_again_after_two_sweeps_without_traffic() {
    let Some(lab) = Lab::new() else { return };
    let web = lab.pod("web", Side::Left);
    let agent = Agent::with(&lab, |config| config.flow_entries = 256);
    let socket = web.udp(at("10.98.0.0", 0));
    for number in 0..300 {
        socket.send_to(&[0; 4], SocketAddr::new(nobody(number).into(), 950)).expect("sent");
    }
    // Entries go until the map is half empty.
    assert!(until(|| agent.kernel.stats().map_entries <= 128 && agent.kernel.stats().sweeps > 1));
    socket.send_to(&[0; 4], at("10.98.200.1", 951)).expect("sent");
    let key = client(&web, Udp, LEFT, "10.98.200.1", 951);
    agent.wait("the new remote by its address", |seen| seen.flows().contains_key(&key));
    let (seen, _) = agent.stop();
    let opened: u64 = seen.flows().values().map(|counts| counts.opened).sum();
    assert_eq!(opened, 301, "what went out of the map was told before");
}

#[test]
fn a_server_over_its_budget_keeps_all_its_clients_in_one_flow_without_loss() {
    const BUDGET: u32 = 16;
    const CLIENTS: u8 = 60;
    let (Some(lab), Some(elsewhere)) = (Lab::new(), Lab::new()) else { return };
    // The clients' cgroup is not observed: their own budgets are not at stake.
    let db = lab.pod("db", Side::Right);
    pod_of_two(&elsewhere, &lab, |clients| {
        let agent = Agent::with(&lab, |config| config.new_keys_per_cgroup = BUDGET);
        let (listener, served) = (db.listen(at(RIGHT, 9001)), db.udp_at(at(RIGHT, 9002)));
        for number in 0..CLIENTS {
            let from = SocketAddr::new(Ipv4Addr::new(10, 76, 0, number).into(), 0);
            let connection = clients.connect_from(Some(from), at(RIGHT, 9001)).expect("connected");
            drop((listener.accept().expect("accepted"), connection));
        }
        for number in 0..CLIENTS {
            let socket = clients.udp_at(SocketAddr::new(Ipv4Addr::new(10, 76, 1, number).into(), 0));
            socket.send_to(&[1; 6], at(RIGHT, 9002)).expect("sent");
            let mut buffer = [0; 10];
            let (_, peer) = served.recv_from(&mut buffer).expect("received");
            served.send_to(&[2; 9], peer).expect("sent");
            socket.recv_from(&mut buffer).expect("received");
        }
        let mut expected = Vec::new();
        let (budget, clients) = (u64::from(BUDGET), u64::from(CLIENTS));
        let whole = |n| FlowCounts { opened: n, closed: n, ..FlowCounts::default() };
        let udp = |n| FlowCounts { opened: n, bytes_sent: 9 * n, bytes_received: 6 * n, ..FlowCounts::default() };
        for number in 0..BUDGET {
            expected.push((server(&db, Tcp, RIGHT, &format!("10.76.0.{number}"), 9001), whole(1)));
        }
        let many = |key: Key| Key { remote: Remote::Many, ..key };
        expected.push((many(server(&db, Tcp, RIGHT, LEFT, 9001)), whole(clients - budget)));
        expected.push((many(server(&db, Udp, RIGHT, LEFT, 9002)), udp(clients)));
        let seen = agent.finish(&expected);
        assert!(!seen.0.iter().any(|o| matches!(o, Observation::Lost { .. })));
    });
}

/// A pod in the cgroup of one lab and the left namespace of another.
fn pod_of_two(cgroup_of: &Lab, netns_of: &Lab, work: impl FnOnce(&kernel::Pod)) {
    let path = cgroup_of.cgroup.join("clients");
    std::fs::create_dir(&path).expect("made");
    work(&kernel::Pod::new(&path, netns_of.netns(Side::Left)));
}
