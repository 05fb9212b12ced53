//! Bytes to text, as kubectl takes them in: UTF-8, or UTF-16 with a byte order mark, which
//! PowerShell's `>` writes.

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
