//! Edges as they are read. What [`super`] has in parts stands side by side in JSON (`flatten`):
//! serde would keep every value of it in a tree of its own first. Equal peers and equal sources are
//! one in memory: of 100,000 edges there are some thousands.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, SeqAccess, Visitor},
};

use super::{Counts, EdgePeer, EdgeRecord, Side, Source, SourceCounts};
use crate::{
    peer::{
        Peer, Protocol,
        fields::{Kind, PeerFields, Text},
    },
    time::Timestamp,
};

/// A count that is kept as a short one; what is more is written as the most that fits.
fn short<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Ok(u32::try_from(u64::deserialize(deserializer)?).unwrap_or(u32::MAX))
}

/// As [`EdgePeer`].
#[derive(Deserialize)]
struct EdgePeerFields<'a> {
    kind: Kind,
    #[serde(borrow, default)]
    namespace: Option<Text<'a>>,
    #[serde(borrow, default)]
    owner: Option<Text<'a>>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(borrow, default)]
    address: Option<Text<'a>>,
    #[serde(default)]
    names: BTreeSet<String>,
}

impl<'a> EdgePeerFields<'a> {
    fn parts(self) -> (PeerFields<'a>, BTreeSet<String>) {
        let Self { kind, namespace, owner, name, address, names } = self;
        (PeerFields { kind, namespace, owner, name, address }, names)
    }
}

/// As [`Source`].
#[derive(PartialEq, Eq, Hash, Deserialize)]
struct SourceFields<'a> {
    #[serde(borrow)]
    node: Text<'a>,
    #[serde(borrow)]
    instance: Text<'a>,
    #[serde(default)]
    start: Option<Timestamp>,
}

impl SourceFields<'_> {
    fn source(&self) -> Source {
        let Self { node, instance, start } = self;
        Source { node: node.0.clone().into_owned(), instance: instance.0.clone().into_owned(), start: *start }
    }
}

/// As [`SourceCounts`].
#[derive(Deserialize)]
struct CountedFields<'a> {
    #[serde(borrow)]
    source: SourceFields<'a>,
    side: Side,
    opened: u64,
    #[serde(deserialize_with = "short")]
    found: u32,
    #[serde(default)]
    open: u32,
    refused: u64,
    unanswered: u64,
    #[serde(deserialize_with = "short")]
    unreachable: u32,
    #[serde(default)]
    broken: u32,
    bytes_sent: u64,
    bytes_received: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    #[serde(default)]
    by_merge: bool,
}

impl<'a> CountedFields<'a> {
    fn counts(self, source: impl FnOnce(SourceFields<'a>) -> Arc<Source>) -> SourceCounts {
        let Self { side, opened, found, open, refused, unanswered, unreachable, broken, bytes_sent, .. } = self;
        let Self { source: fields, bytes_received, first_seen, last_seen, by_merge, .. } = self;
        SourceCounts {
            source: source(fields),
            side,
            counts: Counts {
                opened,
                found,
                open,
                refused,
                unanswered,
                unreachable,
                broken,
                bytes_sent,
                bytes_received,
            },
            first_seen,
            last_seen,
            by_merge,
        }
    }
}

/// As [`EdgeRecord`].
#[derive(Deserialize)]
struct EdgeFields<'a> {
    #[serde(borrow)]
    client: EdgePeerFields<'a>,
    #[serde(borrow)]
    server: EdgePeerFields<'a>,
    protocol: Protocol,
    port: u16,
    port_name: Option<String>,
    via: BTreeSet<String>,
    seen_by: BTreeSet<Side>,
    opened: u64,
    #[serde(deserialize_with = "short")]
    found: u32,
    #[serde(default)]
    open: u32,
    refused: u64,
    unanswered: u64,
    #[serde(deserialize_with = "short")]
    unreachable: u32,
    #[serde(default)]
    broken: u32,
    bytes_sent: u64,
    bytes_received: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    supported: bool,
    marks: BTreeSet<String>,
    #[serde(default)]
    node_workloads: BTreeSet<String>,
    #[serde(borrow)]
    sources: Vec<CountedFields<'a>>,
}

/// What the records of a document share.
#[derive(Default)]
struct Shared<'a> {
    peers: HashMap<PeerFields<'a>, Arc<Peer>>,
    sources: HashMap<SourceFields<'a>, Arc<Source>>,
}

impl<'a> Shared<'a> {
    fn peer<E: Error>(&mut self, fields: EdgePeerFields<'a>) -> Result<EdgePeer, E> {
        let (fields, names) = fields.parts();
        if let Some(known) = self.peers.get(&fields) {
            return Ok(EdgePeer { peer: Arc::clone(known), names });
        }
        let peer = Arc::new(fields.peer()?);
        self.peers.insert(fields, Arc::clone(&peer));
        Ok(EdgePeer { peer, names })
    }

    fn counts(&mut self, fields: CountedFields<'a>) -> SourceCounts {
        fields.counts(|fields| match self.sources.get(&fields) {
            Some(known) => Arc::clone(known),
            None => {
                let source = Arc::new(fields.source());
                self.sources.insert(fields, Arc::clone(&source));
                source
            }
        })
    }

    fn edge<E: Error>(&mut self, fields: EdgeFields<'a>) -> Result<EdgeRecord, E> {
        let EdgeFields { client, server, protocol, port, port_name, via, seen_by, opened, found, open, .. } = fields;
        let EdgeFields { refused, unanswered, unreachable, broken, bytes_sent, bytes_received, .. } = fields;
        let EdgeFields { first_seen, last_seen, supported, marks, node_workloads, sources, .. } = fields;
        // Collected, they would lie in the place of the fields, which is five times as large.
        let mut counted = Vec::with_capacity(sources.len());
        counted.extend(sources.into_iter().map(|fields| self.counts(fields)));
        Ok(EdgeRecord {
            client: self.peer(client)?,
            server: self.peer(server)?,
            protocol,
            port,
            port_name,
            via,
            seen_by,
            counts: Counts {
                opened,
                found,
                open,
                refused,
                unanswered,
                unreachable,
                broken,
                bytes_sent,
                bytes_received,
            },
            first_seen,
            last_seen,
            supported,
            marks,
            node_workloads,
            sources: counted,
        })
    }
}

/// Reads the edges of a document, which share their peers and sources, and gives each to the
/// function: not all of them need be kept.
///
/// It fails if there is no list of edges.
#[derive(Debug)]
pub struct EachEdge<F>(pub F);

impl<'de, F: FnMut(EdgeRecord)> DeserializeSeed<'de> for EachEdge<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(EdgeRecord)> Visitor<'de> for EachEdge<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let mut shared = Shared::default();
        while let Some(fields) = list.next_element::<EdgeFields<'de>>()? {
            (self.0)(shared.edge(fields)?);
        }
        Ok(())
    }
}

/// As [`EachEdge`], all of them: for serde's `deserialize_with`.
pub(super) fn edges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EdgeRecord>, D::Error> {
    let mut edges = Vec::new();
    EachEdge(|edge| edges.push(edge)).deserialize(deserializer)?;
    edges.shrink_to_fit();
    Ok(edges)
}

impl<'de> Deserialize<'de> for EdgePeer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Shared::default().peer(EdgePeerFields::deserialize(deserializer)?)
    }
}

impl<'de> Deserialize<'de> for SourceCounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = CountedFields::deserialize(deserializer)?;
        Ok(fields.counts(|source| Arc::new(source.source())))
    }
}

impl<'de> Deserialize<'de> for EdgeRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Shared::default().edge(EdgeFields::deserialize(deserializer)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;

    /// A document with edges from `a`'s pods to `servers`, one a line from the third on.
    fn document(servers: &[&str]) -> String {
        let counts = r#""opened":1,"found":0,"refused":0,"unanswered":0,"unreachable":0,"bytes_sent":1,"bytes_received":2,"first_seen":"2026-03-01T10:00:00Z","last_seen":"2026-03-01T11:00:00Z""#;
        let edge = |server: &&str| {
            format!(
                r#"{{"client":{{"kind":"Workload","namespace":"shop","owner":"Deployment","name":"a"}},"server":{server},"protocol":"TCP","port":80,"port_name":null,"via":[],"seen_by":["client"],{counts},"supported":true,"marks":[],"sources":[{{"source":{{"node":"n","instance":"i"}},"side":"client",{counts}}}]}}"#
            )
        };
        let edges: Vec<String> = servers.iter().map(edge).collect();
        let mut head = serde_json::to_value(Snapshot::empty()).unwrap();
        head.as_object_mut().unwrap().remove("edges");
        let head = head.to_string();
        format!("{},\n\"edges\":[\n{}]}}", &head[..head.len() - 1], edges.join(",\n"))
    }

    #[test]
    fn edges_of_a_document_share_equal_peers_and_sources() {
        let text = document(&[
            r#"{"kind":"Node","name":"n"}"#,
            // The same, spelled otherwise.
            r#"{"name":"\u006e","kind":"Node","later":[1]}"#,
            r#"{"kind":"External","address":"n","names":["x.example"]}"#,
        ]);
        let Snapshot { body, .. } = Snapshot::from_json(&text, "a file").unwrap();
        let [first, second, third] = &body.edges[..] else { panic!("{:?}", body.edges) };
        assert!(Arc::ptr_eq(&first.client.peer, &third.client.peer));
        assert!(Arc::ptr_eq(&first.server.peer, &second.server.peer));
        assert!(Arc::ptr_eq(&first.sources[0].source, &second.sources[0].source));
        assert_eq!((first.sources.capacity(), body.edges.capacity()), (1, 3), "no more room than they need");
        assert_eq!(*third.server.peer, Peer::External { address: "n".to_owned() });
        assert_eq!(third.server.names, BTreeSet::from(["x.example".to_owned()]));
        assert_eq!((first.counts, first.counts.bytes_received), (first.sources[0].counts, 2));
        // One record is read as a list of them is.
        let alone = serde_json::to_string(third).unwrap();
        assert_eq!(serde_json::from_str::<EdgeRecord>(&alone).unwrap(), *third);
    }

    #[test]
    fn a_count_that_is_longer_than_it_is_kept_is_the_most_that_fits() {
        let server = r#"{"kind":"Node","name":"n"}"#;
        let longest = [("found", u64::MAX), ("unreachable", u64::from(u32::MAX) + 1), ("refused", u64::MAX)];
        let text = longest.iter().fold(document(&[server]), |text, (name, count)| {
            text.replace(&format!(r#""{name}":0"#), &format!(r#""{name}":{count}"#))
        });
        let Snapshot { body, .. } = Snapshot::from_json(&text, "a file").unwrap();
        for counts in [body.edges[0].counts, body.edges[0].sources[0].counts] {
            assert_eq!((counts.found, counts.unreachable, counts.refused), (u32::MAX, u32::MAX, u64::MAX));
            assert_eq!(counts.plus(&counts), counts.plus(&counts).plus(&Counts { found: 1, ..Counts::default() }));
            assert_eq!((counts.plus(&counts).found, counts.failed()), (u32::MAX, u64::MAX));
        }
    }

    #[test]
    fn what_a_peer_lacks_is_named_with_its_line() {
        let node = r#"{"kind":"Node","name":"n"}"#;
        for (bad, said) in [
            (r#"{"kind":"Node","address":"n"}"#, "missing field `name`"),
            (r#"{"kind":"External","name":"n"}"#, "missing field `address`"),
            (r#"{"kind":"Workload","owner":"Pod","name":"n"}"#, "missing field `namespace`"),
            (r#"{"name":"n"}"#, "missing field `kind`"),
            (r#"{"kind":"Pod","name":"n"}"#, "unknown variant `Pod`, expected one of `Workload`, `Node`, `External`"),
        ] {
            let error = Snapshot::from_json(&document(&[node, bad]), "a file").unwrap_err().to_string();
            assert_eq!(error, format!("a file: line 4: {said}"));
        }
    }
}
