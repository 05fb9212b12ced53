//! How much of the kernel's counters is in a stored graph, so that the agent that comes after a
//! crash adds what is missing and nothing twice.
//!
//! In: bytes of a file. Out: a [`Checkpoint`], or why not. Decoding is total.

use std::{collections::BTreeMap, io};

use guardrail_common::{
    counter,
    decode::{self, DecodeError},
    encode,
    flow::{FlowKey, FlowValue},
};
use guardrail_graph::epoch::bytes::{Bytes, put_numbers};

/// First bytes of the file: name and version of its form.
const MAGIC: &[u8; 16] = b"guardrail-flows2";
const KEY: usize = size_of::<FlowKey>();
const VALUE: usize = size_of::<FlowValue>();

/// Losses that were reported_losses, as the kernel side counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReportedLosses {
    /// COUNTERS.
    pub(crate) counters: [u64; counter::COUNT as usize],
    /// CGROUP_LOSSES.
    pub(crate) cgroup_losses: BTreeMap<[u8; 16], u64>,
    /// Losses of class edge, with and without their cgroup's name.
    pub(crate) edge: u64,
    /// Runs that programs missed.
    pub(crate) recursion: u64,
}

/// What of the kernel's counters the observer has been reported_losses, at one instant of the
/// stream of observations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The maps that it speaks of.
    pub(crate) generation: u64,
    /// Notes of the journal up to this number are reported_losses.
    pub(crate) journal: u64,
    pub(crate) reported_losses: ReportedLosses,
    /// Entries of FLOWS as they were reported_losses.
    pub(crate) flows: Vec<(FlowKey, FlowValue)>,
}

/// Why bytes are no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// They are something else, or of another version.
    #[error("it is not a checkpoint of this version")]
    Form,
    /// They end too early, or go on.
    #[error("it has another length than it says")]
    Length,
    /// A key or value is none.
    #[error("an entry cannot be read: {0}")]
    Entry(DecodeError),
}

impl Checkpoint {
    /// Writes it.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        let Self {
            generation,
            journal,
            reported_losses: ReportedLosses { counters, cgroup_losses, edge, recursion },
            flows,
        } = self;
        out.write_all(MAGIC)?;
        let lengths = [counters.len() as u64, cgroup_losses.len() as u64, flows.len() as u64];
        for word in [generation, journal, edge, recursion].into_iter().chain(&lengths).chain(counters) {
            out.write_all(&word.to_ne_bytes())?;
        }
        for (key, count) in cgroup_losses {
            out.write_all(key)?;
            out.write_all(&count.to_ne_bytes())?;
        }
        for (key, value) in flows {
            out.write_all(&encode::key(key))?;
            out.write_all(&encode::value(value))?;
        }
        Ok(())
    }

    /// Reads it. All of the bytes must be used.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(CheckpointError::Form)?;
        let mut word = || take::<8>(&mut rest).map(u64::from_ne_bytes);
        let (generation, journal, edge, recursion) = (word()?, word()?, word()?, word()?);
        let (counted, losses, flow_count) = (word()?, word()?, word()?);
        if counted != u64::from(counter::COUNT) {
            return Err(CheckpointError::Form);
        }
        let mut reported_losses = ReportedLosses { edge, recursion, ..ReportedLosses::default() };
        for counter in &mut reported_losses.counters {
            *counter = word()?;
        }
        for _ in 0..losses {
            let key = take::<16>(&mut rest)?;
            reported_losses.cgroup_losses.insert(key, u64::from_ne_bytes(take(&mut rest)?));
        }
        // What is said of the length is believed only as far as the bytes reach.
        if (rest.len() / (KEY + VALUE)) as u64 != flow_count || !rest.len().is_multiple_of(KEY + VALUE) {
            return Err(CheckpointError::Length);
        }
        let flows = rest
            .chunks_exact(KEY + VALUE)
            .map(|entry| Ok((decode::key(entry)?, decode::value(&entry[KEY..])?)))
            .collect::<Result<_, _>>()
            .map_err(CheckpointError::Entry)?;
        Ok(Self { generation, journal, reported_losses, flows })
    }
}

impl Checkpoint {
    /// All of it but entries of FLOWS, as bytes.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        let head = Self { flows: Vec::new(), reported_losses: self.reported_losses.clone(), ..*self };
        let mut bytes = Vec::new();
        // Into memory: it does not fail.
        let _ = head.write(&mut bytes);
        bytes
    }

    /// The entries of FLOWS, each with its key, as bytes.
    pub fn entries(&self) -> impl Iterator<Item = ([u8; KEY], Vec<u8>)> {
        self.flows.iter().map(|(key, value)| (encode::key(key), reported(value)))
    }

    /// Puts together what [`Checkpoint::head`] and [`Checkpoint::entries`] gave.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn from_parts<'a>(
        head: &[u8],
        entries: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self::from_bytes(head)?;
        for (key, value) in entries {
            if key.len() != KEY {
                return Err(CheckpointError::Length);
            }
            let key = decode::key(key).map_err(CheckpointError::Entry)?;
            checkpoint.flows.push((key, read_reported(value).ok_or(CheckpointError::Length)?));
        }
        Ok(checkpoint)
    }
}

/// What of an entry can have been reported: which numbers are not zero, and those. One changes each
/// minute for each edge that is used, so it is short. Of connections it is what is open that is
/// written, which mostly is none.
fn reported(value: &FlowValue) -> Vec<u8> {
    let FlowValue { first_open, opened, closed, bytes_sent, bytes_received, .. } = *value;
    let FlowValue { refused, unanswered, unreachable, by_protocol, found, .. } = *value;
    let open = opened.wrapping_add(found.into()).wrapping_sub(closed);
    let numbers = [
        first_open,
        opened,
        open,
        bytes_sent,
        bytes_received,
        found.into(),
        by_protocol.into(),
        refused,
        unanswered,
        unreachable,
    ];
    let mut out = Vec::with_capacity(24);
    put_numbers(&mut out, numbers);
    out
}

/// As [`reported`] wrote it, to the end.
fn read_reported(bytes: &[u8]) -> Option<FlowValue> {
    let mut bytes = Bytes(bytes);
    let [first_open, opened, open, bytes_sent, bytes_received, found, by_protocol, refused, unanswered, unreachable] =
        bytes.numbers()?;
    let value = FlowValue {
        first_open,
        opened,
        closed: opened.wrapping_add(found).wrapping_sub(open),
        bytes_sent,
        bytes_received,
        found: u32::try_from(found).ok()?,
        by_protocol: u32::try_from(by_protocol).ok()?,
        refused,
        unanswered,
        unreachable,
        ..FlowValue::default()
    };
    bytes.0.is_empty().then_some(value)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CheckpointError> {
    let (head, rest) = bytes.split_first_chunk().ok_or(CheckpointError::Length)?;
    *bytes = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use guardrail_common::flow::{FlowRole, PROTOCOL_TCP};
    use guardrail_graph::{
        Observation, Observer, ObserverConfig, Timestamp,
        epoch::{
            log::{Recorder, Recording, Write},
            state::section,
        },
        observe::CgroupId,
    };

    use super::*;
    use crate::fold::Fold;

    fn example() -> Checkpoint {
        let key = FlowKey {
            cgroup_id: 1,
            local: [2; 16],
            remote: [3; 16],
            server_port: 80,
            local_port: 0,
            protocol: PROTOCOL_TCP,
            role: FlowRole::Client as u8,
            pad: [0; 2],
        };
        Checkpoint {
            generation: 5,
            journal: 6,
            reported_losses: ReportedLosses {
                counters: std::array::from_fn(|i| i as u64),
                cgroup_losses: BTreeMap::from([([7; 16], 8), ([9; 16], 10)]),
                edge: 11,
                recursion: 12,
            },
            flows: vec![
                (key, FlowValue { opened: 3, first_open: 4, ..FlowValue::default() }),
                (FlowKey { server_port: 81, ..key }, FlowValue { refused: 1, ..FlowValue::default() }),
            ],
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        for checkpoint in [example(), Checkpoint::default()] {
            let mut bytes = Vec::new();
            checkpoint.write(&mut bytes).unwrap();
            assert_eq!(Checkpoint::from_bytes(&bytes), Ok(checkpoint.clone()));
            let entries: Vec<_> = checkpoint.entries().collect();
            let entries = entries.iter().map(|(key, value)| (&key[..], &value[..]));
            assert_eq!(Checkpoint::from_parts(&checkpoint.head(), entries), Ok(checkpoint));
        }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written_and_nothing_else_is_one() {
        let most = FlowValue {
            first_open: u64::MAX,
            opened: u64::MAX,
            closed: 5,
            bytes_sent: 1 << 63,
            bytes_received: 127,
            found: u32::MAX,
            by_protocol: u32::MAX,
            refused: 128,
            unanswered: u64::MAX,
            unreachable: 1,
            ..FlowValue::default()
        };
        let more_closed = FlowValue { opened: 1, closed: 9, ..FlowValue::default() };
        for value in [most, more_closed, FlowValue::default()] {
            let bytes = reported(&value);
            assert_eq!(read_reported(&bytes), Some(value));
            for length in 0..bytes.len() {
                assert_eq!(read_reported(&bytes[..length]), None, "{length}");
            }
            assert_eq!(read_reported(&[&bytes[..], &[0]].concat()), None);
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] = !changed[at];
                let _ = read_reported(&changed);
            }
        }
        assert_eq!(read_reported(&[0x80, 0x08]), None, "an eleventh number");
        assert_eq!(read_reported(&[0x20, 0xff, 0xff, 0xff, 0xff, 0x7f]), None, "more found than fit");
    }

    /// What a minute of a busy node with pins writes: the edges that changed, and how much of FLOWS
    /// they are.
    #[test]
    fn a_minute_s_writes_are_at_most_three_times_the_bytes_of_the_edges_that_changed_with_pins_too() {
        const EDGES: u16 = 4_000;
        let t = Timestamp::from_unix_seconds;
        let mut observer = Observer::new(ObserverConfig::new("node-a", "i", t(1_700_000_000)));
        let path = "/system.slice/app.service".to_owned();
        observer.observe(Observation::CgroupCreated { id: CgroupId(7), path, at: t(1_700_000_000) }, t(1_700_000_000));
        let mut random = 1_u64;
        let mut next = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            random >> 40
        };
        let address = |port: u16| Ipv4Addr::from(0xc633_6400 + u32::from(port % 64)).to_ipv6_mapped().octets();
        let mut flows: Vec<(FlowKey, FlowValue)> = (0..EDGES)
            .map(|port| {
                let key = FlowKey {
                    cgroup_id: 7,
                    local: Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets(),
                    remote: address(port),
                    server_port: 1_000 + port,
                    local_port: 0,
                    protocol: PROTOCOL_TCP,
                    role: FlowRole::Client as u8,
                    pad: [0; 2],
                };
                (key, FlowValue { first_open: next() << 20, ..FlowValue::default() })
            })
            .collect();
        let mut fold = Fold::default();
        let (mut recorder, mut written) = (Recorder::default(), Vec::new());
        for (minute, changed) in [EDGES, 10, 100, 400, 10, 100, 400].into_iter().enumerate() {
            let wall = |boot: u64| {
                let at = 1_700_000_000 + 60 * i64::try_from(minute).expect("small");
                Timestamp::from_unix_ns(at * 1_000_000_000 + (boot % 60_000_000_000).cast_signed())
            };
            for (key, value) in &mut flows[..usize::from(changed)] {
                let opened = 1 + next() % 4;
                value.opened += opened;
                value.closed += opened;
                value.last_open = next() << 12;
                value.bytes_sent += next() % 10_000;
                value.bytes_received += next() % 100_000;
                fold.fold(key, value, wall, &mut |delta| observer.observe(Observation::Flow(delta), wall(0)));
            }
            let checkpoint = Checkpoint { flows: fold.reported(), ..Checkpoint::default() };
            let put = |recording: &mut Recording<'_>| {
                recording.put(section::CALLER, &[], &checkpoint.head());
                for (key, value) in checkpoint.entries() {
                    recording.put(section::CALLER + 1, &key, &value);
                }
            };
            let bytes = match observer.store(&mut recorder, wall(0), put) {
                Write::Nothing => 0,
                Write::Append { bytes, .. } | Write::Base(bytes) => bytes.len(),
            };
            written.push((usize::from(changed), bytes));
        }
        let per_edge = written[0].1 / usize::from(EDGES);
        println!("base: {per_edge} bytes an edge and its entry; written: {written:?}");
        for (changed, bytes) in &written[1..] {
            assert!(*bytes <= 3 * changed * per_edge, "{changed} edges: {bytes} bytes, {per_edge} an edge");
        }
    }

    #[test]
    fn cut_or_changed_bytes_are_an_error_and_never_a_panic() {
        let mut bytes = Vec::new();
        example().write(&mut bytes).unwrap();
        for length in 0..bytes.len() {
            assert!(Checkpoint::from_bytes(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] = !changed[at];
            let _ = Checkpoint::from_bytes(&changed);
        }
        bytes.push(0);
        assert_eq!(Checkpoint::from_bytes(&bytes), Err(CheckpointError::Length));
    }

    #[test]
    fn the_seeds_of_the_fuzz_target_are_checkpoints_of_this_version() {
        assert_eq!(
            Checkpoint::from_bytes(include_bytes!("../../fuzz/seeds/checkpoint/empty")),
            Ok(Checkpoint::default())
        );
        let flows = Checkpoint::from_bytes(include_bytes!("../../fuzz/seeds/checkpoint/flows")).expect("reads");
        assert_eq!((flows.flows.len(), flows.reported_losses.cgroup_losses.len()), (3, 2));
    }
}
