//! Byte strings with ids, findable by content: one arena, one open-addressed table of u32.

/// An empty slot.
const FREE: u32 = u32::MAX;

/// Strings in order of their ids; only the indexed ones can be found.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    bytes: Vec<u8>,
    /// Where each string begins, and the end of the last.
    starts: Vec<u32>,
    /// Ids by hash; a power of two, at most half full.
    slots: Vec<u32>,
    n_indexed: usize,
}

impl Table {
    pub(crate) fn with_capacity(n: usize) -> Table {
        Table {
            bytes: Vec::with_capacity(n * 8),
            starts: vec![0],
            slots: vec![FREE; (n * 2).next_power_of_two().max(16)],
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
        if (self.n_indexed + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let slot = self.slot(self.get(id));
        if self.slots[slot] == FREE {
            self.slots[slot] = id;
            self.n_indexed += 1;
        }
    }

    pub(crate) fn find(&self, string: &[u8]) -> Option<u32> {
        let id = self.slots[self.slot(string)];
        (id != FREE).then_some(id)
    }

    /// Where the string is, or the free slot where it would be.
    fn slot(&self, string: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash(string) as usize & mask;
        while self.slots[slot] != FREE && self.get(self.slots[slot]) != string {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let ids: Vec<u32> = self
            .slots
            .iter()
            .copied()
            .filter(|&id| id != FREE)
            .collect();
        self.slots = vec![FREE; self.slots.len() * 2];
        for id in ids {
            let slot = self.slot(self.get(id));
            self.slots[slot] = id;
        }
    }
}

fn hash(string: &[u8]) -> u64 {
    let (words, rest) = string.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let state = words.iter().fold(string.len() as u64, |state, word| {
        mix(state, u64::from_le_bytes(*word))
    });
    mix(state, u64::from_le_bytes(last))
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
        let again = table.push(b"word0");
        table.index(again);
        let hidden = table.push(b"hidden");
        assert!(
            words
                .iter()
                .enumerate()
                .all(|(i, word)| table.find(word.as_bytes()) == Some(i as u32))
        );
        assert_eq!((table.find(b"hidden"), table.find(b"")), (None, None));
        assert_eq!(
            (table.get(hidden), table.get(hidden + 1)),
            (b"hidden".as_slice(), b"".as_slice())
        );
    }
}
