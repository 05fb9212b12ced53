//! UDP as the kernel side sees it: the role comes from how the socket got its port, and DNS answers
//! are passed on.

#[expect(clippy::allow_attributes, reason = "which helpers a test binary leaves unused differs")]
#[allow(dead_code, unused_imports, reason = "each test binary uses its part")]
mod kernel;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use guardrail_graph::{
    observe::{FlowCounts, Observation},
    peer::Protocol::Udp,
};
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, ResourceRecord, TYPE,
    rdata::{A, AAAA, CNAME, RData},
};

use self::kernel::{Agent, Half, Key, LEFT, LEFT_V6, Pair, RIGHT, RIGHT_V6, at, cgroup_of, client, mapped, server};

/// Receives one datagram of this size.
fn receive(socket: &UdpSocket, size: usize) -> SocketAddr {
    let mut buffer = [0; 65_536];
    socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("set");
    let (got, from) = socket.recv_from(&mut buffer).expect("a datagram arrives");
    assert_eq!(got, size);
    from
}

/// A question of `asked` bytes from an unconnected socket, and its answer.
fn ask(from: &UdpSocket, to: SocketAddr, served: &UdpSocket, asked: usize, answered: usize) {
    from.send_to(&vec![1; asked], to).expect("sent");
    let peer = receive(served, asked);
    served.send_to(&vec![2; answered], peer).expect("sent");
    receive(from, answered);
}

fn counts(opened: u64, bytes_sent: u64, bytes_received: u64) -> FlowCounts {
    FlowCounts { opened, bytes_sent, bytes_received, ..FlowCounts::default() }
}

#[test]
fn a_question_and_its_answer_are_one_flow_at_each_end_however_the_client_sends() {
    let Some(lab) = Pair::new() else { return };
    let (web, dns) = (lab.pod("web", Half::Left), lab.pod("dns", Half::Right));
    let agent = Agent::start(&lab);
    let (v4, v6, both) = (dns.udp_at(at(RIGHT, 5301)), dns.udp_at(at(RIGHT_V6, 5302)), dns.udp_at(at("::", 5303)));
    // Connected.
    let connected = web.udp(at(RIGHT, 0));
    connected.connect(at(RIGHT, 5301)).expect("connected");
    connected.send(&[1; 10]).expect("sent");
    let peer = receive(&v4, 10);
    v4.send_to(&[2; 100], peer).expect("sent");
    receive(&connected, 100);
    // sendto on a socket that was never bound, twice.
    let unconnected = web.udp(at(RIGHT_V6, 0));
    ask(&unconnected, at(RIGHT_V6, 5302), &v6, 11, 111);
    ask(&unconnected, at(RIGHT_V6, 5302), &v6, 1, 0);
    // bind(0), as musl's resolver does: the kernel chose the port, so it is no served one.
    let bound_to_any = web.udp_at(at("0.0.0.0", 0));
    ask(&bound_to_any, at(RIGHT, 5303), &both, 12, 112);
    // An IPv6 socket that sends to a mapped address.
    let six = web.udp_at(at("::", 0));
    ask(&six, mapped(RIGHT, 5303), &both, 13, 113);
    let seen = agent.finish(&[
        (client(&web, Udp, LEFT, RIGHT, 5301), counts(1, 10, 100)),
        (server(&dns, Udp, RIGHT, LEFT, 5301), counts(1, 100, 10)),
        (client(&web, Udp, LEFT_V6, RIGHT_V6, 5302), counts(2, 12, 111)),
        (server(&dns, Udp, RIGHT_V6, LEFT_V6, 5302), counts(2, 111, 12)),
        (client(&web, Udp, LEFT, RIGHT, 5303), counts(2, 25, 225)),
        (server(&dns, Udp, RIGHT, LEFT, 5303), counts(2, 225, 25)),
    ]);
    for key in seen.flows().keys() {
        assert_eq!(seen.first_opens(key), 1, "{key:?}");
    }
}

#[test]
fn a_socket_that_is_connected_but_never_sends_is_no_flow() {
    let Some(lab) = Pair::new() else { return };
    let web = lab.pod("web", Half::Left);
    let agent = Agent::start(&lab);
    // As getaddrinfo does to sort its answers.
    web.udp(at(RIGHT, 0)).connect(at(RIGHT, 5310)).expect("connected");
    web.udp(at("10.98.0.1", 0)).send_to(&[1; 5], at("10.98.0.1", 5311)).expect("sent");
    agent.finish(&[(client(&web, Udp, LEFT, "10.98.0.1", 5311), counts(1, 5, 0))]);
}

#[test]
fn gossip_on_one_fixed_port_is_an_edge_of_each_sender() {
    let Some(lab) = Pair::new() else { return };
    let (a, b) = (lab.pod("a", Half::Left), lab.pod("b", Half::Right));
    let agent = Agent::start(&lab);
    let (left, right) = (a.udp_at(at(LEFT, 7946)), b.udp_at(at(RIGHT, 7946)));
    let gossip = |from: &UdpSocket, to: &str, socket: &UdpSocket, size: usize| {
        from.send_to(&vec![3; size], at(to, 7946)).expect("sent");
        receive(socket, size);
    };
    gossip(&left, RIGHT, &right, 10);
    gossip(&right, LEFT, &left, 20);
    gossip(&left, RIGHT, &right, 30);
    let own = |key: Key| Key { local_port: Some(7946), ..key };
    agent.wait("both senders", |seen| {
        let flows = seen.flows();
        let opened = |key: Key| flows.get(&own(key)).map_or(0, |counts| counts.opened);
        opened(client(&a, Udp, LEFT, RIGHT, 7946)) == 2 && opened(client(&b, Udp, RIGHT, LEFT, 7946)) == 1
    });
    let (seen, _) = agent.stop();
    let flows = seen.flows();
    // b received before it ever sent, so it has a server's flow too; a had sent first. What arrives
    // is never counted twice.
    assert_eq!(flows[&own(client(&a, Udp, LEFT, RIGHT, 7946))], counts(2, 40, 20));
    assert_eq!(flows[&own(client(&b, Udp, RIGHT, LEFT, 7946))], counts(1, 20, 30));
    assert_eq!(flows[&server(&b, Udp, RIGHT, LEFT, 7946)], counts(1, 0, 10));
    assert_eq!(flows.len(), 3, "{flows:#?}");
    for (_, delta) in seen.deltas().filter(|(key, _)| key.local_port.is_some()) {
        assert!(delta.bind_seen, "the socket bound after the start: {delta:?}");
    }
}

#[test]
fn a_client_that_fixed_its_own_port_is_a_client_with_that_port() {
    let Some(lab) = Pair::new() else { return };
    let (web, ntp) = (lab.pod("web", Half::Left), lab.pod("ntp", Half::Right));
    let agent = Agent::start(&lab);
    let (fixed, served) = (web.udp_at(at(LEFT, 4000)), ntp.udp_at(at(RIGHT, 4001)));
    ask(&fixed, at(RIGHT, 4001), &served, 5, 6);
    ask(&fixed, at(RIGHT, 4001), &served, 7, 8);
    let fixed_client = Key { local_port: Some(4000), ..client(&web, Udp, LEFT, RIGHT, 4001) };
    agent.finish(&[(fixed_client, counts(2, 12, 14)), (server(&ntp, Udp, RIGHT, LEFT, 4001), counts(2, 14, 12))]);
}

#[test]
fn what_is_sent_to_a_group_has_the_group_as_its_remote() {
    let Some(lab) = Pair::new() else { return };
    let (web, member) = (lab.pod("web", Half::Left), lab.pod("member", Half::Right));
    let agent = Agent::start(&lab);
    let group = "239.1.2.3";
    let served = member.udp_at(at("0.0.0.0", 5353));
    served.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &Ipv4Addr::new(10, 77, 0, 2)).expect("joined");
    let sender = web.udp(at(group, 0));
    sender.set_multicast_loop_v4(false).expect("set");
    sender.send_to(&[9; 40], at(group, 5353)).expect("sent");
    receive(&served, 40);
    agent.finish(&[
        (client(&web, Udp, LEFT, group, 5353), counts(1, 40, 0)),
        (server(&member, Udp, group, LEFT, 5353), counts(1, 0, 40)),
    ]);
}

#[test]
fn a_dns_answer_arrives_with_its_name_and_its_addresses() {
    let Some(lab) = Pair::new() else { return };
    let (web, dns) = (lab.pod("web", Half::Left), lab.pod("dns", Half::Right));
    let agent = Agent::start(&lab);
    let served = dns.udp_at(at(RIGHT, 53));
    let name = |text: &str| Name::new(text).expect("a name").into_owned();
    let mut question = Packet::new_query(7);
    question.questions.push(Question::new(
        name("API.Example.com"),
        QTYPE::TYPE(TYPE::A),
        QCLASS::CLASS(CLASS::IN),
        false,
    ));
    let question = question.build_bytes_vec().expect("a message");
    let mut answer = Packet::parse(&question).expect("a message").into_reply();
    answer.set_flags(PacketFlag::RESPONSE);
    let record = |owner: &str, data: RData<'static>| ResourceRecord::new(name(owner), CLASS::IN, 60, data);
    answer.answers.push(record("API.Example.com", RData::CNAME(CNAME(name("edge.example.net")))));
    answer.answers.push(record("edge.example.net", RData::A(A { address: Ipv4Addr::new(192, 0, 2, 7).into() })));
    answer.answers.push(record(
        "edge.example.net",
        RData::AAAA(AAAA { address: "2001:db8::7".parse::<std::net::Ipv6Addr>().expect("ip").into() }),
    ));
    let answer = answer.build_bytes_vec().expect("a message");
    let socket = web.udp(at(RIGHT, 0));
    let exchange = |reply: &[u8]| {
        socket.send_to(&question, at(RIGHT, 53)).expect("sent");
        let peer = receive(&served, question.len());
        served.send_to(reply, peer).expect("sent");
        receive(&socket, reply.len());
    };
    // What is no DNS at all, and what is cut, says nothing and breaks nothing.
    exchange(&[0xff; 40]);
    exchange(&answer[..answer.len() - 9]);
    exchange(&[7; 1500]);
    exchange(&answer);
    agent.wait("the answer", |seen| seen.0.iter().any(|o| matches!(o, Observation::DnsAnswer { .. })));
    let (seen, stats) = agent.stop();
    let answers: Vec<_> = seen
        .0
        .iter()
        .filter_map(|o| match o {
            Observation::DnsAnswer { cgroup, name, addresses, .. } => Some((*cgroup, name.as_str(), addresses.clone())),
            _ => None,
        })
        .collect();
    let addresses: Vec<IpAddr> = ["192.0.2.7", "2001:db8::7"].map(|ip| ip.parse().expect("an address")).to_vec();
    assert_eq!(answers, [(cgroup_of(&web), "api.example.com", addresses)]);
    assert_eq!(stats.events["dns_answer"], 1);
    assert!(stats.losses.values().all(|lost| *lost == 0), "{:?}", stats.losses);
}

#[test]
fn a_datagram_behind_ipv6_extension_headers_is_observed() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let agent = Agent::start(&lab);
    let (socket, served) = (web.udp(at(RIGHT_V6, 0)), db.udp_at(at(RIGHT_V6, 5400)));
    // Eight bytes each: next header and length (filled in by the kernel), then one option of
    // padding (PadN, 4 bytes).
    let padding: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    for option in [libc::IPV6_HOPOPTS, libc::IPV6_DSTOPTS] {
        kernel::set_option_bytes(&socket, libc::IPPROTO_IPV6, option, &padding);
    }
    socket.send_to(&[1; 30], at(RIGHT_V6, 5400)).expect("sent");
    receive(&served, 30);
    agent.finish(&[
        (client(&web, Udp, LEFT_V6, RIGHT_V6, 5400), counts(1, 30, 0)),
        (server(&db, Udp, RIGHT_V6, LEFT_V6, 5400), counts(1, 0, 30)),
    ]);
}

#[test]
fn a_datagram_in_fragments_counts_once_with_all_its_bytes() {
    let Some(lab) = Pair::new() else { return };
    let (web, db) = (lab.pod("web", Half::Left), lab.pod("db", Half::Right));
    let agent = Agent::start(&lab);
    for (address, port) in [(RIGHT, 5500), (RIGHT_V6, 5501)] {
        let (socket, served) = (web.udp(at(address, 0)), db.udp_at(at(address, port)));
        socket.send_to(&[1; 4000], at(address, port)).expect("sent");
        receive(&served, 4000);
    }
    let mut expected = Vec::new();
    for (address, local, port) in [(RIGHT, LEFT, 5500), (RIGHT_V6, LEFT_V6, 5501)] {
        expected.push((client(&web, Udp, local, address, port), counts(1, 4000, 0)));
        expected.push((server(&db, Udp, address, local, port), counts(1, 0, 4000)));
    }
    agent.finish(&expected);
}
