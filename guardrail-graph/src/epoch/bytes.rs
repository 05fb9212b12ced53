//! Numbers and texts as bytes. Reading is total: what is not there is `None`.

/// A number, seven bits a byte, the lowest first.
pub(crate) fn put_int(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or_default());
}

/// A number with a sign: small ones are short.
pub(crate) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_int(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

/// Which of these numbers are not zero, and those.
pub fn put_numbers<const N: usize>(out: &mut Vec<u8>, numbers: [u64; N]) {
    put_int(out, (0..).zip(numbers).fold(0, |mask, (i, number)| mask | u64::from(number != 0) << i));
    numbers.into_iter().filter(|number| *number != 0).for_each(|number| put_int(out, number));
}

/// Bytes with their length before them.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_int(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Texts with their number before them.
pub(crate) fn put_texts<'a>(out: &mut Vec<u8>, texts: impl ExactSizeIterator<Item = &'a str>) {
    put_int(out, texts.len() as u64);
    texts.for_each(|text| put_bytes(out, text.as_bytes()));
}

/// What is still to be read.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// One byte.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// As many bytes.
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    /// As [`put_int`] wrote it.
    pub(crate) fn int(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has one bit.
            if (bits << shift) >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// As [`put_signed`] wrote it.
    pub(crate) fn signed(&mut self) -> Option<i64> {
        let number = self.int()?;
        Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    /// As [`put_numbers`] wrote them.
    pub fn numbers<const N: usize>(&mut self) -> Option<[u64; N]> {
        let mask = self.int()?;
        if mask >> N != 0 {
            return None;
        }
        let mut numbers = [0; N];
        for (_, number) in numbers.iter_mut().enumerate().filter(|(i, _)| mask >> i & 1 == 1) {
            *number = self.int()?;
        }
        Some(numbers)
    }

    /// As [`put_bytes`] wrote it.
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.int()?).ok()?;
        self.take(length)
    }

    /// A text that [`put_bytes`] wrote.
    pub(crate) fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// As [`put_texts`] wrote it.
    pub(crate) fn texts<C: FromIterator<String>>(&mut self) -> Option<C> {
        (0..self.int()?).map(|_| self.text().map(str::to_owned)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_are_read_as_they_were_written_and_nothing_beyond() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_int(&mut out, number);
            put_signed(&mut out, number.cast_signed());
            let mut bytes = Bytes(&out);
            assert_eq!((bytes.int(), bytes.signed(), bytes.0), (Some(number), Some(number.cast_signed()), &[][..]));
        }
        let numbers = [0, 7, u64::MAX, 0];
        let mut out = Vec::new();
        put_numbers(&mut out, numbers);
        assert_eq!(Bytes(&out).numbers(), Some(numbers));
        assert_eq!(Bytes(&out).numbers::<2>(), None, "more than there are");
        assert_eq!(Bytes(&out[..out.len() - 1]).numbers::<4>(), None);
        let mut out = Vec::new();
        put_texts(&mut out, ["a", "", "bc"].into_iter());
        assert_eq!(Bytes(&out).texts::<Vec<_>>().unwrap(), ["a", "", "bc"]);
        for length in 0..out.len() {
            assert_eq!(Bytes(&out[..length]).texts::<Vec<_>>(), None, "{length}");
        }
        assert_eq!(Bytes(&[0xff; 11]).int(), None, "longer than any number");
        assert_eq!(Bytes(&[0xff; 9].into_iter().chain([2]).collect::<Vec<_>>()).int(), None, "greater than any number");
    }
}
