//! Byte strings with ids, findable by content: one arena and one open-addressed table. Strings of up to eight bytes, most
//! tokens, are compared inside the table: a look-up costs one cache miss.

/// Longest string that is its own key, in bytes.
const KEY_BYTES: usize = 8;

/// Strings in order of their ids; only the indexed ones can be found.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    bytes: Vec<u8>,
    /// Where each string begins, and the end of the last.
    starts: Vec<u32>,
    /// By hash; a power of two of them, at most two thirds full.
    slots: Vec<Slot>,
    n_indexed: usize,
}

/// An indexed string, or nothing.
#[derive(Debug, Clone, Copy)]
struct Slot {
    key: Key,
    id: u32,
}

const FREE: Slot = Slot {
    key: Key {
        word: 0,
        len: u32::MAX,
    },
    id: u32::MAX,
};

/// Length and content; for longer strings the hash of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    word: u64,
    len: u32,
}

impl Key {
    fn of(string: &[u8]) -> Key {
        let (words, rest) = string.as_chunks::<KEY_BYTES>();
        let mut last = [0; KEY_BYTES];
        last[..rest.len()].copy_from_slice(rest);
        let word = match words {
            [] => u64::from_le_bytes(last),
            [word] if rest.is_empty() => u64::from_le_bytes(*word),
            _ => words
                .iter()
                .fold(mix(1, u64::from_le_bytes(last)), |state, word| {
                    mix(state, u64::from_le_bytes(*word))
                }),
        };
        Key {
            word,
            len: string.len() as u32,
        }
    }

    fn is_whole(self) -> bool {
        self.len as usize <= KEY_BYTES
    }
}

impl Table {
    pub(crate) fn with_capacity(n: usize) -> Table {
        Table {
            bytes: Vec::with_capacity(n * 8),
            starts: vec![0],
            slots: vec![FREE; (n * 3 / 2).next_power_of_two().max(16)],
            n_indexed: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The string of an id; empty for an id that isn't there.
    pub(crate) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Appends a string; its id is the old [`Table::len`].
    ///
    /// # Panics
    /// When all strings together pass 4 GiB.
    pub(crate) fn push(&mut self, string: &[u8]) -> u32 {
        let id = self.len() as u32;
        self.bytes.extend_from_slice(string);
        let end = u32::try_from(self.bytes.len()).expect("less than 4 GiB of token text");
        self.starts.push(end);
        id
    }

    /// Makes a string findable, unless an equal one already is.
    pub(crate) fn index(&mut self, id: u32) {
        if (self.n_indexed + 1) * 3 > self.slots.len() * 2 {
            self.grow();
        }
        let string = self.get(id);
        let key = Key::of(string);
        let slot = self.slot(key, string);
        if self.slots[slot].key == FREE.key {
            self.slots[slot] = Slot { key, id };
            self.n_indexed += 1;
        }
    }

    pub(crate) fn find(&self, string: &[u8]) -> Option<u32> {
        let slot = self.slots[self.slot(Key::of(string), string)];
        (slot.key != FREE.key).then_some(slot.id)
    }

    /// Where the string is, or the free slot where it would be.
    fn slot(&self, key: Key, string: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = mix(key.len.into(), key.word) as usize & mask;
        loop {
            let slot = self.slots[at];
            let same = slot.key == key && (key.is_whole() || self.get(slot.id) == string);
            if same || slot.key == FREE.key {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let old = std::mem::take(&mut self.slots);
        self.slots = vec![FREE; old.len() * 2];
        for slot in old.into_iter().filter(|slot| slot.key != FREE.key) {
            let at = self.slot(slot.key, self.get(slot.id));
            self.slots[at] = slot;
        }
    }
}

/// Folds the 128-bit product: every bit of the input reaches the low ones.
pub(crate) fn mix(state: u64, word: u64) -> u64 {
    let product =
        u128::from(state ^ 0x9e37_79b9_7f4a_7c15) * u128::from(word ^ 0xd1b5_4a32_d192_ed03);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn finds_what_was_indexed() {
        let mut table = Table::with_capacity(2);
        let words: Vec<String> = (0..1000).map(|n| format!("word{}", n * 7919)).collect();
        for word in &words {
            let id = table.push(word.as_bytes());
            table.index(id);
        }
        for (short, long) in [("", "\0"), ("a", "a\0"), ("12345678", "12345678\0")] {
            let id = table.push(short.as_bytes());
            table.index(id);
            assert_eq!(
                (table.find(short.as_bytes()), table.find(long.as_bytes())),
                (Some(id), None)
            );
        }
        let again = table.push(b"word0");
        table.index(again);
        let hidden = table.push(b"hidden");
        assert!(
            words
                .iter()
                .enumerate()
                .all(|(i, word)| table.find(word.as_bytes()) == Some(i as u32))
        );
        assert_eq!(table.find(b"hidden"), None);
        assert_eq!(
            (table.get(hidden), table.get(hidden + 1)),
            (b"hidden".as_slice(), b"".as_slice())
        );
    }
}
