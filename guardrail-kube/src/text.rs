//! Text for people, from errors and strangers, and text for queries.

/// Longest text of a stranger that is shown, in characters.
const MAX_SHOWN: usize = 300;

/// An error with its causes, on one line, without anything that a terminal would obey.
#[must_use]
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    plain(&text)
}

/// A stranger's text for one line of a terminal or a log.
#[must_use]
pub fn plain(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// A value of a query, percent-escaped.
pub(crate) fn escaped(value: &str) -> impl Iterator<Item = char> + '_ {
    value.bytes().flat_map(|b| {
        let plain = b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        let escaped = [b'%', b"0123456789ABCDEF"[usize::from(b >> 4)], b"0123456789ABCDEF"[usize::from(b & 15)]];
        let bytes = if plain { [b, 0, 0] } else { escaped };
        bytes.into_iter().take(if plain { 1 } else { 3 }).map(char::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_survive_the_query() {
        assert_eq!(escaped("eyJ2+/=&a").collect::<String>(), "eyJ2%2B%2F%3D%26a");
    }

    #[test]
    fn what_strangers_say_fits_one_line_and_moves_no_cursor() {
        assert_eq!(plain("a\r\n\u{1b}[2Jb\tc"), "a [2Jb c");
        assert_eq!(plain(&"x".repeat(1000)).chars().count(), 301);
    }

    #[test]
    fn an_error_is_told_with_its_causes_each_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("no answer")]
        struct Outer(#[source] std::io::Error);
        let cause = |text: &str| Outer(std::io::Error::other(text.to_owned()));
        assert_eq!(sentence(&cause("connection\nrefused")), "no answer: connection refused");
        assert_eq!(sentence(&cause("no answer")), "no answer");
    }
}
