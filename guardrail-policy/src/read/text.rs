//! Bytes to text, as kubectl takes them in: UTF-8, or UTF-16 with a byte order mark, which PowerShell's `>` writes.

use std::borrow::Cow;

/// The text, without its byte order mark.
///
/// # Errors
/// The offset of the first byte that is no text.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, usize> {
    let wide = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = rest.chunks(2).map(|pair| unit([pair[0], pair.get(1).copied().unwrap_or_default()]));
        char::decode_utf16(units).collect::<Result<String, _>>().map(Cow::Owned).map_err(|_| 2)
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ => {
            let text = std::str::from_utf8(bytes).map_err(|error| error.valid_up_to())?;
            Ok(Cow::Borrowed(text.strip_prefix('\u{feff}').unwrap_or(text)))
        }
    }
}

/// What a reader of YAML complains of, in the words of people who write manifests; `line` is where (from 1).
pub(super) fn complaint(message: &str, text: &str, line: u32) -> String {
    let budget = message.strip_prefix("budget breached: ");
    if let Some(key) = message.strip_prefix("duplicate mapping key: ") {
        let key = key.split(", set ").next().unwrap_or(key);
        let lines = earlier(text, key, line).map_or_else(String::new, |first| format!(" (lines {first} and {line})"));
        return format!("the key {key} stands twice in this mapping{lines}; keep one of them");
    }
    match budget.map(|what| what.split([' ', '{']).next().unwrap_or(what)) {
        Some("Depth") => format!("nested deeper than {} levels; no Kubernetes object is", super::yaml::MAX_DEPTH),
        Some(_) => "more values than a file of this kind has; split the file".to_owned(),
        None => format!("not valid YAML: {message}"),
    }
}

/// The line of the same key, with the same indentation, before this one.
fn earlier(text: &str, key: &str, line: u32) -> Option<u32> {
    let lines: Vec<&str> = text.lines().take(line as usize).collect();
    let (last, before) = lines.split_last()?;
    let indent = |line: &str| line.len() - line.trim_start().len();
    let is = |line: &&str| {
        let own = line.trim_start().trim_start_matches(['"', '\'']);
        own.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(['"', '\'']).starts_with(':'))
    };
    let at = before.iter().rposition(|line| indent(line) == indent(last) && is(line))?;
    u32::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_in_every_encoding_that_kubectl_reads() {
        let wide = |mark: [u8; 2], unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
            mark.into_iter().chain("ä: 😀\n".encode_utf16().flat_map(unit)).collect()
        };
        for bytes in [
            "ä: 😀\n".as_bytes().to_vec(),
            "\u{feff}ä: 😀\n".as_bytes().to_vec(),
            wide([0xff, 0xfe], u16::to_le_bytes),
            wide([0xfe, 0xff], u16::to_be_bytes),
        ] {
            assert_eq!(decode(&bytes).as_deref(), Ok("ä: 😀\n"));
        }
        assert_eq!(decode(b"ab\xffc"), Err(2));
        assert_eq!(decode(&[0xff, 0xfe, 0x00, 0xd8]), Err(2), "half a character");
    }
}
