//! What a watcher does with bytes, without the server they came from; see [`crate::fuzzing`].

use serde_json::value::RawValue;

use super::{
    Resource,
    client::Failure,
    decode::{self, Event},
    lines::{Lines, TooLong},
    watcher,
};
use crate::fuzzing::Watched;

impl From<TooLong> for String {
    fn from(_: TooLong) -> Self {
        Failure::TooLarge.to_string()
    }
}

fn take(resource: Resource, raw: &RawValue, watched: &mut Watched) {
    match decode::head(raw).and_then(|head| watcher::trimmed(resource, raw, &head)) {
        Ok(_) => watched.objects += 1,
        Err(why) => watched.refused.push(why),
    }
}

pub(crate) fn watch<'a>(resource: Resource, pieces: impl IntoIterator<Item = &'a [u8]>) -> Watched {
    let (mut lines, mut watched) = (Lines::default(), Watched::default());
    for piece in pieces {
        let read = lines.push(piece, |line| {
            watched.lines += 1;
            match decode::event(line) {
                Ok(Event::Applied(raw) | Event::Deleted(raw)) => take(resource, raw, &mut watched),
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

pub(crate) fn page(resource: Resource, bytes: &[u8]) -> Watched {
    let mut watched = Watched::default();
    match decode::page(bytes) {
        Ok(page) => page.items.into_iter().for_each(|raw| take(resource, raw, &mut watched)),
        Err(failure) => watched.refused.push(failure.to_string()),
    }
    watched
}
