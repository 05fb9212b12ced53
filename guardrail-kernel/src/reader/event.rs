//! Records of the rings.

use std::net::IpAddr;

use guardrail_common::{
    decode::{self, DecodeError, Decoded},
    flow::FlowKey,
    record::ListenRecord,
};

use crate::{dns, load::Ring};

/// A ring record, out of the ring.
pub(super) enum Event {
    Flow(FlowKey),
    Cgroup { created: bool, id: u64, at: u64, path: String },
    Listen(ListenRecord),
    Dns { cgroup_id: u64, at: u64, answer: Option<(String, Vec<IpAddr>)> },
}

/// The ring's next record.
pub(super) fn next(ring: &mut Ring) -> Option<Result<Event, DecodeError>> {
    let item = ring.next()?;
    Some(decode::ring(&item).map(|decoded| match decoded {
        Decoded::Flow(key) => Event::Flow(key),
        Decoded::Cgroup { created, id, at, path, .. } => {
            Event::Cgroup { created, id, at, path: String::from_utf8_lossy(path).into_owned() }
        }
        Decoded::Listen(listen) => Event::Listen(listen),
        Decoded::Dns { cgroup_id, at, payload } => Event::Dns { cgroup_id, at, answer: dns::answer(payload) },
    }))
}
