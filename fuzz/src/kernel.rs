//! What comes over the kernel boundary: ring records, map entries, BTF, cgroup paths, socket
//! records; DNS answers, which come from the network; and the checkpoint of an earlier agent.

use guardrail_common::{
    decode::{self, Decoded},
    flow::{FlowKey, FlowRole, FlowValue, PROTOCOL_TCP, PROTOCOL_UDP},
    record::{DNS_BYTES, PATH_BYTES, SocketRecord},
};
use guardrail_graph::identity::cgroup::{CgroupOwner, parse};
use guardrail_kernel::{Checkpoint, fuzzing};

/// The decoder takes only what the kernel side writes, and what it lends lies inside the record.
pub(super) fn ring(bytes: &[u8]) {
    match decode::ring(bytes) {
        Ok(Decoded::Flow(key)) => sane(&key),
        Ok(Decoded::Cgroup { path, .. }) => {
            assert!(path.len() <= PATH_BYTES && path.len() < bytes.len());
            cgroup(path);
        }
        Ok(Decoded::Dns { payload, .. }) => {
            assert!(payload.len() <= DNS_BYTES && payload.len() < bytes.len());
            dns(payload);
        }
        Ok(Decoded::Listen(_)) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(key) = decode::key(bytes) {
        sane(&key);
    }
    assert_eq!(decode::value(bytes).is_ok(), bytes.len() >= size_of::<FlowValue>());
    let _ = decode::loss_key(bytes);
}

fn sane(key: &FlowKey) {
    assert!(FlowRole::try_from(key.role).is_ok());
    assert!(key.protocol == PROTOCOL_TCP || key.protocol == PROTOCOL_UDP);
}

/// Members that the agent looks for, and some that are not there.
const MEMBERS: [(&str, &str); 6] = [
    ("sock", "__sk_common.skc_family"),
    ("sock", "sk_cgrp_data.cgroup"),
    ("inet_sock", "inet_sport"),
    ("s", "d"),
    ("s", "t.e"),
    ("s", "t.e.e.e"),
];

/// Broken BTF gives an error or "no such member".
pub(super) fn btf(bytes: &[u8]) {
    if let Err(reason) = fuzzing::btf(bytes, &MEMBERS) {
        assert!(!reason.is_empty());
    }
}

/// A path names a pod with a plausible uid, or the host.
pub(super) fn cgroup(bytes: &[u8]) {
    let path = String::from_utf8_lossy(bytes);
    if let CgroupOwner::Pod { uid, container } = parse(&path) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        assert!((8..=128).contains(&uid.len()) && uid.bytes().all(plain), "{uid:?}");
        assert!(container.is_none_or(|id| id.len() >= 12 && id.bytes().all(|b| b.is_ascii_hexdigit())));
        assert!(path.contains("kubepods"), "a pod's cgroup is below the kubelet's: {path:?}");
    }
}

/// A name is one that can be shown: no control characters, nothing that ends a line or a quotation.
pub(super) fn dns(bytes: &[u8]) {
    if let Some((name, addresses)) = fuzzing::dns(bytes) {
        assert!(!addresses.is_empty() && addresses.len() <= bytes.len());
        assert!(!name.is_empty() && name.len() <= 253, "{} bytes", name.len());
        assert!(name.bytes().all(|b| b.is_ascii_graphic() && !b"\"'`\\<>|{}#".contains(&b)), "{name:?}");
    }
}

/// A checkpoint that is read can be written, and is read again as what it was.
pub(super) fn checkpoint(bytes: &[u8]) {
    match Checkpoint::from_bytes(bytes) {
        Ok(checkpoint) => {
            let mut written = Vec::new();
            checkpoint.write(&mut written).expect("memory takes it");
            assert!(written.len() <= bytes.len());
            assert_eq!(Checkpoint::from_bytes(&written), Ok(checkpoint));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Connections are no more than records, and what is no record is counted.
pub(super) fn sockets(bytes: &[u8]) {
    let records = bytes.len().div_ceil(size_of::<SocketRecord>()) as u64;
    let (listening, connections, broken) = fuzzing::sockets(bytes);
    assert!(listening as u64 + connections + broken <= records);
    assert!(!bytes.len().is_multiple_of(size_of::<SocketRecord>()) <= (broken > 0));
}
