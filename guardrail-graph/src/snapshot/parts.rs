//! The facts of a merged document, apart by epoch.
//!
//! Joining forgets who said what: the greater of two numbers, the later of two descriptions. What
//! an open epoch's document says may be replaced by its next revision, whole, and a span may leave
//! an epoch out. So a merged document carries the documents of epochs as they are; what has no
//! revision is one more, joined. What else stands in it follows from these.
//!
//! In JSON each is a text, base64 (RFC 4648) of one of three forms: the file of a closed epoch
//! ([`crate::epoch::file`]); a base of entries as the state of an open one has it
//! ([`crate::epoch::log`]); of what no agent wrote so, a zstd frame (RFC 8878) of its own JSON.

use std::{borrow::Cow, cell::Cell, collections::BTreeMap, fmt, io::Read as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ruzstd::{decoding::StreamingDecoder, encoding::CompressionLevel};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
};
use thiserror::Error;

use super::{
    Body, Document, Revision, Snapshot, Source,
    facts::{BySource, EdgeFacts, Facts},
    span::{Span, SpanError, cut},
};
use crate::{
    epoch::{
        file::{self, EpochError},
        log::{self, LogError},
        state::{OPEN, State},
    },
    peer::fields::Text,
};

/// Longest JSON of one document that is read, bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Why bytes are no facts.
#[derive(Debug, Error)]
pub enum FactsError {
    /// They are none of the forms, or cut off.
    #[error("they cannot be unpacked")]
    Packed,
    /// There is more than anybody writes.
    #[error("they have more than {} MiB", MAX_BYTES >> 20)]
    Long,
    /// What was packed is no document.
    #[error("they are no snapshot: {0}")]
    Json(#[from] serde_json::Error),
    /// It looks like an epoch, and is none.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// It looks like a base, and is none.
    #[error(transparent)]
    Base(#[from] LogError),
    /// Times run backwards.
    #[error(transparent)]
    Times(#[from] SpanError),
}

/// The facts of a document, packed: they can be unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed(Vec<u8>);

impl Packed {
    /// Those of a document.
    #[must_use]
    pub fn of(document: &Document) -> Self {
        let Revision { run, n } = document.revision();
        if let Some(at) = document.window().to.filter(|_| document.is_plain()) {
            return Self(file::base(document, (run, n), at));
        }
        // Every map key of a document is a text: it becomes JSON whatever it holds.
        let json = serde_json::to_vec(&document.snapshot().body).unwrap_or_default();
        Self(ruzstd::encoding::compress_to_vec(&*json, CompressionLevel::Fastest))
    }

    /// Takes bytes that are those of [`Packed::of`], or the file of a closed epoch.
    ///
    /// # Errors
    /// [`FactsError`]
    pub fn read(bytes: Vec<u8>) -> Result<Self, FactsError> {
        unpack(&bytes).map(|_| Self(bytes))
    }

    /// The document of these facts alone. Nothing that follows from them is in it.
    #[must_use]
    pub fn unpacked(&self) -> Snapshot {
        unpack(&self.0).unwrap_or_else(|_| Snapshot::empty())
    }

    /// The same as a document that is not unpacked before it is joined, if it is of one epoch:
    /// which one and when stands in it, and nothing else.
    fn closed(self, unpacked: Snapshot) -> Snapshot {
        if unpacked.body.epoch_within(&Span::default()).is_none() {
            return unpacked;
        }
        let Body { sources, revisions, window, source_windows, .. } = unpacked.body;
        let body = Body { facts: vec![self], sources, revisions, window, source_windows, ..Body::default() };
        Snapshot { body, ..Snapshot::empty() }
    }
}

impl From<Packed> for Vec<u8> {
    fn from(packed: Packed) -> Self {
        packed.0
    }
}

fn unpack(bytes: &[u8]) -> Result<Snapshot, FactsError> {
    if file::is_epoch(bytes) {
        return Ok(file::decode(bytes)?.1);
    }
    if log::is_base(bytes) {
        let state = State::read(bytes, &[])?;
        return Ok(state.facts(state.at())?);
    }
    let mut json = Vec::new();
    let frame = StreamingDecoder::new(bytes).map_err(|_| FactsError::Packed)?;
    frame.take(MAX_BYTES + 1).read_to_end(&mut json).map_err(|_| FactsError::Packed)?;
    if json.len() as u64 > MAX_BYTES {
        return Err(FactsError::Long);
    }
    let _inside = Inside::enter();
    Ok(Snapshot { body: serde_json::from_slice(&json)?, ..Snapshot::empty() })
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// While facts are read: facts in facts, which nobody writes, could unpack to themselves.
struct Inside;

impl Inside {
    fn enter() -> Self {
        INSIDE.set(true);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// How packed facts stand in JSON.
pub(super) fn text(packed: &[u8]) -> String {
    STANDARD.encode(packed)
}

impl Serialize for Packed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(&self.0))
    }
}

/// A list of packed facts, unpacked one after the other.
struct Unpacked<T>(fn(Vec<u8>) -> Result<T, FactsError>);

impl<'de, T> Visitor<'de> for Unpacked<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of packed facts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        if INSIDE.get() {
            return Err(A::Error::custom("facts hold facts in turn, which nobody writes"));
        }
        let mut facts = Vec::new();
        while let Some(Text(text)) = list.next_element()? {
            let packed = STANDARD.decode(&*text).map_err(|error| A::Error::custom(format!("facts: {error}")))?;
            facts.push((self.0)(packed).map_err(|error| A::Error::custom(format!("facts: {error}")))?);
        }
        Ok(facts)
    }
}

/// [`Body::facts`].
pub(super) fn packed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Packed>, D::Error> {
    deserializer.deserialize_seq(Unpacked(Packed::read))
}

fn closed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Snapshot>, D::Error> {
    let read = |bytes: Vec<u8>| {
        let unpacked = unpack(&bytes)?;
        unpacked.check_times()?;
        Ok(Packed(bytes).closed(unpacked))
    };
    deserializer.deserialize_seq(Unpacked(read))
}

/// The facts of a document that has some apart, and nothing else of it.
#[derive(Deserialize)]
pub(super) struct OnlyFacts {
    #[serde(deserialize_with = "closed")]
    pub(super) facts: Vec<Snapshot>,
}

impl Document {
    /// Whether a base of entries says all of it: it is of one source, as an agent writes it.
    fn is_plain(&self) -> bool {
        let facts = self.facts();
        let mut sources = facts.sources.iter();
        let (Some(source), None) = (sources.next(), sources.next()) else { return false };
        let is_own = |of: &BySource| !of.is_empty() && of.iter().all(|(counter, ..)| counter == source);
        let is_own_edge = |edge: &EdgeFacts| {
            let rare = edge.rare();
            // Those without counts follow from something else.
            (edge.sources.is_empty() || is_own(&edge.sources))
                && rare.without_sources.is_none()
                && rare.via.is_empty()
                && rare.client_names.is_empty()
        };
        let Facts { service_flows, remote_flows, edges, own_pods, observed, witnesses, .. } = facts;
        let Source { node, start, .. } = &**source;
        let to = self.window().to;
        start.is_some()
            && self.revision().is_known()
            && !self.has_source_windows()
            && facts.window.keys().eq([node])
            && facts.steps.keys().all(|of| of == node)
            && observed.iter().eq([node])
            && own_pods.iter().all(|(of, (at, _))| of == node && Some(*at) == to)
            && witnesses.keys().all(|of| of == source)
            && facts.losses.keys().all(|(of, _)| of == source)
            && self.coverage().unresolved.iter().all(|entry| entry.source == **source)
            && service_flows.values().all(|flow| is_own(&flow.sources))
            && remote_flows.values().all(|remote| is_own(&remote.flow.sources))
            && edges.values().all(is_own_edge)
            && !self.has_open_ends()
    }

    /// Whether a time in it is what a state takes for "until now".
    fn has_open_ends(&self) -> bool {
        let Facts { ran_on, workloads, services, pods, nodes, .. } = self.facts();
        ran_on.values().flatten().any(|(_, at)| *at == OPEN)
            || workloads.values().any(|workload| workload.as_of == OPEN)
            || services.values().any(|service| service.base.as_of == OPEN)
            || pods.values().any(|pod| pod.to == OPEN)
            || nodes.values().flatten().any(|time| time.to == OPEN)
            || self.window().nodes.values().flatten().any(|interval| interval.to == OPEN)
            || self.window().steps.values().flatten().any(|interval| interval.to == OPEN)
    }
}

impl Snapshot {
    /// The documents that this one was joined of, as far as they are apart; else itself.
    #[must_use]
    pub fn parts(self) -> Vec<Self> {
        if self.body.facts.is_empty() {
            return vec![self];
        }
        self.body.facts.iter().map(Packed::unpacked).collect()
    }

    /// The same, each of one epoch left packed as far as it is.
    pub(super) fn closed_parts(self) -> Vec<Self> {
        match &self.body.facts[..] {
            [] => vec![self],
            [_] if self.body.edges.is_empty() && self.body.workloads.is_empty() => vec![self],
            _ => self.body.facts.into_iter().map(|packed| packed.unpacked()).collect(),
        }
    }
}

impl Body {
    /// With what is packed in it yet.
    pub(super) fn opened(&self) -> Cow<'_, Self> {
        match &self.facts[..] {
            [packed] => Cow::Owned(packed.unpacked().body),
            _ => Cow::Borrowed(self),
        }
    }

    /// The epoch that it is of, if that is one alone that was observed in the span, and it says its
    /// revision.
    fn epoch_within(&self, span: &Span) -> Option<&Source> {
        let source = self.sources.first().filter(|_| self.sources.len() == 1)?;
        let windows = self.windows_of_sources();
        let is_observed = || windows.get(source).is_some_and(|window| span.cut(*window).is_some());
        (self.revision(source).is_known() && (span.is_all() || is_observed())).then_some(source)
    }
}

/// The facts that documents together are, within a span: those of each epoch, sorted, and last all
/// others as one. None, if they are one document.
pub(super) fn apart(parts: &[Snapshot], span: &Span) -> Vec<Packed> {
    let mut groups: BTreeMap<(bool, Option<&Source>), Vec<&Snapshot>> = BTreeMap::new();
    for part in parts.iter().filter(|part| part.body != Body::default()) {
        let epoch = part.body.epoch_within(span);
        groups.entry((epoch.is_none(), epoch)).or_default().push(part);
    }
    if groups.len() < 2 {
        return Vec::new();
    }
    let within = |part: &&Snapshot| {
        let mut parts = Snapshot::clone(part).parts();
        if !span.is_all() {
            parts.iter_mut().for_each(|part| cut(&mut part.body, span));
        }
        parts
    };
    // Of an epoch there are several if they are the same revision, within other spans.
    groups.into_values().map(|same| Packed::of(&Document::joined(same.iter().flat_map(within)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Observer, ObserverConfig, Timestamp};

    fn t(second: i64) -> Timestamp {
        Timestamp::from_unix_seconds(1_700_000_000 + second)
    }

    fn of_node(node: &str) -> Document {
        let config = ObserverConfig { run: 1, ..ObserverConfig::new(node, "i".to_owned(), t(0)) };
        Observer::new(config).document(t(10))
    }

    fn json(body: &impl Serialize) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(&*serde_json::to_vec(body).unwrap(), CompressionLevel::Fastest)
    }

    #[test]
    fn what_an_agent_writes_is_packed_as_its_state_has_it_and_anything_else_as_json() {
        let plain = of_node("node-a");
        let packed = Packed::of(&plain);
        assert!(log::is_base(&packed.0));
        assert_eq!(Document::joined([packed.unpacked()]).snapshot(), plain.snapshot());
        let mut without_revision = plain.snapshot();
        without_revision.body.revisions.clear();
        let mut others = plain.snapshot();
        others.body.window.nodes.insert("node-b".to_owned(), plain.window().nodes["node-a"].clone());
        let both = super::super::merge(vec![plain.snapshot(), of_node("node-b").snapshot()]);
        for other in [without_revision, others, both] {
            let document = Document::joined(other.parts());
            let packed = Packed::of(&document);
            assert!(!log::is_base(&packed.0));
            assert_eq!(Document::joined([packed.unpacked()]).snapshot(), document.snapshot());
        }
    }

    #[test]
    fn facts_within_facts_are_refused_and_facts_after_them_are_read() {
        let both = super::super::merge(vec![of_node("node-a").snapshot(), of_node("node-b").snapshot()]);
        assert_eq!(both.body.facts.len(), 2);
        let error = Packed::read(json(&both.body)).unwrap_err();
        assert!(error.to_string().contains("facts hold facts in turn"), "{error}");
        assert_eq!(Snapshot::from_json(&both.to_json(), "both").unwrap(), both);
        for cut in [0, 1, 20, both.body.facts[0].0.len() - 1] {
            assert!(Packed::read(both.body.facts[0].0[..cut].to_vec()).is_err(), "{cut}");
        }
        let frame = json(&Body::default());
        assert!(Packed::read(frame[..frame.len() - 1].to_vec()).is_err());
    }
}
