//! Entries that this side took out of FLOWS since the last checkpoint, kept in a map of the kernel:
//! an agent that is killed leaves them to the next one.

use std::{collections::VecDeque, io, os::fd::BorrowedFd};

use guardrail_common::{
    decode, encode,
    flow::{FlowKey, FlowValue},
};

use crate::bpf::{self, Table};

/// Number of the note, then the entry's key.
const KEY: usize = 8 + size_of::<FlowKey>();
const VALUE: usize = size_of::<FlowValue>();

/// A note: its number, the entry, its last value.
pub(crate) type Note = (u64, FlowKey, FlowValue);

/// The journal.
#[derive(Debug)]
pub(crate) struct Journal {
    table: Table<KEY, VALUE>,
    next: u64,
    /// Notes that are there, oldest first.
    notes: VecDeque<(u64, FlowKey)>,
}

impl Journal {
    /// An empty map for at most `entries` notes.
    pub(crate) fn create_map(entries: u32) -> io::Result<std::os::fd::OwnedFd> {
        bpf::create_map(bpf::MAP_TYPE_HASH, KEY, VALUE, entries, bpf::NO_PREALLOC)
    }

    /// The journal in this map, with the notes that an earlier agent left, oldest first. Notes that
    /// do not decode are counted.
    pub(crate) fn open(map: BorrowedFd<'_>) -> io::Result<(Self, Vec<Note>, u64)> {
        let mut table = Table::new(map)?;
        let mut notes: Vec<Note> = Vec::new();
        let mut broken = 0;
        table.for_each(|key: &[u8; KEY], value: &[u8; VALUE]| {
            let (number, rest) = key.split_at(8);
            match (number.try_into(), decode::key(rest), decode::value(value)) {
                (Ok(number), Ok(key), Ok(value)) => notes.push((u64::from_ne_bytes(number), key, value)),
                _ => broken += 1,
            }
        })?;
        notes.sort_unstable_by_key(|note| note.0);
        notes.dedup_by_key(|note| note.0);
        let next = notes.last().map_or(1, |note| note.0 + 1);
        let known = notes.iter().map(|(number, key, _)| (*number, *key)).collect();
        Ok((Self { table, next, notes: known }, notes, broken))
    }

    /// Number of the last note.
    pub(crate) fn last(&self) -> u64 {
        self.next - 1
    }

    /// No note has a number up to this one: those of an earlier checkpoint are gone.
    pub(crate) fn continue_after(&mut self, number: u64) {
        self.next = self.next.max(number + 1);
    }

    /// Notes an entry that is about to be taken out. False: there is no room.
    pub(crate) fn note(&mut self, key: &FlowKey, value: &[u8; VALUE]) -> bool {
        let number = self.next;
        if self.table.set(&bytes(number, key), value, 0).is_err() {
            return false;
        }
        self.next += 1;
        self.notes.push_back((number, *key));
        true
    }

    /// The entry that was noted last had gained when it was taken out.
    pub(crate) fn correct(&mut self, key: &FlowKey, value: &[u8; VALUE]) {
        // The note is there, so this needs no room.
        let _ = self.table.set(&bytes(self.last(), key), value, 0);
    }

    /// Drops one note.
    pub(crate) fn strike(&mut self, number: u64, key: &FlowKey) {
        let _ = self.table.delete(&bytes(number, key));
        self.notes.retain(|note| note.0 != number);
    }

    /// Drops the notes up to this number: they are in the stored graph.
    pub(crate) fn trim(&mut self, number: u64) {
        while let Some((first, key)) = self.notes.front()
            && *first <= number
        {
            let _ = self.table.delete(&bytes(*first, key));
            self.notes.pop_front();
        }
    }
}

fn bytes(number: u64, key: &FlowKey) -> [u8; KEY] {
    let mut bytes = [0; KEY];
    bytes[..8].copy_from_slice(&number.to_ne_bytes());
    bytes[8..].copy_from_slice(&encode::key(key));
    bytes
}
