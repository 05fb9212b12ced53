//! Bytes to text, as kubectl takes them in: UTF-8, or UTF-16 with a byte order mark, which
//! PowerShell's `>` writes.

use std::borrow::Cow;

use guardrail_graph::inventory::read::without_marks;

/// The text, without byte order marks.
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
            Ok(without_marks(text))
        }
    }
}

/// What to do about bytes that are no text from this offset on.
pub(super) fn remedy(bytes: &[u8], offset: usize) -> &'static str {
    let readable = |bytes: &[u8]| !bytes.iter().any(|b| matches!(b, 0..=8 | 14..=26 | 28..=31));
    match bytes {
        [0x1f, 0x8b, ..] => "this is compressed (gzip); unpack it first",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "this is no text (broken UTF-16); save it as UTF-8",
        _ if bytes.iter().filter(|b| **b == 0).count() >= bytes.len() / 4 => {
            "this is UTF-16 without a byte order mark; save it as UTF-8"
        }
        _ if offset > 0 && readable(bytes) => {
            "this character is not UTF-8, as an older editor writes it; save the file as UTF-8"
        }
        _ => "this is no text (neither UTF-8 nor UTF-16); name a YAML or JSON file",
    }
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
            "\u{feff}ä: 😀\n\u{feff}".as_bytes().to_vec(),
            wide([0xff, 0xfe], u16::to_le_bytes),
            wide([0xfe, 0xff], u16::to_be_bytes),
        ] {
            assert_eq!(decode(&bytes).as_deref(), Ok("ä: 😀\n"));
        }
        for (bytes, word) in [
            (&b"\x1f\x8b\x08"[..], "gzip"),
            (b"a: caf\xe9\n", "UTF-8"),
            (b"k\0i\0n\0d\0", "UTF-16"),
            (b"\x7fELF\xff\x01\x01", "no text"),
        ] {
            assert!(remedy(bytes, 4).contains(word), "{}", remedy(bytes, 4));
        }
        assert_eq!(decode(b"ab\xffc"), Err(2));
        assert_eq!(decode(&[0xff, 0xfe, 0x00, 0xd8]), Err(2), "half a character");
    }
}
