//! The open epoch on disk: a *base*, which is written once, and a *log*, which grows behind it.
//!
//! Both hold groups of operations on numbered entries; an entry is a section, a key and a value.
//! What is meant by them, [`super::state`] knows. The base is one group: everything. Each group of
//! the log is what changed since the group before. A group counts if all of it is there, else none
//! of it does.
//!
//! ```text
//! base    magic (16 bytes), group
//! log     magic (16 bytes), CRC-32 of the base (u32), groups
//! group   blocks, of which the last one is marked
//! block   length of the body (u32), CRC-32 of the body (u32), flags (u8), length of the
//!         operations (u32), revision: run, n (u32 each), time (i64, ns since 1970), CRC-32 of this
//!         head (u32), body: the operations, as they are or as one zstd frame
//! ```
//!
//! In: bytes of anybody's. Out: entries, or one sentence. Decoding is total. Numbers of fixed
//! length are little-endian.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    hash::{BuildHasher as _, RandomState},
    io::Read as _,
};

use ruzstd::{decoding::StreamingDecoder, encoding::CompressionLevel};
use thiserror::Error;

use super::bytes::{Bytes, put_bytes, put_int};
use crate::time::Timestamp;

/// First bytes of a base and of a log: name and version of the form.
const BASE: &[u8; 16] = b"guardrail-state1";
const LOG: &[u8; 16] = b"guardrail-state+";
const HEAD: usize = 33;
const LOG_HEAD: usize = LOG.len() + 4;
/// The block is the last one of its group.
const LAST: u8 = 1;
/// The body is compressed.
const ZSTD: u8 = 2;
/// A block is closed when its operations are so long.
const BLOCK_BYTES: usize = 256 << 10;
/// What is shorter is not compressed: a frame has a head, too.
const SHORT: usize = 128;
/// Longest operations of a group that are read: two orders above what 100,000 edges take.
const MAX_OPERATIONS: u32 = 1 << 30;
/// A log may grow to the length of its base, and to this in any case, before a new base is written.
const MIN_FOLD: u64 = 64 << 10;

const NEW: u8 = 0;
const CHANGED: u8 = 1;
const GONE: u8 = 2;

/// Whether bytes say that they are a base, of this version.
pub(crate) fn is_base(bytes: &[u8]) -> bool {
    bytes.starts_with(BASE)
}

/// What has to be written so that the disk has what the observer knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Nothing changed.
    Nothing,
    /// This goes to the end of the log, which is so long before.
    Append {
        /// Length of the log before; 0: there is none.
        after: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// This is a new base.
    Base(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: u32,
    /// Of its value.
    print: u64,
    /// The last recording that had it.
    seen: u32,
}

/// Knows what is on disk, by fingerprints with keys that nobody can guess, and says what has to be
/// written.
#[derive(Debug, Default)]
pub struct Recorder {
    known: HashMap<u64, Known>,
    hasher: RandomState,
    ids: u32,
    recordings: u32,
    /// Lengths of the files; a base of 0: the next thing to write is one.
    base: u64,
    log: u64,
    /// CRC-32 of the base.
    checksum: u32,
}

impl Recorder {
    /// Nothing is known of what is on disk: the next thing to write is a base. Also after a write
    /// that failed.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// Lengths that the base and the log have.
    #[must_use]
    pub const fn lengths(&self) -> (u64, u64) {
        (self.base, self.log)
    }

    /// Begins to go through everything that is known.
    pub(crate) fn begin(&mut self) -> Recording<'_> {
        self.recordings = self.recordings.wrapping_add(1);
        Recording { recorder: self, operations: Vec::new(), blocks: Vec::new() }
    }
}

/// Everything that is known goes through this.
#[derive(Debug)]
pub struct Recording<'a> {
    recorder: &'a mut Recorder,
    operations: Vec<u8>,
    /// Those before, closed but for their heads.
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    flags: u8,
    operations: u32,
    body: Vec<u8>,
}

impl Block {
    fn of(operations: &[u8]) -> Self {
        let length = u32::try_from(operations.len()).unwrap_or(u32::MAX);
        let is_short = operations.len() < SHORT;
        let compressed = (!is_short)
            .then(|| ruzstd::encoding::compress_to_vec(operations, CompressionLevel::Fastest))
            .filter(|compressed| compressed.len() < operations.len());
        match compressed {
            Some(body) => Self { flags: ZSTD, operations: length, body },
            None => Self { flags: 0, operations: length, body: operations.to_vec() },
        }
    }

    fn write(&self, out: &mut Vec<u8>, last: bool, (run, n): (u32, u32), at: Timestamp) {
        let begin = out.len();
        out.extend(u32::try_from(self.body.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(crc32fast::hash(&self.body).to_le_bytes());
        out.push(self.flags | if last { LAST } else { 0 });
        for number in [self.operations, run, n] {
            out.extend(number.to_le_bytes());
        }
        out.extend(at.as_unix_ns().to_le_bytes());
        out.extend(crc32fast::hash(&out[begin..]).to_le_bytes());
        out.extend(&self.body);
    }
}

impl Recording<'_> {
    /// An entry as it is now. Gives its number, which stays as long as it is there.
    pub fn put(&mut self, section: u8, key: &[u8], value: &[u8]) -> u32 {
        self.put_as(section, key, key, value)
    }

    /// An entry whose value says what its key would: that is not stored.
    pub(crate) fn put_value(&mut self, section: u8, key: &[u8], value: &[u8]) -> u32 {
        self.put_as(section, key, &[], value)
    }

    fn put_as(&mut self, section: u8, key: &[u8], stored: &[u8], value: &[u8]) -> u32 {
        let Recorder { known, hasher, ids, recordings, .. } = &mut *self.recorder;
        let print = hasher.hash_one(value);
        let id = match known.entry(hasher.hash_one((section, key))) {
            Slot::Occupied(mut known) => {
                let known = known.get_mut();
                known.seen = *recordings;
                if known.print == print {
                    return known.id;
                }
                known.print = print;
                self.operations.push(CHANGED);
                put_int(&mut self.operations, known.id.into());
                known.id
            }
            Slot::Vacant(slot) => {
                let id = *ids;
                *ids = ids.saturating_add(1);
                slot.insert(Known { id, print, seen: *recordings });
                self.operations.extend([NEW, section]);
                put_bytes(&mut self.operations, stored);
                id
            }
        };
        put_bytes(&mut self.operations, value);
        if self.operations.len() >= BLOCK_BYTES {
            self.close();
        }
        id
    }

    fn close(&mut self) {
        self.blocks.push(Block::of(&self.operations));
        self.operations.clear();
    }

    /// What is gone is what was not put this time. `None`: the log would grow too long, and
    /// everything must be put once more, as a base.
    pub(crate) fn end(mut self, revision: (u32, u32), at: Timestamp) -> Option<Write> {
        let recordings = self.recorder.recordings;
        let mut gone: Vec<u32> = Vec::new();
        self.recorder.known.retain(|_, known| {
            let stays = known.seen == recordings;
            if !stays {
                gone.push(known.id);
            }
            stays
        });
        gone.sort_unstable();
        for id in gone {
            self.operations.push(GONE);
            put_int(&mut self.operations, id.into());
        }
        let is_base = self.recorder.base == 0;
        if !self.operations.is_empty() || (is_base && self.blocks.is_empty()) {
            self.close();
        }
        let Self { recorder, blocks, .. } = self;
        if blocks.is_empty() {
            return Some(Write::Nothing);
        }
        let mut bytes =
            Vec::with_capacity(blocks.iter().map(|block| HEAD + block.body.len()).sum::<usize>() + LOG_HEAD);
        if is_base {
            bytes.extend(BASE);
        } else if recorder.log == 0 {
            bytes.extend(LOG);
            bytes.extend(recorder.checksum.to_le_bytes());
        }
        let count = blocks.len();
        for (i, block) in blocks.into_iter().enumerate() {
            block.write(&mut bytes, i + 1 == count, revision, at);
        }
        let length = bytes.len() as u64;
        if is_base {
            (recorder.base, recorder.log, recorder.checksum) = (length, 0, crc32fast::hash(&bytes));
            return Some(Write::Base(bytes));
        }
        if recorder.log + length > recorder.base.max(MIN_FOLD) {
            recorder.forget();
            return None;
        }
        let after = recorder.log;
        recorder.log += length;
        Some(Write::Append { after, bytes })
    }
}

/// A base with these operations, whatever they are: for checks of the reader.
#[must_use]
pub fn base_of(operations: &[u8]) -> Vec<u8> {
    let mut base = BASE.to_vec();
    Block::of(operations).write(&mut base, true, (1, 1), Timestamp::from_unix_seconds(1_700_000_000));
    base
}

/// Why bytes are no base.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LogError {
    /// They are something else, or of another version.
    #[error("it is no state of this version of guardrail")]
    Form,
    /// They end too early, or go on.
    #[error("it has another length than it says")]
    Length,
    /// They are not what was written.
    #[error("its checksum does not match")]
    Checksum,
    /// They make no sense, although they are what was written.
    #[error("its {0} cannot be read")]
    Entry(&'static str),
}

/// What of a log does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Where it begins.
    pub at: u64,
    /// It was being written when its agent ended: nobody was told that it is stored. Else it was
    /// stored, and changed afterwards.
    pub is_torn: bool,
}

/// A numbered entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) section: u8,
    pub(crate) key: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

/// What a base and its log say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// By number; `None`: gone.
    pub(crate) entries: Vec<Option<Entry>>,
    /// Of the last group that counts.
    pub(crate) revision: (u32, u32),
    /// When all of it was so.
    pub(crate) at: Timestamp,
    pub(crate) cut: Option<Cut>,
}

/// Why there is no further group.
enum Stop {
    /// The bytes end before it does.
    Torn,
    Broken(LogError),
}

impl From<Stop> for LogError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Torn => Self::Length,
            Stop::Broken(error) => error,
        }
    }
}

impl Replayed {
    /// The entry with this number, if it is there and of this section.
    pub(crate) fn entry(&self, id: u64, section: u8) -> Option<&Entry> {
        self.entries.get(usize::try_from(id).ok()?)?.as_ref().filter(|entry| entry.section == section)
    }

    /// Reads a base and the log behind it; an empty one: there is none.
    ///
    /// # Errors
    /// The base cannot be used. What cannot be used of the log is [`Replayed::cut`].
    pub(crate) fn read(base: &[u8], log: &[u8]) -> Result<Self, LogError> {
        let mut rest = base.strip_prefix(BASE).ok_or(LogError::Form)?;
        let mut replayed = Self::default();
        replayed.group(&mut rest)?;
        if !rest.is_empty() {
            return Err(LogError::Length);
        }
        let mut rest = log;
        let head = rest.split_at_checked(LOG_HEAD);
        match head {
            _ if log.is_empty() => return Ok(replayed),
            Some((head, groups))
                if head[..LOG.len()] == *LOG && head[LOG.len()..] == crc32fast::hash(base).to_le_bytes() =>
            {
                rest = groups;
            }
            Some(_) => {
                replayed.cut = Some(Cut { at: 0, is_torn: false });
                return Ok(replayed);
            }
            None => {
                replayed.cut = Some(Cut { at: 0, is_torn: true });
                return Ok(replayed);
            }
        }
        while !rest.is_empty() {
            let at = (log.len() - rest.len()) as u64;
            match replayed.group(&mut rest) {
                Ok(()) => {}
                Err(Stop::Broken(error @ LogError::Entry(_))) => return Err(error),
                Err(stop) => {
                    replayed.cut = Some(Cut { at, is_torn: matches!(stop, Stop::Torn) });
                    break;
                }
            }
        }
        Ok(replayed)
    }

    /// Takes the group at the begin of `rest`. Its operations count only if all of its blocks are
    /// there.
    fn group(&mut self, rest: &mut &[u8]) -> Result<(), Stop> {
        let (mut after, mut blocks) = (*rest, Vec::new());
        let mut room = MAX_OPERATIONS;
        loop {
            let (head, following) = after.split_at_checked(HEAD).ok_or(Stop::Torn)?;
            let (said, checksum) = head.split_at(HEAD - 4);
            if crc32fast::hash(said).to_le_bytes() != *checksum {
                return Err(Stop::Broken(LogError::Checksum));
            }
            let number = |at: usize| u32::from_le_bytes([said[at], said[at + 1], said[at + 2], said[at + 3]]);
            let (length, flags, operations) = (number(0), said[8], number(9));
            let length = usize::try_from(length).map_err(|_| Stop::Torn)?;
            let (body, following) = following.split_at_checked(length).ok_or(Stop::Torn)?;
            let left = room.checked_sub(operations).filter(|_| crc32fast::hash(body) == number(4));
            room = left.ok_or(Stop::Broken(LogError::Checksum))?;
            blocks.push(operations_of(body, flags, operations)?);
            after = following;
            if flags & LAST != 0 {
                let at = [number(21).to_le_bytes(), number(25).to_le_bytes()].concat();
                let at = i64::from_le_bytes(at.try_into().unwrap_or_default());
                (self.revision, self.at) = ((number(13), number(17)), Timestamp::from_unix_ns(at));
                break;
            }
        }
        for block in blocks {
            self.apply(&block).ok_or(Stop::Broken(LogError::Entry("operations")))?;
        }
        *rest = after;
        Ok(())
    }

    fn apply(&mut self, operations: &[u8]) -> Option<()> {
        let mut rest = Bytes(operations);
        while !rest.0.is_empty() {
            match rest.byte()? {
                NEW => {
                    let section = rest.byte()?;
                    let (key, value) = (rest.bytes()?.into(), rest.bytes()?.into());
                    self.entries.push(Some(Entry { section, key, value }));
                }
                CHANGED => {
                    let known = self.known(rest.int()?)?.as_mut()?;
                    known.value = rest.bytes()?.into();
                }
                GONE => drop(self.known(rest.int()?)?.take()?),
                _ => return None,
            }
        }
        Some(())
    }

    fn known(&mut self, id: u64) -> Option<&mut Option<Entry>> {
        self.entries.get_mut(usize::try_from(id).ok()?)
    }
}

fn operations_of(body: &[u8], flags: u8, length: u32) -> Result<Vec<u8>, Stop> {
    let broken = || Stop::Broken(LogError::Entry("body"));
    let mut operations = Vec::new();
    if flags & ZSTD == 0 {
        operations.extend(body);
    } else {
        let decoder = StreamingDecoder::new(body).map_err(|_| broken())?;
        // One byte more shows that there is more.
        decoder.take(u64::from(length) + 1).read_to_end(&mut operations).map_err(|_| broken())?;
    }
    if operations.len() as u64 == u64::from(length) { Ok(operations) } else { Err(broken()) }
}
