//! DNS names and their addresses as CSV: the header `name,ip` in any order, further columns
//! ignored.

use std::{net::IpAddr, sync::Arc};

use super::{ObjectProblem, ObjectProblemKind, ReadError, flows::Records};
use crate::model::Location;

/// Most problems that are told.
const MAX_PROBLEMS: usize = 20;

/// Reads names. A file with a header alone says that nothing was learnt.
///
/// # Errors
/// No header, a missing column, a bad address, an open quote, binary input.
pub fn names(file: &str, bytes: &[u8]) -> Result<Vec<(String, IpAddr)>, ReadError> {
    let file: Arc<str> = file.into();
    let mut problems = Vec::new();
    let mut wrong = |line: u32, message: String| {
        let location = Location { file: file.clone(), line };
        problems.push(ObjectProblem { location, kind: ObjectProblemKind::Invalid, policy: None, message });
    };
    let mut found = Vec::new();
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let mut records = Records { rest: text.strip_prefix('\u{feff}').unwrap_or(text), line: 1 };
    let header = records.next().and_then(Result::ok).map(|(_, header)| header).unwrap_or_default();
    let place = |column: &str| header.iter().position(|h| h.trim() == column);
    match place("name").zip(place("ip")) {
        None => wrong(1, "the first line is `name,ip`".to_owned()),
        Some((name, ip)) => {
            for record in records {
                match record {
                    Err(line) => wrong(line, "a quote is opened and never closed; close it".to_owned()),
                    Ok((line, fields)) => match (fields.get(name), fields.get(ip).map(|f| f.trim().parse())) {
                        (Some(name), Some(Ok(address))) if !name.trim().is_empty() => {
                            found.push((name.trim().to_owned(), address));
                        }
                        _ => wrong(line, "a line is a DNS name and an IP address".to_owned()),
                    },
                }
            }
        }
    }
    problems.truncate(MAX_PROBLEMS);
    if problems.is_empty() { Ok(found) } else { Err(ReadError { problems }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_bad_lines_told() {
        let read = names("n.csv", b"ip,name,more\n192.0.2.1,a.example,x\n2001:db8::1,a.example\n").unwrap();
        assert_eq!(read.len(), 2);
        assert!(names("n.csv", b"name,ip\n").unwrap().is_empty());
        assert_eq!(names("n.csv", b"").unwrap_err().to_string(), "n.csv:1: the first line is `name,ip`");
        let bad = names("n.csv", b"name,ip\na.example,nothing\n").unwrap_err().to_string();
        assert_eq!(bad, "n.csv:2: a line is a DNS name and an IP address");
    }
}
