//! Doors for the checks of hostile input (`fuzz/`): what a watcher does with bytes, without the
//! server they came from. No part of agent or command uses it, and it is no API.

use serde_json::value::RawValue;

use crate::{
    Failure, Resource,
    watch::{
        ReadPolicy,
        decode::{self, Event},
        lines::{Lines, TooLong},
        watcher,
    },
};

/// What a page of a list, or the pieces of a watch stream, hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Lines.
    pub lines: usize,
    /// Objects that were read.
    pub objects: usize,
    /// Sentences about what was not.
    pub refused: Vec<String>,
    /// Bytes that wait for the end of their line.
    pub waiting: usize,
}

impl From<TooLong> for String {
    fn from(_: TooLong) -> Self {
        Failure::TooLarge.to_string()
    }
}

fn take<P>(resource: Resource, raw: &RawValue, read_policy: ReadPolicy<P>, watched: &mut Watched) {
    match decode::head(raw).and_then(|head| watcher::trimmed(resource, raw, &head, read_policy)) {
        Ok(_) => watched.objects += 1,
        Err(why) => watched.refused.push(why),
    }
}

/// Reads a watch stream that arrives in these pieces.
pub fn watch<'a, P>(
    resource: Resource,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    read_policy: ReadPolicy<P>,
) -> Watched {
    let (mut lines, mut watched) = (Lines::default(), Watched::default());
    for piece in pieces {
        let read = lines.push(piece, |line| {
            watched.lines += 1;
            match decode::event(line) {
                Ok(Event::Applied(raw) | Event::Deleted(raw)) => take(resource, raw, read_policy, &mut watched),
                Ok(Event::Bookmark { .. }) => {}
                Ok(Event::Failed(failure)) | Err(failure) => watched.refused.push(failure.to_string()),
            }
            Ok::<(), String>(())
        });
        if let Err(why) = read {
            watched.refused.push(why);
            break;
        }
    }
    watched.waiting = lines.waiting();
    watched
}

/// Reads a page of a list.
#[must_use]
pub fn page<P>(resource: Resource, bytes: &[u8], read_policy: ReadPolicy<P>) -> Watched {
    let mut watched = Watched::default();
    match decode::page(bytes) {
        Ok(page) => page.items.into_iter().for_each(|raw| take(resource, raw, read_policy, &mut watched)),
        Err(failure) => watched.refused.push(failure.to_string()),
    }
    watched
}
