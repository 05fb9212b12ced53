//! Documents that are being sent: few, whoever asks for how many.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use guardrail_graph::snapshot::Document;

/// So many may be on their way out at once; they differ by what was observed between them.
const MAX: usize = 4;
/// Requests within this time of each other get the same.
const SHARED_FOR: Duration = Duration::from_millis(200);

/// Those that somebody still reads, the latest at the end.
#[derive(Debug, Default)]
pub(super) struct Documents(Vec<(Weak<Document>, Instant)>);

impl Documents {
    /// Whether somebody still reads one.
    pub(super) fn are_read(&self) -> bool {
        self.0.iter().any(|(document, _)| document.strong_count() > 0)
    }

    /// The latest, if somebody reads it and it is fresh; else a new one, if there are not too many.
    pub(super) fn get(&mut self, make: impl FnOnce() -> Document) -> Option<Arc<Document>> {
        self.0.retain(|(document, _)| document.strong_count() > 0);
        if let Some((latest, made)) = self.0.last()
            && made.elapsed() < SHARED_FOR
            && let Some(document) = latest.upgrade()
        {
            return Some(document);
        }
        if self.0.len() >= MAX {
            return None;
        }
        let document = Arc::new(make());
        self.0.push((Arc::downgrade(&document), Instant::now()));
        Some(document)
    }
}

#[cfg(test)]
mod tests {
    use guardrail_graph::{Observer, ObserverConfig, Timestamp};

    use super::*;

    fn document() -> Document {
        let at = Timestamp::from_unix_seconds(1_700_000_000);
        Observer::new(ObserverConfig::new("node", "instance", at)).document(at)
    }

    #[test]
    fn requests_at_the_same_time_share_a_document_and_slow_readers_hold_at_most_four() {
        let mut documents = Documents::default();
        let first = documents.get(document).unwrap();
        let second = documents.get(|| panic!("the first is fresh")).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let mut held = vec![first, second];
        for _ in 1..MAX {
            documents.0.last_mut().unwrap().1 -= SHARED_FOR;
            held.push(documents.get(document).unwrap());
        }
        documents.0.last_mut().unwrap().1 -= SHARED_FOR;
        assert!(documents.get(|| panic!("there are four")).is_none());
        held.pop();
        assert!(documents.get(document).is_some(), "one was read to its end");
    }

    #[test]
    fn a_document_is_read_until_the_last_of_its_readers_is_done() {
        let mut documents = Documents::default();
        assert!(!documents.are_read());
        let readers = [documents.get(document), documents.get(document)];
        let [first, second] = readers;
        drop(first);
        assert!(documents.are_read());
        drop(second);
        assert!(!documents.are_read());
    }
}
