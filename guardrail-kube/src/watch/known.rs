//! What is known of each object: enough to tell a change from a repetition, without a copy of the
//! object.

use std::{
    collections::{HashMap, VecDeque},
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hasher as _},
};

/// Deleted names kept for each resource. An event that is older than the deletion but arrives after
/// it is recognised by them.
const TOMBSTONES: usize = 1024;

/// Whether an object that arrived brings something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Novelty {
    /// The trimmed copy is new or differs.
    Changed,
    /// The trimmed copy is as it was.
    Unchanged,
    /// A newer version arrived before.
    Stale,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// `metadata.resourceVersion` as a number. Since 1.35 the API guarantees that versions of one
    /// resource compare as numbers; those of etcd always did. `None` if it is no number: then only
    /// the order of arrival counts.
    version: Option<u64>,
    /// Of the trimmed copy; `None` for a tombstone.
    content: Option<u64>,
}

/// The objects of one resource, by `namespace/name`.
#[derive(Debug, Default)]
pub(super) struct Known {
    entries: HashMap<Box<str>, Entry>,
    /// Names of tombstones, oldest first. An object of such a name may exist again.
    deleted: VecDeque<Box<str>>,
}

/// A hash of everything that the trimmed copy holds.
pub(super) fn content(object: &impl fmt::Debug) -> u64 {
    struct Into(DefaultHasher);
    impl fmt::Write for Into {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            self.0.write(s.as_bytes());
            Ok(())
        }
    }
    let mut hasher = Into(DefaultHasher::new());
    // Writing into a hasher cannot fail.
    let _ = write!(hasher, "{object:?}");
    hasher.0.finish()
}

fn older(version: Option<u64>, known: Option<u64>) -> bool {
    matches!((version, known), (Some(version), Some(known)) if version < known)
}

impl Known {
    /// Records an object that was added or modified.
    pub(super) fn applied(&mut self, name: &str, version: Option<u64>, content: u64) -> Novelty {
        let entry = Entry { version, content: Some(content) };
        match self.entries.get_mut(name) {
            Some(known) if older(version, known.version) => Novelty::Stale,
            Some(known) => {
                let novelty = if known.content == entry.content { Novelty::Unchanged } else { Novelty::Changed };
                *known = entry;
                novelty
            }
            None => {
                self.entries.insert(name.into(), entry);
                Novelty::Changed
            }
        }
    }

    /// Records a deletion. `false` if the object is not known, or was created again since.
    pub(super) fn deleted(&mut self, name: &str, version: Option<u64>) -> bool {
        let Some(known) = self.entries.get_mut(name) else {
            self.bury(name, version);
            return false;
        };
        if older(version, known.version) || known.content.is_none() {
            return false;
        }
        self.bury(name, version);
        true
    }

    fn bury(&mut self, name: &str, version: Option<u64>) {
        self.entries.insert(name.into(), Entry { version, content: None });
        self.deleted.push_back(name.into());
        if self.deleted.len() > TOMBSTONES
            && let Some(oldest) = self.deleted.pop_front()
            && self.entries.get(&oldest).is_some_and(|e| e.content.is_none())
        {
            self.entries.remove(&oldest);
        }
    }

    /// Whether an object of that name is known to exist.
    pub(super) fn is_alive(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|e| e.content.is_some())
    }

    /// Whether an object of that name and content is known to exist.
    pub(super) fn holds(&self, name: &str, content: u64) -> bool {
        self.entries.get(name).is_some_and(|e| e.content == Some(content))
    }

    /// Whether no object is known to exist.
    pub(super) fn is_empty(&self) -> bool {
        self.alive().next().is_none()
    }

    /// Names of objects that exist.
    pub(super) fn alive(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|(_, e)| e.content.is_some()).map(|(name, _)| &**name)
    }

    /// Takes a complete list. Objects that it does not name are forgotten. Tombstones are forgotten
    /// too, because a server that was restored from a backup continues from an older version.
    pub(super) fn replace(&mut self, objects: impl IntoIterator<Item = (Box<str>, Option<u64>, u64)>) {
        self.deleted = VecDeque::new();
        self.entries = objects
            .into_iter()
            .map(|(name, version, content)| (name, Entry { version, content: Some(content) }))
            .collect();
        self.entries.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_and_late_events_are_told_from_news() {
        let mut known = Known::default();
        assert_eq!(known.applied("a/x", Some(5), 1), Novelty::Changed);
        assert_eq!(known.applied("a/x", Some(5), 1), Novelty::Unchanged);
        assert_eq!(known.applied("a/x", Some(6), 1), Novelty::Unchanged);
        assert_eq!(known.applied("a/x", Some(9), 2), Novelty::Changed);
        assert_eq!(known.applied("a/x", Some(7), 1), Novelty::Stale);
        assert!(!known.deleted("a/x", Some(8)), "deleted before it came back");
        assert!(known.deleted("a/x", Some(10)));
        assert!(!known.deleted("a/x", Some(10)), "said twice");
        assert_eq!(known.applied("a/x", Some(9), 3), Novelty::Stale, "from before the deletion");
        assert_eq!(known.applied("a/x", Some(11), 3), Novelty::Changed, "a new object of that name");
    }

    #[test]
    fn versions_that_are_no_numbers_are_taken_as_they_come() {
        let mut known = Known::default();
        assert_eq!(known.applied("x", None, 1), Novelty::Changed);
        assert_eq!(known.applied("x", None, 2), Novelty::Changed);
        assert!(known.deleted("x", None));
        assert_eq!(known.applied("x", None, 2), Novelty::Changed);
    }

    #[test]
    fn a_late_event_of_an_object_whose_deletion_alone_was_seen_is_stale() {
        let mut known = Known::default();
        assert!(!known.deleted("x", Some(10)));
        assert_eq!(known.applied("x", Some(9), 1), Novelty::Stale);
    }

    #[test]
    fn tombstones_are_bounded() {
        let mut known = Known::default();
        for i in 0..10_000_u64 {
            known.applied(&format!("n/{i}"), Some(2 * i), i);
            known.deleted(&format!("n/{i}"), Some(2 * i + 1));
        }
        assert_eq!(known.entries.len(), TOMBSTONES);
        assert_eq!(known.deleted.len(), TOMBSTONES);
    }

    #[test]
    fn a_complete_list_forgets_versions_of_a_server_that_was_restored() {
        let mut known = Known::default();
        known.applied("x", Some(1000), 1);
        known.deleted("y", Some(1000));
        known.replace([("x".into(), Some(7), 1)]);
        assert_eq!(known.applied("x", Some(8), 2), Novelty::Changed);
        assert_eq!(known.applied("y", Some(9), 2), Novelty::Changed);
    }
}
