//! Byte-level BPE: a word's bytes become symbols; the neighbouring pair of lowest merge rank (leftmost first) becomes one
//! symbol until no pair has a rank.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::table::{Table, mix};

/// Words up to this many bytes are merged by scanning, longer ones with a heap.
const SCAN_BYTES: usize = 48;
const NONE: u32 = u32::MAX;

/// Merge rules over a table of tokens. Symbols are token ids; those from `n_vocab` on are parts of merges that are no
/// tokens themselves.
#[derive(Debug, Clone)]
pub(crate) struct Bpe {
    merges: HashMap<u64, Merge, BuildHasherDefault<PairHasher>>,
    byte_symbols: [u32; 256],
    n_vocab: u32,
    ignore_merges: bool,
    unknown: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Merge {
    rank: u32,
    symbol: u32,
}

impl Bpe {
    /// Over the `table`'s tokens, all of them in it by now. Add merges with [`Bpe::add_merge`] in order of rank.
    pub(crate) fn new(
        table: &mut Table,
        n_merges: usize,
        ignore_merges: bool,
        unknown: Option<u32>,
    ) -> Bpe {
        let n_vocab = table.len() as u32;
        Bpe {
            merges: HashMap::with_capacity_and_hasher(n_merges, BuildHasherDefault::default()),
            byte_symbols: std::array::from_fn(|byte| symbol(table, &[byte as u8])),
            n_vocab,
            ignore_merges,
            unknown,
        }
    }

    /// The next merge: `joined` is left and right, `at` where right begins.
    pub(crate) fn add_merge(&mut self, table: &mut Table, joined: &[u8], at: usize) {
        let rank = self.merges.len() as u32;
        let left = symbol(table, &joined[..at]);
        let right = symbol(table, &joined[at..]);
        let merge = Merge {
            rank,
            symbol: symbol(table, joined),
        };
        self.merges.entry(pair(left, right)).or_insert(merge);
    }

    /// Bytes that no token stands for.
    pub(crate) fn missing_bytes(&self) -> usize {
        self.byte_symbols
            .iter()
            .filter(|&&symbol| symbol >= self.n_vocab)
            .count()
    }

    /// Appends a word's ids.
    pub(crate) fn encode(&self, table: &Table, word: &[u8], ids: &mut Vec<u32>) {
        if self.ignore_merges
            && let Some(id) = table.find(word).filter(|&id| id < self.n_vocab)
        {
            return ids.push(id);
        }
        let symbols: Vec<u32> = word
            .iter()
            .map(|&byte| self.byte_symbols[byte as usize])
            .collect();
        if symbols.len() <= SCAN_BYTES {
            self.merge_by_scanning(symbols, |symbol| self.emit(table, symbol, ids));
        } else {
            self.merge_by_heap(symbols, |symbol| self.emit(table, symbol, ids));
        }
    }

    fn emit(&self, table: &Table, symbol: u32, ids: &mut Vec<u32>) {
        if symbol < self.n_vocab {
            return ids.push(symbol);
        }
        for &byte in table.get(symbol) {
            let symbol =
                Some(self.byte_symbols[byte as usize]).filter(|&symbol| symbol < self.n_vocab);
            ids.extend(symbol.or(self.unknown));
        }
    }

    fn merge_of(&self, left: u32, right: u32) -> Option<Merge> {
        self.merges.get(&pair(left, right)).copied()
    }

    fn merge_by_scanning(&self, mut symbols: Vec<u32>, mut emit: impl FnMut(u32)) {
        // merges[i]: of symbols i and i + 1.
        let mut merges: Vec<Option<Merge>> = symbols
            .windows(2)
            .map(|pair| self.merge_of(pair[0], pair[1]))
            .collect();
        loop {
            let best = merges
                .iter()
                .enumerate()
                .filter_map(|(i, merge)| merge.map(|merge| (merge, i)))
                .min();
            let Some((merge, i)) = best else {
                break;
            };
            symbols[i] = merge.symbol;
            symbols.remove(i + 1);
            merges.remove(i);
            if i > 0 {
                merges[i - 1] = self.merge_of(symbols[i - 1], symbols[i]);
            }
            if i < merges.len() {
                merges[i] = self.merge_of(symbols[i], symbols[i + 1]);
            }
        }
        symbols.into_iter().for_each(&mut emit);
    }

    /// In O(n log n): a heap of (rank, position) over a linked list of symbols.
    fn merge_by_heap(&self, mut symbols: Vec<u32>, mut emit: impl FnMut(u32)) {
        let n = symbols.len();
        let mut next: Vec<u32> = (1..=n as u32).collect();
        let mut previous: Vec<u32> = (0..n as u32).map(|i| i.wrapping_sub(1)).collect();
        next[n - 1] = NONE;
        // merges[i]: of the symbol at i and the one behind it. A heap entry of another rank than merges[i] is stale.
        let mut merges: Vec<Option<Merge>> = symbols
            .windows(2)
            .map(|pair| self.merge_of(pair[0], pair[1]))
            .chain([None])
            .collect();
        let entry = |i: usize, merge: Merge| Reverse(u64::from(merge.rank) << 32 | i as u64);
        let first = merges.iter().enumerate();
        let mut heap: BinaryHeap<Reverse<u64>> = first
            .filter_map(|(i, merge)| Some(entry(i, (*merge)?)))
            .collect();
        while let Some(Reverse(packed)) = heap.pop() {
            let (rank, i) = ((packed >> 32) as u32, packed as u32 as usize);
            let Some(merge) = merges[i].filter(|merge| merge.rank == rank) else {
                continue;
            };
            let gone = next[i] as usize;
            let (before, after) = (previous[i], next[gone]);
            symbols[i] = merge.symbol;
            (symbols[gone], merges[gone], merges[i], next[i]) = (NONE, None, None, after);
            if after != NONE {
                previous[after as usize] = i as u32;
                merges[i] = self.merge_of(symbols[i], symbols[after as usize]);
                heap.extend(merges[i].map(|merge| entry(i, merge)));
            }
            if before != NONE {
                let before = before as usize;
                merges[before] = self.merge_of(symbols[before], symbols[i]);
                heap.extend(merges[before].map(|merge| entry(before, merge)));
            }
        }
        symbols
            .into_iter()
            .filter(|&symbol| symbol != NONE)
            .for_each(&mut emit);
    }
}

/// The findable string's id; a new one when there is none.
fn symbol(table: &mut Table, string: &[u8]) -> u32 {
    table.find(string).unwrap_or_else(|| {
        let id = table.push(string);
        table.index(id);
        id
    })
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Hashes one u64.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|&byte| self.0 = mix(self.0, byte.into()));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0, word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpe(ignore_merges: bool) -> (Table, Bpe) {
        let mut table = Table::with_capacity(16);
        for token in ["a", "b", "c", "ab", "bc", "abc", "aa", "aaaa", "cab"] {
            let id = table.push(token.as_bytes());
            table.index(id);
        }
        let mut bpe = Bpe::new(&mut table, 8, ignore_merges, None);
        for (left, right) in [
            ("b", "c"),
            ("a", "b"),
            ("a", "bc"),
            ("a", "a"),
            ("aa", "aa"),
            ("c", "c"),
        ] {
            let joined = [left, right].concat();
            bpe.add_merge(&mut table, joined.as_bytes(), left.len());
        }
        (table, bpe)
    }

    fn tokens(ignore_merges: bool, word: &str) -> Vec<String> {
        let (table, bpe) = bpe(ignore_merges);
        let mut ids = Vec::new();
        bpe.encode(&table, word.as_bytes(), &mut ids);
        ids.into_iter()
            .map(|id| String::from_utf8(table.get(id).to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn lowest_rank_first_leftmost_on_ties() {
        assert_eq!(tokens(false, "abc"), ["abc"]);
        assert_eq!(tokens(false, "aaa"), ["aa", "a"]);
        assert_eq!(tokens(false, "aaaaab"), ["aaaa", "ab"]);
        assert_eq!(tokens(false, "cab"), ["c", "ab"]);
        assert_eq!(tokens(true, "cab"), ["cab"]);
    }

    /// `cc` is only a merge's result; its bytes come out. `d` is nothing at all.
    #[test]
    fn symbols_that_are_no_tokens_fall_apart() {
        assert_eq!(tokens(false, "ccd"), ["c", "c"]);
        assert_eq!(bpe(false).1.missing_bytes(), 253);
    }

    #[test]
    fn scanning_and_heap_agree() {
        let (_, bpe) = bpe(false);
        let mut state = 1u32;
        for _ in 0..2000 {
            let n = 2 + state as usize % 60;
            let symbols: Vec<u32> = (0..n)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state >> 24 & 3
                })
                .map(|symbol| symbol.min(2))
                .collect();
            let (mut scanned, mut heaped) = (Vec::new(), Vec::new());
            bpe.merge_by_scanning(symbols.clone(), |symbol| scanned.push(symbol));
            bpe.merge_by_heap(symbols, |symbol| heaped.push(symbol));
            assert_eq!(scanned, heaped);
        }
    }
}
