//! How answers look: tables for people, at most 100 columns wide, colour only on a terminal; JSON
//! for scripts.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write},
    time::{Duration, Instant},
};

use guardrail_graph::Timestamp;
use serde::Serialize;

mod table;

pub(crate) use table::{Cell, Paint, Table};

/// Whether stdout takes colour: a terminal, and neither NO_COLOR nor TERM=dumb.
pub(crate) fn colour() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// Text from outside as it may reach a terminal: names in snapshots, files and answers are whatever
/// their author wrote, so control characters and those that turn the direction of writing become
/// `\u{fffd}`. Line ends stay.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let bad = |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    if text.contains(bad) { Cow::Owned(text.replace(bad, "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// As [`plain`], on one line.
pub(crate) fn plain_line(text: &str) -> String {
    plain(text).replace('\n', "\u{fffd}")
}

/// As [`plain_line`], in a cell of a table of Markdown.
pub(crate) fn markdown(text: &str) -> String {
    plain_line(text).replace('|', "\\|")
}

/// A time to the second, as people write it: `2026-03-01 12:00:00`.
pub(crate) fn second(at: Timestamp) -> String {
    at.to_string().split(['.', 'Z']).next().unwrap_or_default().replace('T', " ")
}

/// Lines of at most `width` characters, broken at blanks.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_inclusive(' ') {
        let line = lines.last().map_or(0, |l| l.chars().count());
        if line > 0 && line + word.trim_end().chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(word);
        }
    }
    lines.iter_mut().for_each(|l| l.truncate(l.trim_end().len()));
    lines
}

/// Prints JSON with a newline at its end.
pub(crate) fn print_json(out: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(out.write_all(b"\n")?)
}

/// Tells on a terminal's stderr how far the work is, once it has taken a second.
pub(crate) struct Progress {
    what: &'static str,
    total: usize,
    started: Instant,
    told: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Work on `total` of `what` begins.
    pub(crate) fn new(what: &'static str, total: usize) -> Self {
        Self { what, total, started: Instant::now(), told: None, terminal: io::stderr().is_terminal() }
    }

    /// `done` are done.
    pub(crate) fn at(&mut self, done: usize) {
        // Looking at the clock costs more than judging a flow.
        if !self.terminal || !done.is_multiple_of(4096) {
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.told.unwrap_or(self.started)) >= Duration::from_secs(1) {
            self.told = Some(now);
            anstream::eprint!("\r{done} of {} {}", self.total, self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.told.is_some() {
            anstream::eprint!("\r\x1b[K");
        }
    }
}
