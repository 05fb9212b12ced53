//! How answers look: tables for people, at most 100 columns wide, colour only on a terminal; JSON for scripts.

use std::{
    io::{IsTerminal as _, Write},
    time::{Duration, Instant},
};

use comfy_table::{Attribute, Cell, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;

/// Widest table.
const MAX_WIDTH: u16 = 100;

/// Whether stdout takes colour: a terminal, and neither NO_COLOR nor TERM=dumb.
pub(crate) fn colour() -> bool {
    anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
}

/// An empty table with these headings.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let width = if std::io::stdout().is_terminal() { table.width().unwrap_or(MAX_WIDTH).min(MAX_WIDTH) } else { MAX_WIDTH };
    table.set_width(width);
    if colour() {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(headings.iter().map(|h| Cell::new(h).add_attribute(Attribute::Bold)));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Never narrower than this many characters, so that short words stay whole.
pub(crate) fn at_least(table: &mut Table, column: usize, width: u16) {
    if let Some(column) = table.column_mut(column) {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width)));
    }
}

/// Prints a table without trailing blanks.
pub(crate) fn print_table(out: &mut impl Write, table: &Table) -> std::io::Result<()> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Prints JSON with a newline at its end.
pub(crate) fn print_json(out: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
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
        Self { what, total, started: Instant::now(), told: None, terminal: std::io::stderr().is_terminal() }
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
