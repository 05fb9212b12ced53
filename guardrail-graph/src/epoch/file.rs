//! A closed epoch as a file: a header that says what it is, and its facts, in the form of the open
//! epoch's base ([`super::log`]).
//!
//! In: bytes of anybody's. Out: an epoch, or one sentence. Decoding is total, and takes memory
//! within bounds. Numbers are little-endian:
//!
//! ```text
//! magic     16 bytes, with the version
//! checksum   4 bytes: CRC-32 of all that follows
//! key        node, instance (u16 length, UTF-8), start (i64, ns since 1970)
//! revision   run, n (u32 each)
//! times      from, to (i64 each), why it ended (u8)
//! length     of the body (u64)
//! body       a base of entries
//! ```

use super::{
    End,
    facts::put_document,
    log::{LogError, Recorder, Write},
    state::State,
};
use crate::{
    snapshot::{Document, Revision, Snapshot, Source, Window},
    time::Timestamp,
};

/// First bytes: name and version of the form.
const MAGIC: &[u8; 16] = b"guardrail-epoch2";

/// What a file says of its epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose epoch, and when it began.
    pub key: Source,
    /// The greater of two of one key holds all that the other has: (run of the agent, number within
    /// it).
    pub revision: (u32, u32),
    /// Begin of what was observed.
    pub from: Timestamp,
    /// When the epoch ended.
    pub to: Timestamp,
    /// Why it ended.
    pub end: End,
}

/// Why bytes are no epoch.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// They are something else, or of another version.
    #[error("it is no epoch of this version of guardrail")]
    Form,
    /// They end too early, or go on.
    #[error("it has another length than it says")]
    Length,
    /// They are not what was written.
    #[error("its checksum does not match")]
    Checksum,
    /// The body is no base of facts.
    #[error("its facts cannot be read: {0}")]
    Body(#[from] LogError),
    /// The facts are another epoch's.
    #[error("its facts are another epoch's than the header says")]
    OtherEpoch,
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], EpochError> {
    let (head, rest) = bytes.split_first_chunk().ok_or(EpochError::Length)?;
    *bytes = rest;
    Ok(*head)
}

fn text(bytes: &mut &[u8]) -> Result<String, EpochError> {
    let length = usize::from(u16::from_le_bytes(take(bytes)?));
    let (text, rest) = bytes.split_at_checked(length).ok_or(EpochError::Length)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).map_err(|_| EpochError::Form)
}

fn time(bytes: &mut &[u8]) -> Result<Timestamp, EpochError> {
    Ok(Timestamp::from_unix_ns(i64::from_le_bytes(take(bytes)?)))
}

/// Whether bytes say that they are an epoch, of this version.
#[must_use]
pub fn is_epoch(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// The key of a document that is one agent's alone, of one epoch.
#[must_use]
pub fn key_of(snapshot: &Snapshot) -> Option<Source> {
    let body = &snapshot.body;
    key(body.sources.iter(), &body.window)
}

fn key<'a>(mut sources: impl Iterator<Item = &'a Source>, window: &Window) -> Option<Source> {
    match (sources.next(), sources.next()) {
        // A state that knows no epochs is the one that began when observation did.
        (Some(source), None) => Some(Source { start: source.start.or(window.from), ..source.clone() }),
        _ => None,
    }
}

impl Header {
    /// What a file says of this document; `None` if it is not one agent's alone, of one epoch.
    #[must_use]
    pub fn of(document: &Document, end: End) -> Option<Self> {
        let window = document.window();
        let key = key(document.sources(), window)?;
        let Revision { run, n } = document.revision();
        Some(Self { key, revision: (run, n), from: window.from?, to: window.to?, end })
    }

    /// The header, and the body.
    fn split(bytes: &[u8]) -> Result<(Self, &[u8]), EpochError> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(EpochError::Form)?;
        let checksum = u32::from_le_bytes(take(&mut rest)?);
        if crc32fast::hash(rest) != checksum {
            return Err(EpochError::Checksum);
        }
        let rest = &mut rest;
        let key = Source { node: text(rest)?, instance: text(rest)?, start: Some(time(rest)?) };
        let revision = (u32::from_le_bytes(take(rest)?), u32::from_le_bytes(take(rest)?));
        let (from, to) = (time(rest)?, time(rest)?);
        let [end] = take(rest)?;
        let end = End::ALL.into_iter().find(|known| *known as u8 == end).ok_or(EpochError::Form)?;
        let body = u64::from_le_bytes(take(rest)?);
        if rest.len() as u64 != body {
            return Err(EpochError::Length);
        }
        Ok((Self { key, revision, from, to, end }, rest))
    }

    /// What a file says of its epoch. All of its bytes are looked at.
    ///
    /// # Errors
    /// [`EpochError`]: it is no epoch, or not whole.
    pub fn read(bytes: &[u8]) -> Result<Self, EpochError> {
        Self::split(bytes).map(|(header, _)| header)
    }
}

/// The facts of a document of one source, as a base of entries that were so at that time.
pub(crate) fn base(document: &Document, revision: (u32, u32), at: Timestamp) -> Vec<u8> {
    let mut recorder = Recorder::default();
    let mut recording = recorder.begin();
    if let Some(source) = document.sources().next() {
        put_document(&mut recording, source, document);
    }
    // The first recording is a base.
    match recording.end(revision, at) {
        Some(Write::Base(body)) => body,
        _ => Vec::new(),
    }
}

/// The file of a closed epoch: equal epochs are equal bytes.
#[must_use]
pub fn encode(header: &Header, document: &Document) -> Vec<u8> {
    let body = base(document, header.revision, header.to);
    let mut rest = Vec::with_capacity(body.len() + 256);
    for text in [&header.key.node, &header.key.instance] {
        // Both are shorter by far; what is too long would not be found again.
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        rest.extend(length.to_le_bytes());
        rest.extend(&text.as_bytes()[..usize::from(length)]);
    }
    rest.extend(header.key.start.unwrap_or(header.from).as_unix_ns().to_le_bytes());
    rest.extend(header.revision.0.to_le_bytes());
    rest.extend(header.revision.1.to_le_bytes());
    rest.extend(header.from.as_unix_ns().to_le_bytes());
    rest.extend(header.to.as_unix_ns().to_le_bytes());
    rest.push(header.end as u8);
    rest.extend((body.len() as u64).to_le_bytes());
    rest.extend(body);
    let mut file = MAGIC.to_vec();
    file.extend(crc32fast::hash(&rest).to_le_bytes());
    file.extend(rest);
    file
}

/// Reads the file of an epoch: its facts, and nothing that follows from them
/// ([`Document::joined`]).
///
/// # Errors
/// [`EpochError`]
pub fn decode(bytes: &[u8]) -> Result<(Header, Snapshot), EpochError> {
    let (header, body) = Header::split(bytes)?;
    let state = State::read(body, &[])?;
    let snapshot = state.facts(header.to)?;
    if key_of(&snapshot).as_ref() != Some(&header.key) || (state.revision(), state.at()) != (header.revision, header.to)
    {
        return Err(EpochError::OtherEpoch);
    }
    Ok((header, snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Observer, ObserverConfig};

    const SEEDS: [&[u8]; 3] = [
        include_bytes!("../../../fuzz/seeds/epoch/empty"),
        include_bytes!("../../../fuzz/seeds/epoch/edge"),
        include_bytes!("../../../fuzz/seeds/epoch/nodes"),
    ];

    fn example() -> Vec<u8> {
        let t = Timestamp::from_unix_seconds;
        let mut observer = Observer::new(ObserverConfig::new("node-a", "i", t(1_700_000_000)));
        let document = observer.turn(&[], t(1_700_086_400));
        let header = Header::of(&document, End::Day).unwrap();
        let bytes = encode(&header, &document);
        let (read, snapshot) = decode(&bytes).unwrap();
        assert_eq!((&read, Document::joined([snapshot]).snapshot()), (&header, document.snapshot()));
        assert_eq!((read.key.start, read.from, read.to), (Some(t(1_700_000_000)), t(1_700_000_000), t(1_700_086_400)));
        assert_eq!(encode(&header, &document), bytes, "equal epochs are equal bytes");
        bytes
    }

    #[test]
    fn what_was_written_is_read_again_and_what_is_cut_or_changed_is_an_error() {
        let bytes = example();
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] = !changed[at];
            assert!(decode(&changed).is_err(), "{at}");
            assert!(Header::read(&changed).is_err(), "{at}");
        }
        assert!(decode(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn a_changed_file_whose_checksum_is_right_is_an_error_or_an_epoch_and_never_a_panic() {
        for file in SEEDS.into_iter().map(<[u8]>::to_vec).chain([example()]) {
            for at in MAGIC.len() + 4..file.len() {
                let mut changed = file.clone();
                changed[at] = changed[at].wrapping_add(1);
                let checksum = crc32fast::hash(&changed[MAGIC.len() + 4..]);
                changed[MAGIC.len()..MAGIC.len() + 4].copy_from_slice(&checksum.to_le_bytes());
                let _ = decode(&changed);
            }
        }
    }

    #[test]
    fn the_seeds_of_the_fuzz_target_are_epochs_of_this_version() {
        let [empty, edge, nodes] = SEEDS.map(|seed| decode(seed).unwrap());
        assert_eq!((empty.0.end, edge.0.end), (End::ClockStep, End::Day));
        assert_eq!((empty.1.body.edges.len(), edge.1.body.edges.len()), (0, 1));
        assert_eq!(nodes.1.body.nodes.len(), 4);
        for (header, snapshot) in [empty, edge, nodes] {
            let document = Document::joined([snapshot.clone()]);
            assert_eq!(decode(&encode(&header, &document)).unwrap(), (header, snapshot));
        }
    }
}
