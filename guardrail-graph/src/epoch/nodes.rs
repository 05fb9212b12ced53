//! Nodes as entries: each label is an entry, and so is each description, since most nodes have most
//! labels in common and a node that comes back is what it was.
//!
//! ```text
//! NODE_LABEL  key: length of the label's key, key, value
//! NODE_WORD   key: flags, operating system, labels by number, addresses, pod ranges
//! NODE        key: name, flags, why nobody can observe it, word by number, from;
//!             value: until when, from there on, or nothing: until now
//! ```

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    bytes::{Bytes, put_bytes, put_int, put_signed},
    log::{Entry, Recording, Replayed},
    state::{OPEN, address, put_address, section},
};
use crate::{
    inventory::Labels,
    snapshot::{
        Interval, NodeDescription, NodeTime,
        nodes::{Nodes, node_times},
    },
    time::Timestamp,
};

/// There is a text: an operating system, a reason.
const TEXT: u8 = 1;
const MORE_LABELS: u8 = 2;
/// Bytes of labels that one state may spell out: some bytes can name the same label for thousands
/// of nodes. More of them are left out.
const MAX_LABEL_BYTES: usize = 256 << 20;

fn put_flags(out: &mut Vec<u8>, flags: u8, text: Option<&str>) {
    out.push(flags | text.map_or(0, |_| TEXT));
    if let Some(text) = text {
        put_bytes(out, text.as_bytes());
    }
}

/// Puts nodes into a recording, with times counted from `begun`.
pub(super) fn put_nodes(recording: &mut Recording<'_>, nodes: &Nodes, begun: Timestamp) {
    let mut key = Vec::new();
    for NodeTime { name, unobservable, described, time } in node_times(nodes) {
        let word = put_word(recording, &described);
        put_bytes(&mut key, name.as_bytes());
        put_flags(&mut key, 0, unobservable.as_deref());
        put_int(&mut key, word.into());
        put_signed(&mut key, time.from.as_unix_ns().wrapping_sub(begun.as_unix_ns()));
        let mut value = Vec::new();
        if time.to != OPEN {
            put_signed(&mut value, time.to.as_unix_ns().wrapping_sub(time.from.as_unix_ns()));
        }
        recording.put(section::NODE, &key, &value);
        key.clear();
    }
}

fn put_word(recording: &mut Recording<'_>, described: &NodeDescription) -> u32 {
    let NodeDescription { os, labels, more_labels, addresses, pod_cidrs } = described;
    let ids: Vec<u32> = labels
        .iter()
        .map(|(key, value)| {
            let mut label = Vec::with_capacity(key.len() + value.len() + 2);
            put_bytes(&mut label, key.as_bytes());
            label.extend(value.as_bytes());
            recording.put(section::NODE_LABEL, &label, &[])
        })
        .collect();
    let mut word = Vec::new();
    put_flags(&mut word, if *more_labels { MORE_LABELS } else { 0 }, os.as_deref());
    put_int(&mut word, ids.len() as u64);
    ids.into_iter().for_each(|id| put_int(&mut word, id.into()));
    put_int(&mut word, addresses.len() as u64);
    addresses.iter().for_each(|address| put_address(&mut word, *address));
    put_int(&mut word, pod_cidrs.len() as u64);
    for range in pod_cidrs {
        put_address(&mut word, range.addr());
        word.push(range.prefix_len());
    }
    recording.put(section::NODE_WORD, &word, &[])
}

/// Reads the nodes of one state.
#[derive(Debug, Default)]
pub(super) struct NodeReader {
    words: HashMap<u64, Arc<NodeDescription>>,
    label_bytes: usize,
}

impl NodeReader {
    /// A node; `None`: the entry makes no sense. `times`: where they are counted from, and where
    /// what is open ends.
    pub(super) fn read(
        &mut self,
        replayed: &Replayed,
        entry: &Entry,
        (begun, end): (Timestamp, Timestamp),
    ) -> Option<NodeTime> {
        let (mut key, mut value) = (Bytes(&entry.key), Bytes(&entry.value));
        let name = key.text()?.to_owned();
        let (_, unobservable) = flags(&mut key)?;
        let described = self.word(replayed, key.int()?)?;
        let from = begun.as_unix_ns().wrapping_add(key.signed()?);
        let to = match value.0 {
            [] => end,
            _ => Timestamp::from_unix_ns(from.wrapping_add(value.signed()?)),
        };
        let from = Timestamp::from_unix_ns(from);
        let time = Interval { from, to: to.max(from) };
        (key.0.is_empty() && value.0.is_empty()).then_some(NodeTime { name, unobservable, described, time })
    }

    fn word(&mut self, replayed: &Replayed, id: u64) -> Option<Arc<NodeDescription>> {
        if let Some(known) = self.words.get(&id) {
            return Some(Arc::clone(known));
        }
        let mut word = Bytes(&replayed.entry(id, section::NODE_WORD)?.key);
        let (flags, os) = flags(&mut word)?;
        let mut labels = Vec::new();
        let mut more_labels = flags & MORE_LABELS != 0;
        for _ in 0..word.int()? {
            let entry = replayed.entry(word.int()?, section::NODE_LABEL)?;
            let mut label = Bytes(&entry.key);
            let (key, value) = (label.text()?, std::str::from_utf8(label.0).ok()?);
            let bytes = self.label_bytes.saturating_add(entry.key.len());
            if bytes > MAX_LABEL_BYTES {
                more_labels = true;
                continue;
            }
            self.label_bytes = bytes;
            labels.push((key, value));
        }
        let addresses = (0..word.int()?).map(|_| read_address(&mut word)).collect::<Option<_>>()?;
        let range = |word: &mut Bytes<'_>| IpNet::new(read_address(word)?, word.byte()?).ok();
        let pod_cidrs = (0..word.int()?).map(|_| range(&mut word)).collect::<Option<_>>()?;
        let labels: Labels = labels.into_iter().collect();
        let described = Arc::new(NodeDescription { os, labels, more_labels, addresses, pod_cidrs });
        word.0.is_empty().then_some(Arc::clone(self.words.entry(id).or_insert(described)))
    }
}

fn flags(bytes: &mut Bytes<'_>) -> Option<(u8, Option<String>)> {
    let flags = bytes.byte()?;
    let text = if flags & TEXT == 0 { None } else { Some(bytes.text()?.to_owned()) };
    Some((flags, text))
}

fn read_address(bytes: &mut Bytes<'_>) -> Option<IpAddr> {
    let family = bytes.byte()?;
    address(family, bytes)
}
