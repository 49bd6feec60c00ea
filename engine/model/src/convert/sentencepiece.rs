//! Reads a SentencePiece `tokenizer.model`: the few fields of its protobuf that a GGUF needs.
//!
//! `ModelProto` (sentencepiece_model.proto): 1 pieces {1 text, 2 score, 3 type}, 2 trainer {3 kind of model, 40 to 43 ids of
//! unknown, begin, end, padding}, 3 normalizer {3 adds a blank in front}. Types are numbered as in GGUF.

/// What a `tokenizer.model` says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SentencePiece {
    /// Text, score and type of each token.
    pub(crate) pieces: Vec<Piece>,
    /// 1 unigram, 2 BPE, 3 word, 4 character.
    pub(crate) kind: u64,
    /// Ids of unknown, begin, end and padding; negative: none.
    pub(crate) specials: [i64; 4],
    /// A blank is put in front of each text.
    pub(crate) adds_blank: bool,
}

/// One token.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: i32,
}

/// One field of a message.
enum Field<'a> {
    Number(u64),
    Word([u8; 4]),
    Bytes(&'a [u8]),
}

/// The model in these bytes; `None` when they are no such protobuf.
pub(crate) fn parse(bytes: &[u8]) -> Option<SentencePiece> {
    let mut model = SentencePiece {
        kind: 1,
        specials: [0, 1, 2, -1],
        adds_blank: true,
        ..SentencePiece::default()
    };
    each_field(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
            (2, Field::Bytes(bytes)) => each_field(bytes, |number, field| {
                match (number, field) {
                    (3, Field::Number(kind)) => model.kind = kind,
                    (40..=43, Field::Number(id)) => {
                        model.specials[number as usize - 40] = id as i64
                    }
                    _ => {}
                }
                Some(())
            })?,
            (3, Field::Bytes(bytes)) => each_field(bytes, |number, field| {
                if let (3, Field::Number(adds)) = (number, field) {
                    model.adds_blank = adds != 0;
                }
                Some(())
            })?,
            _ => {}
        }
        Some(())
    })?;
    (!model.pieces.is_empty()).then_some(model)
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece {
        kind: 1,
        ..Piece::default()
    };
    each_field(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (2, Field::Word(word)) => piece.score = f32::from_le_bytes(word),
            (3, Field::Number(kind)) => piece.kind = i32::try_from(kind).ok()?,
            _ => {}
        }
        Some(())
    })?;
    Some(piece)
}

fn each_field<'a>(
    mut bytes: &'a [u8],
    mut take: impl FnMut(u64, Field<'a>) -> Option<()>,
) -> Option<()> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => {
                bytes = bytes.get(8..)?;
                continue;
            }
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let (field, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                Field::Bytes(field)
            }
            5 => {
                let (word, rest) = bytes.split_first_chunk::<4>()?;
                bytes = rest;
                Field::Word(*word)
            }
            _ => return None,
        };
        take(tag >> 3, field)?;
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_others_skipped() {
        let mut bytes = Vec::new();
        // Piece {text "ab", score -1.5, type 3}, an unknown field 9 of 8 bytes, trainer {kind 2, unknown 7}, normalizer {no blank}.
        bytes.extend([0x0a, 11, 0x0a, 2, b'a', b'b', 0x15]);
        bytes.extend((-1.5f32).to_le_bytes());
        bytes.extend([0x18, 3]);
        bytes.extend([0x49, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0x12, 5, 0x18, 2, 0xc0, 0x02, 7]);
        bytes.extend([0x1a, 2, 0x18, 0]);
        let model = parse(&bytes).unwrap();
        assert_eq!(
            model.pieces,
            [Piece {
                text: "ab".into(),
                score: -1.5,
                kind: 3
            }]
        );
        assert_eq!((model.kind, model.specials), (2, [7, 1, 2, -1]));
        assert!(!model.adds_blank);
        for end in 1..bytes.len() {
            let _ = parse(&bytes[..end]);
        }
        assert_eq!(parse(b"IQ== 0\nIg== 1\n"), None);
        assert_eq!(parse(b""), None);
    }
}
