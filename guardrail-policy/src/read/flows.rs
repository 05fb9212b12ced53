//! Flows as CSV: the header `src,dst,protocol,port` in any order, further columns ignored
//! (docs/design.md#flows-as-csv); or as Hubble logs them ([`super::hubble`]).

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use super::{
    ObjectProblem, ObjectProblemKind, ReadError,
    flow::{Flow, Flows, MAX_PROBLEMS, shown},
    hubble,
};
use crate::model::{Location, Protocol};

/// The columns that are read.
const COLUMNS: [&str; 4] = ["src", "dst", "protocol", "port"];

/// Reads flows: CSV, or a log of Hubble's if the file begins with `{`.
///
/// # Errors
/// The first problems: no header, a missing column, a bad protocol or port, an open quote, a line
/// that is no flow of Hubble's, binary input.
pub fn flows<'a>(file: &str, bytes: &'a [u8]) -> Result<Flows<'a>, ReadError> {
    let mut reader = Reader { file: file.into(), problems: Vec::new() };
    let read = match reader.text(bytes) {
        Some(text) if hubble::is_log(text) => return hubble::read(&reader.file, text),
        Some(text) => reader.read(text).unwrap_or_default(),
        None => Vec::new(),
    };
    let flows = Flows { flows: read, passed_over: BTreeMap::new() };
    if reader.problems.is_empty() { Ok(flows) } else { Err(ReadError { problems: reader.problems }) }
}

struct Reader {
    file: Arc<str>,
    problems: Vec<ObjectProblem>,
}

impl Reader {
    fn problem(&mut self, line: u32, kind: ObjectProblemKind, message: String) {
        self.problems.push(ObjectProblem {
            location: Location { file: self.file.clone(), line },
            kind,
            policy: None,
            message,
        });
    }

    fn text<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a str> {
        match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Some(text.strip_prefix('\u{feff}').unwrap_or(text)),
            result => {
                let at = result.map_or_else(|e| e.valid_up_to(), |t| t.find('\0').unwrap_or(0));
                let line = bytes[..at].iter().filter(|b| **b == b'\n').count() + 1;
                self.problem(
                    u32::try_from(line).unwrap_or(u32::MAX),
                    ObjectProblemKind::Syntax,
                    "this is no text; name a CSV file, or JSON lines of Hubble".to_owned(),
                );
                None
            }
        }
    }

    fn read<'a>(&mut self, text: &'a str) -> Option<Vec<Flow<'a>>> {
        let mut records = Records { rest: text, line: 1 };
        let header = records.next();
        let Some(Ok((line, header))) = header else {
            self.problem(
                1,
                ObjectProblemKind::Syntax,
                "there is no header; the first line is `src,dst,protocol,port`".to_owned(),
            );
            return None;
        };
        let mut places = [0; 4];
        for (place, column) in places.iter_mut().zip(COLUMNS) {
            match header.iter().position(|h| h.trim() == column) {
                Some(index) => *place = index,
                None => {
                    self.problem(
                        line,
                        ObjectProblemKind::Syntax,
                        format!("the header lacks the column `{column}`; the first line is `src,dst,protocol,port`"),
                    );
                    return None;
                }
            }
        }
        let mut flows = Vec::new();
        for record in records {
            if self.problems.len() >= MAX_PROBLEMS {
                break;
            }
            match record {
                Ok((line, fields)) => flows.extend(self.flow(line, fields, places)),
                Err(line) => self.problem(
                    line,
                    ObjectProblemKind::Syntax,
                    "a quote is opened and never closed; close it".to_owned(),
                ),
            }
        }
        Some(flows)
    }

    fn flow<'a>(&mut self, line: u32, mut fields: Vec<Cow<'a, str>>, places: [usize; 4]) -> Option<Flow<'a>> {
        let last = places.iter().max().copied().unwrap_or(0);
        if fields.len() <= last {
            let message = format!("{} columns, the header asks for {}; add the missing ones", fields.len(), last + 1);
            self.problem(line, ObjectProblemKind::Syntax, message);
            return None;
        }
        let [src, dst, protocol, port] = places.map(|p| std::mem::take(&mut fields[p]));
        let Some(protocol) = Protocol::of_flow(protocol.trim()) else {
            let message = format!("`{}`: a protocol is TCP, UDP, SCTP, ICMP or ICMPv6", shown(&protocol));
            self.problem(line, ObjectProblemKind::Invalid, message);
            return None;
        };
        let port = match port.trim().parse::<u16>() {
            Ok(port) if protocol.is_icmp() && port <= 255 => port,
            Ok(port) if !protocol.is_icmp() && port > 0 => port,
            _ => {
                let what =
                    if protocol.is_icmp() { "no message type from 0 to 255" } else { "no number from 1 to 65535" };
                self.problem(line, ObjectProblemKind::Invalid, format!("port `{}` is {what}", shown(&port)));
                return None;
            }
        };
        Some(Flow { src: trimmed(src), dst: trimmed(dst), protocol, port, line, logged: None })
    }
}

fn trimmed(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(s) => Cow::Borrowed(s.trim()),
        Cow::Owned(s) => Cow::Owned(s.trim().to_owned()),
    }
}

/// RFC 4180 records with the line on which each begins; blank lines are left out. `Err(line)`: an
/// open quote.
pub(super) struct Records<'a> {
    pub(super) rest: &'a str,
    pub(super) line: u32,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(u32, Vec<Cow<'a, str>>), u32>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            let line = self.line;
            let record = self.record();
            match record {
                Some(fields) if fields.len() == 1 && fields[0].trim().is_empty() => {}
                Some(fields) => return Some(Ok((line, fields))),
                None => {
                    self.rest = "";
                    return Some(Err(line));
                }
            }
        }
    }
}

impl<'a> Records<'a> {
    fn record(&mut self) -> Option<Vec<Cow<'a, str>>> {
        let mut fields = Vec::with_capacity(8);
        loop {
            let (field, end) = if self.rest.starts_with('"') { self.quoted()? } else { self.plain() };
            fields.push(field);
            match end {
                Some(',') => {}
                _ => return Some(fields),
            }
        }
    }

    /// A field and what ended it.
    fn plain(&mut self) -> (Cow<'a, str>, Option<char>) {
        let at = self.rest.find([',', '\n']).unwrap_or(self.rest.len());
        let field = self.rest[..at].trim_end_matches('\r');
        let end = self.advance(at);
        (Cow::Borrowed(field), end)
    }

    fn quoted(&mut self) -> Option<(Cow<'a, str>, Option<char>)> {
        let mut value = String::new();
        let mut at = 1;
        loop {
            let quote = at + self.rest[at..].find('"')?;
            value.push_str(&self.rest[at..quote]);
            if self.rest[quote + 1..].starts_with('"') {
                value.push('"');
                at = quote + 2;
                continue;
            }
            let skipped = &self.rest[..=quote];
            self.line += u32::try_from(skipped.matches('\n').count()).unwrap_or(u32::MAX);
            self.rest = &self.rest[quote + 1..];
            // What stands between the closing quote and the separator belongs to the field, as most
            // readers have it.
            let (tail, end) = self.plain();
            value.push_str(&tail);
            return Some((Cow::Owned(value), end));
        }
    }

    fn advance(&mut self, at: usize) -> Option<char> {
        let end = self.rest[at..].chars().next();
        self.rest = &self.rest[(at + end.map_or(0, char::len_utf8)).min(self.rest.len())..];
        if end == Some('\n') {
            self.line += 1;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String, Protocol, u16, u32)> {
        let flows = flows("f.csv", text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        flows.flows.into_iter().map(|f| (f.src.into_owned(), f.dst.into_owned(), f.protocol, f.port, f.line)).collect()
    }

    fn error(text: &str) -> String {
        flows("f.csv", text.as_bytes()).expect_err("accepted").to_string()
    }

    #[test]
    fn columns_are_found_by_name_and_others_are_ignored() {
        let text =
            "note,port,protocol,dst,src\r\n\"a, \"\"b\"\"\nc\",80,TCP,x/b,x/a\r\n\r\nz,53,UDP,1.2.3.4,x/a,more\r\n";
        assert_eq!(
            read(text),
            [
                ("x/a".into(), "x/b".into(), Protocol::Tcp, 80, 2),
                ("x/a".into(), "1.2.3.4".into(), Protocol::Udp, 53, 5)
            ]
        );
    }

    #[test]
    fn a_last_column_may_be_empty_and_the_last_line_may_lack_its_newline() {
        assert_eq!(read("src,dst,protocol,port,basis\na/b,c/d,SCTP,1,").len(), 1);
    }

    #[test]
    fn bad_rows_are_told_with_their_line() {
        assert_eq!(error(""), "f.csv:1: there is no header; the first line is `src,dst,protocol,port`");
        assert_eq!(
            error("src,dst,port\n"),
            "f.csv:1: the header lacks the column `protocol`; the first line is `src,dst,protocol,port`"
        );
        let text = "src,dst,protocol,port\na/b,c/d,TCP,0\na/b,c/d,TCP,70000\na/b,c/d,GRE,1\na/b,c/d,ICMP,256\na/b,c/d\n\"a/b,c/d,TCP,1\n";
        let lines: Vec<String> = error(text).lines().map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                "f.csv:2: port `0` is no number from 1 to 65535",
                "f.csv:3: port `70000` is no number from 1 to 65535",
                "f.csv:4: `GRE`: a protocol is TCP, UDP, SCTP, ICMP or ICMPv6",
                "f.csv:5: port `256` is no message type from 0 to 255",
                "f.csv:6: 2 columns, the header asks for 4; add the missing ones",
                "f.csv:7: a quote is opened and never closed; close it",
            ]
        );
        assert_eq!(
            flows("f.csv", b"src\n\xff").expect_err("accepted").to_string(),
            "f.csv:2: this is no text; name a CSV file, or JSON lines of Hubble"
        );
    }
}
