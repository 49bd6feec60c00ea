//! GPT-2's printable stand-ins for bytes: each of the 256 bytes is one character below U+0144, so that vocabularies and
//! merges of byte-level BPE are plain text. Bytes 33..=126, 161..=172 and 174..=255 stand for themselves; the other 68, in
//! ascending order, are U+0100, U+0101 and so on.

/// Characters that stand for bytes are below this code point.
const END: usize = 0x144;

/// The character of each byte.
pub(crate) fn symbols() -> [char; 256] {
    let mut others = 0x100u32..;
    std::array::from_fn(|byte| {
        let code = match byte {
            33..=126 | 161..=172 | 174..=255 => byte as u32,
            _ => others.next().expect("endless"),
        };
        char::from_u32(code).expect("below the surrogates")
    })
}

/// From characters back to bytes.
pub(crate) struct ByteOf([Option<u8>; END]);

impl ByteOf {
    pub(crate) fn new() -> ByteOf {
        let mut bytes = [None; END];
        for (byte, symbol) in symbols().into_iter().enumerate() {
            bytes[symbol as usize] = Some(byte as u8);
        }
        ByteOf(bytes)
    }

    /// Appends the bytes that `text` stands for; false, and nothing appended, when a character stands for none.
    pub(crate) fn decode(&self, text: &str, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        for symbol in text.chars() {
            match self.0.get(symbol as usize).copied().flatten() {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteOf, symbols};

    #[test]
    fn every_byte_comes_back() {
        let symbols = symbols();
        assert_eq!(
            (symbols[b' ' as usize], symbols[b'\n' as usize]),
            ('Ġ', 'Ċ')
        );
        let text: String = symbols.iter().collect();
        let mut bytes = vec![7];
        assert!(ByteOf::new().decode(&text, &mut bytes));
        assert_eq!(bytes[1..], (0..=255).collect::<Vec<u8>>());
        assert!(!ByteOf::new().decode("ab 中", &mut bytes));
        assert_eq!(bytes.len(), 257);
    }
}
