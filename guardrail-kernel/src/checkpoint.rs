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

/// First bytes of the file: name and version of its form.
const MAGIC: &[u8; 16] = b"guardrail-flows1";
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
    pub fn entries(&self) -> impl Iterator<Item = ([u8; KEY], [u8; VALUE])> {
        self.flows.iter().map(|(key, value)| (encode::key(key), encode::value(value)))
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
            if (key.len(), value.len()) != (KEY, VALUE) {
                return Err(CheckpointError::Length);
            }
            let key = decode::key(key).map_err(CheckpointError::Entry)?;
            checkpoint.flows.push((key, decode::value(value).map_err(CheckpointError::Entry)?));
        }
        Ok(checkpoint)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CheckpointError> {
    let (head, rest) = bytes.split_first_chunk().ok_or(CheckpointError::Length)?;
    *bytes = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use guardrail_common::flow::{FlowRole, PROTOCOL_TCP};

    use super::*;

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
