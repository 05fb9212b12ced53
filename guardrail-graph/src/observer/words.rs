//! How far the watches of the API server have told.
//!
//! A watch tells of changes in their order, and now and then that there was nothing else
//! ([`Change::Heard`]): until then, and no longer, its word holds. After it broke, or was silent
//! for longer than a watch ever is, its next news may be as old as its last word.
//!
//! [`Change::Heard`]: crate::inventory::Change::Heard

use std::time::Duration;

use crate::{inventory::Kind, time::Timestamp};

/// An API server sends a bookmark about once a minute. A watch without one for longer is silent.
const SILENT: Duration = Duration::from_secs(75);

/// What one watch said.
#[derive(Clone, Copy, Debug)]
struct Word {
    /// The kind is watched.
    is_watched: bool,
    /// Everything before is told.
    heard: Option<Timestamp>,
    /// It broke, and has not caught up.
    is_broken: bool,
}

impl Word {
    fn silent_since(&self, now: Timestamp) -> Option<Timestamp> {
        let heard = self.heard.filter(|_| self.is_watched)?;
        (self.is_broken || now.since(heard) > SILENT).then_some(heard)
    }
}

/// What the watches said that tell who has which address.
#[derive(Debug)]
pub(super) struct Words {
    nodes: Word,
    pods: Word,
}

impl Words {
    /// Nothing has been heard. Without watches everything is told.
    pub(super) fn new(is_watched: bool) -> Self {
        let word = Word { is_watched, heard: None, is_broken: false };
        Self { nodes: word, pods: word }
    }

    fn of(&mut self, kind: &Kind) -> Option<&mut Word> {
        match kind {
            Kind::Node => Some(&mut self.nodes),
            Kind::Pod => Some(&mut self.pods),
            _ => None,
        }
    }

    /// What a stored state knows was heard until it ended.
    pub(super) fn restore(&mut self, ended: Timestamp) {
        for word in [&mut self.nodes, &mut self.pods] {
            (word.heard, word.is_broken) = (Some(ended), true);
        }
    }

    /// Everything of this kind that happened before has been told.
    pub(super) fn heard(&mut self, kind: &Kind, at: Timestamp) {
        if let Some(word) = self.of(kind) {
            word.heard = Some(word.heard.map_or(at, |heard| heard.max(at)));
            word.is_broken = false;
        }
    }

    /// The watch broke.
    pub(super) fn interrupted(&mut self, kind: &Kind) {
        if let Some(word) = self.of(kind) {
            word.is_broken = true;
        }
    }

    /// There is no such watch: what is known stays so.
    pub(super) fn unavailable(&mut self, kind: &Kind) {
        if let Some(word) = self.of(kind) {
            word.is_watched = false;
        }
    }

    /// Since when what the watch of this kind tells now may have happened; `None`: it tells of what
    /// happens.
    pub(super) fn silent_since(&self, kind: &Kind, now: Timestamp) -> Option<Timestamp> {
        match kind {
            Kind::Node => self.nodes.silent_since(now),
            Kind::Pod => self.pods.silent_since(now),
            _ => None,
        }
    }

    /// Until when all of them have told who has which address.
    pub(super) fn told_until(&self) -> Timestamp {
        let words = [&self.nodes, &self.pods].into_iter().filter(|word| word.is_watched);
        words.map(|word| word.heard.unwrap_or(Timestamp::MIN)).min().unwrap_or(Timestamp::MAX)
    }

    /// Whether one of them has been silent for longer than a watch is that follows.
    pub(super) fn is_silent(&self, now: Timestamp) -> bool {
        [&self.nodes, &self.pods].iter().any(|word| word.silent_since(now).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(seconds: i64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    #[test]
    fn a_watch_is_silent_after_it_broke_or_without_a_word_for_longer_than_they_take() {
        let mut words = Words::new(true);
        assert_eq!(words.told_until(), Timestamp::MIN);
        words.heard(&Kind::Node, t(10));
        words.heard(&Kind::Pod, t(20));
        assert_eq!((words.told_until(), words.silent_since(&Kind::Pod, t(80))), (t(10), None));
        assert_eq!(words.silent_since(&Kind::Pod, t(96)), Some(t(20)));
        words.interrupted(&Kind::Pod);
        assert_eq!((words.silent_since(&Kind::Pod, t(21)), words.is_silent(t(21))), (Some(t(20)), true));
        words.heard(&Kind::Pod, t(22));
        assert!(!words.is_silent(t(22)));
        words.unavailable(&Kind::Node);
        assert_eq!(words.told_until(), t(22));
    }

    #[test]
    fn a_file_has_told_everything() {
        let words = Words::new(false);
        assert_eq!((words.told_until(), words.is_silent(Timestamp::MAX)), (Timestamp::MAX, false));
    }
}
