//! Splits a byte stream into lines, with a limit on what one line may hold.

/// The largest event that is read, bytes. etcd stores objects of up to 1.5 MiB; managed fields and
/// JSON add to that.
pub(crate) const MAX_LINE: usize = 8 << 20;

/// A line was longer than [`MAX_LINE`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Bytes that wait for the end of their line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Calls `line` for each line that ends in `data`, without its end.
    pub(crate) fn push<E: From<TooLong>>(
        &mut self,
        mut data: &[u8],
        mut line: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            let (head, tail) = data.split_at(end);
            data = &tail[1..];
            if self.partial.is_empty() {
                line(head)?;
            } else {
                self.partial.extend_from_slice(head);
                line(&self.partial)?;
                self.partial.clear();
                // The buffer of one huge object must not stay allocated.
                self.partial.shrink_to(64 << 10);
            }
        }
        if self.partial.len() + data.len() > MAX_LINE {
            return Err(TooLong.into());
        }
        self.partial.extend_from_slice(data);
        Ok(())
    }

    /// Whether the stream is in the middle of a line.
    pub(crate) fn is_partial(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Bytes that wait for the end of their line.
    pub(crate) fn waiting(&self) -> usize {
        self.partial.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_wherever_the_stream_is_cut() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\n{\"c\"";
        for cut in 0..text.len() {
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                lines
                    .push::<TooLong>(part, |l| {
                        got.push(l.to_vec());
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(got, [&b"{\"a\":1}"[..], b"", b"{\"b\":2}"], "cut at {cut}");
            assert!(lines.is_partial());
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let mut lines = Lines::default();
        let chunk = vec![b'x'; 1 << 20];
        let refused = (0..64).find(|_| lines.push::<TooLong>(&chunk, |_| Ok(())).is_err());
        assert_eq!(refused, Some(8));
    }
}
