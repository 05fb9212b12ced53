//! A plain table, at most 100 columns wide. Cells that do not fit are wrapped where names have
//! joints (after a space, `/`, `,`, `:`), so that a reader can still tell the parts;
//! general-purpose table crates cut in the middle of words.

use std::io::Write;

use anstyle::{AnsiColor, Style};

/// Widest table.
const MAX_WIDTH: usize = 100;
/// Blanks between columns.
const GAP: usize = 2;
/// Words up to this length are never cut.
const WHOLE: usize = 26;

/// How a cell stands out on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Paint {
    #[default]
    Plain,
    Bad,
    Doubtful,
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    right: bool,
    paint: Paint,
}

impl Cell {
    /// Aligned to the left.
    pub(crate) fn new(text: impl ToString) -> Self {
        Self { text: super::plain_line(&text.to_string()), ..Self::default() }
    }

    /// Aligned to the right, as numbers are.
    pub(crate) fn number(text: impl ToString) -> Self {
        Self { right: true, ..Self::new(text) }
    }

    /// With a colour.
    pub(crate) fn paint(mut self, paint: Paint) -> Self {
        self.paint = paint;
        self
    }
}

/// Headings and rows.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// No rows yet.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with one cell per heading.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.headings.len());
        self.rows.push(cells.into());
    }

    /// Prints it without trailing blanks; in colour if `colour`.
    pub(crate) fn print(&self, out: &mut impl Write, colour: bool) -> std::io::Result<()> {
        let widths = self.widths();
        let rights: Vec<bool> =
            (0..self.headings.len()).map(|c| self.rows.first().is_some_and(|r| r[c].right)).collect();
        let heading: Vec<Cell> = self
            .headings
            .iter()
            .zip(rights)
            .map(|(h, right)| Cell { text: (*h).to_owned(), right, ..Cell::default() })
            .collect();
        print_row(out, &heading, &widths, |_| if colour { Style::new().bold() } else { Style::new() })?;
        for row in &self.rows {
            print_row(out, row, &widths, |paint| match paint {
                Paint::Bad if colour => AnsiColor::Red.on_default(),
                Paint::Doubtful if colour => AnsiColor::Yellow.on_default(),
                _ => Style::new(),
            })?;
        }
        Ok(())
    }

    /// Natural widths, and if they are too much, the widest columns narrowed; never below a
    /// column's longest word.
    fn widths(&self) -> Vec<usize> {
        let columns = 0..self.headings.len();
        let of = |measure: fn(&str) -> usize| -> Vec<usize> {
            columns
                .clone()
                .map(|c| {
                    self.rows.iter().map(|r| measure(&r[c].text)).chain([self.headings[c].len()]).max().unwrap_or(0)
                })
                .collect()
        };
        let mut widths = of(length);
        let least = of(|text| words(text).map(|w| length(w.trim_end())).max().unwrap_or(0).min(WHOLE));
        let room = MAX_WIDTH.saturating_sub(GAP * self.headings.len().saturating_sub(1));
        while widths.iter().sum::<usize>() > room {
            let widest = columns.clone().filter(|c| widths[*c] > least[*c]).max_by_key(|c| widths[*c]);
            let Some(widest) = widest.or_else(|| columns.clone().filter(|c| widths[*c] > 8).max_by_key(|c| widths[*c]))
            else {
                break;
            };
            widths[widest] -= 1;
        }
        widths
    }
}

fn print_row(
    out: &mut impl Write,
    cells: &[Cell],
    widths: &[usize],
    style: impl Fn(Paint) -> Style,
) -> std::io::Result<()> {
    let wrapped: Vec<Vec<String>> = cells.iter().zip(widths).map(|(cell, width)| wrap(&cell.text, *width)).collect();
    let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
    for line in 0..height {
        let mut blanks = 0;
        for ((cell, lines), width) in cells.iter().zip(&wrapped).zip(widths) {
            let text = lines.get(line).map_or("", String::as_str);
            let free = width.saturating_sub(length(text));
            let (before, after) = if cell.right { (free, 0) } else { (0, free) };
            blanks += before;
            if !text.is_empty() {
                let style = style(cell.paint);
                write!(out, "{:blanks$}{style}{text}{style:#}", "")?;
                blanks = 0;
            }
            blanks += after + GAP;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// The parts between which a cell may be wrapped: never within a time of day.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let may_end = move |at: usize| match text.as_bytes()[at] {
        b' ' | b'/' | b',' => true,
        b':' => !(is_digit(text.as_bytes()[..at].last()) && is_digit(text.as_bytes().get(at + 1))),
        _ => false,
    };
    let ends = (0..text.len()).filter(move |at| may_end(*at) || at + 1 == text.len()).map(|at| at + 1);
    ends.scan(0, move |from, to| Some(&text[std::mem::replace(from, to)..to]))
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in words(text) {
        let line = lines.last_mut().expect("there is always a line");
        if length(line) + length(word.trim_end()) <= width {
            line.push_str(word);
            continue;
        }
        if !line.is_empty() {
            lines.push(String::new());
        }
        let mut rest: Vec<char> = word.chars().collect();
        while length(rest.iter().collect::<String>().trim_end()) > width {
            // A word longer than the column: after a hyphen if there is one, else anywhere.
            let cut = rest[..width].iter().rposition(|c| *c == '-' || *c == '.').map_or(width, |at| at + 1);
            let line = lines.last_mut().expect("there is always a line");
            line.extend(rest.drain(..cut));
            lines.push(String::new());
        }
        lines.last_mut().expect("there is always a line").extend(rest);
    }
    for line in &mut lines {
        line.truncate(line.trim_end().len());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_longer_than_the_limit_and_nothing_is_lost() {
        let mut table = Table::new(&["A", "B", "C"]);
        let long = "namespace-with-a-name/deployment-with-a-very-long-name-that-goes-on-and-on-for-sixty-three";
        table.row([Cell::new(long), Cell::new(long), Cell::number(123_456)]);
        table.row([Cell::new("ä/ö"), Cell::new(""), Cell::number(7)]);
        let mut out = Vec::new();
        table.print(&mut out, false).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|l| l.chars().count() <= MAX_WIDTH && l == l.trim_end()), "{text}");
        let letters = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).count();
        assert_eq!(letters(&text), letters("ABC") + 2 * letters(long) + 6 + 2 + 1);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(Cell::new("a\u{1b}[31mb\n\u{202e}").text, "a\u{fffd}[31mb\u{fffd}\u{fffd}");
    }
}
