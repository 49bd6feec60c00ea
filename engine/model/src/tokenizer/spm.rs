//! SentencePiece BPE: text becomes characters; the neighbouring pair whose joint piece has the highest score (leftmost
//! first) becomes one until no pair is a piece. Characters that are no piece become byte tokens.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::table::Table;

/// Scores and byte tokens over a table whose findable strings are the normal pieces, with blanks for `▁`.
#[derive(Debug, Clone)]
pub(crate) struct Spm {
    scores: Vec<f32>,
    byte_tokens: [Option<u32>; 256],
    unknown: Option<u32>,
    longest: usize,
    /// A blank goes in front of each stretch of text.
    pub(crate) adds_blank: bool,
}

impl Spm {
    /// `longest`: bytes of the longest piece.
    pub(crate) fn new(
        scores: Vec<f32>,
        byte_tokens: [Option<u32>; 256],
        unknown: Option<u32>,
        longest: usize,
        adds_blank: bool,
    ) -> Spm {
        Spm {
            scores,
            byte_tokens,
            unknown,
            longest,
            adds_blank,
        }
    }

    /// Appends the ids of a stretch of text between special tokens.
    pub(crate) fn encode(&self, table: &Table, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let prefix = if self.adds_blank { " " } else { "" };
        let text = format!("{prefix}{}", text.replace('\u{2581}', " "));
        let text = text.as_bytes();
        for (start, end) in self.merge(table, text) {
            match table.find(&text[start..end]) {
                Some(id) => ids.push(id),
                None => self.emit_bytes(&text[start..end], ids),
            }
        }
    }

    fn emit_bytes(&self, bytes: &[u8], ids: &mut Vec<u32>) {
        if bytes
            .iter()
            .all(|&byte| self.byte_tokens[byte as usize].is_some())
        {
            ids.extend(
                bytes
                    .iter()
                    .filter_map(|&byte| self.byte_tokens[byte as usize]),
            );
        } else {
            ids.extend(self.unknown);
        }
    }

    /// Spans of the final pieces, in order. O(n log n).
    fn merge(&self, table: &Table, text: &[u8]) -> Vec<(usize, usize)> {
        let mut pieces = characters(text);
        let mut heap = BinaryHeap::new();
        let candidate = |pieces: &[Piece], left: usize, right: usize| {
            let (start, end) = (pieces[left].start, pieces[right].end);
            if end - start > self.longest {
                return None;
            }
            let id = table.find(&text[start..end])?;
            let score = self.scores.get(id as usize).copied().unwrap_or(f32::MIN);
            Some(Candidate {
                score,
                left,
                right,
                start,
                end,
            })
        };
        heap.extend((1..pieces.len()).filter_map(|right| candidate(&pieces, right - 1, right)));
        while let Some(Candidate {
            left,
            right,
            start,
            end,
            ..
        }) = heap.pop()
        {
            // Stale when either side has grown or gone since.
            let fresh = pieces[left].next == right
                && pieces[left].end == pieces[right].start
                && pieces[left].start == start
                && pieces[right].end == end
                && pieces[right].alive();
            if !fresh {
                continue;
            }
            pieces[left].end = end;
            pieces[left].next = pieces[right].next;
            pieces[right].end = pieces[right].start;
            let (before, after) = (pieces[left].previous, pieces[left].next);
            if after < pieces.len() {
                pieces[after].previous = left;
                heap.extend(candidate(&pieces, left, after));
            }
            if before < pieces.len() {
                heap.extend(candidate(&pieces, before, left));
            }
        }
        pieces
            .iter()
            .filter(|piece| piece.alive())
            .map(|piece| (piece.start, piece.end))
            .collect()
    }
}

/// A stretch of the text in a linked list; empty when merged into its left neighbour.
struct Piece {
    start: usize,
    end: usize,
    previous: usize,
    next: usize,
}

impl Piece {
    fn alive(&self) -> bool {
        self.start < self.end
    }
}

fn characters(text: &[u8]) -> Vec<Piece> {
    let is_start = |i: &usize| text[*i] & 0b1100_0000 != 0b1000_0000;
    let mut starts = (0..text.len()).filter(is_start).peekable();
    let mut pieces = Vec::with_capacity(text.len());
    while let Some(start) = starts.next() {
        let i: usize = pieces.len();
        pieces.push(Piece {
            start,
            end: starts.peek().copied().unwrap_or(text.len()),
            previous: i.wrapping_sub(1),
            next: i + 1,
        });
    }
    pieces
}

/// A possible merge; the greatest is the one to do first.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    start: usize,
    end: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::random::Rng;

    /// Pieces over `a`, `b`, `c` with random scores, many of them equal.
    fn spm(rng: &mut Rng) -> (Table, Spm) {
        let mut table = Table::with_capacity(64);
        let mut scores = Vec::new();
        for n in 1..=3usize {
            for code in 0..3usize.pow(n as u32) {
                let piece: String = (0..n)
                    .map(|i| ['a', 'b', 'c'][code / 3usize.pow(i as u32) % 3])
                    .collect();
                if n == 1 || rng.u64().is_multiple_of(2) {
                    let id = table.push(piece.as_bytes());
                    table.index(id);
                    scores.push((rng.u64() % 5) as f32 - 7.0);
                }
            }
        }
        (table, Spm::new(scores, [None; 256], None, 3, false))
    }

    /// As the definition says, pair by pair.
    fn merge_naively(spm: &Spm, table: &Table, text: &str) -> Vec<(usize, usize)> {
        let mut pieces: Vec<(usize, usize)> = (0..text.len()).map(|i| (i, i + 1)).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for i in 1..pieces.len() {
                let Some(id) = table.find(&text.as_bytes()[pieces[i - 1].0..pieces[i].1]) else {
                    continue;
                };
                let score = spm.scores[id as usize];
                if best.is_none_or(|best| score > best.0) {
                    best = Some((score, i));
                }
            }
            let Some((_, i)) = best else {
                return pieces;
            };
            pieces[i - 1].1 = pieces.remove(i).1;
        }
    }

    #[test]
    fn the_heap_merges_as_the_definition_says() {
        let mut rng = Rng::new(1, 2);
        for round in 0..400 {
            let (table, spm) = spm(&mut rng);
            let text: String = (0..1 + rng.u64() % 40)
                .map(|_| ['a', 'b', 'c'][rng.u64() as usize % 3])
                .collect();
            assert_eq!(
                spm.merge(&table, text.as_bytes()),
                merge_naively(&spm, &table, &text),
                "round {round}: {text}"
            );
        }
    }

    #[test]
    fn characters_without_a_piece_become_bytes_or_unknown() {
        let (mut table, mut spm) = spm(&mut Rng::new(1, 2));
        let mut ids = Vec::new();
        spm.unknown = Some(99);
        spm.encode(&table, "aé", &mut ids);
        assert_eq!(ids.last(), Some(&99));
        let bytes = [0xc3, 0xa9].map(|byte| (byte, table.push(&[byte])));
        bytes
            .iter()
            .for_each(|&(byte, id)| spm.byte_tokens[byte as usize] = Some(id));
        ids.clear();
        spm.encode(&table, "é", &mut ids);
        assert_eq!(ids, bytes.map(|byte| byte.1));
    }
}
