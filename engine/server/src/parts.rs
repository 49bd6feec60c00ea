//! Takes an answer's text apart while it comes: reasoning, text, and tool calls with their arguments in pieces.
//!
//! A call is a block `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, white space free; a list of such objects in one
//! block, `parameters` for `arguments`, and arguments written as a string are read, too. What begins like a block and is
//! none comes back as text. However the text is cut into pieces, the parts are the same.

use serde_json::Value;

use crate::reply::random_id;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const THINK: &str = "<think>";
const END_OF_THINKING: &str = "</think>";

/// A part of an answer, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Reasoning(String),
    Text(String),
    /// A call begins; its arguments follow as pieces.
    Call {
        id: String,
        name: String,
    },
    /// The next piece of the last call's arguments, JSON text.
    Arguments(String),
}

/// What to look for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) tools: bool,
    /// Split `<think>…</think>` off the front.
    pub(crate) reasoning: bool,
}

/// Reads one answer.
#[derive(Debug)]
pub(crate) struct PartReader {
    look: Look,
    state: State,
    /// Text that is not given out yet.
    held: String,
    /// White space that comes next belongs to no part.
    trim: bool,
    called: bool,
}

#[derive(Debug)]
enum State {
    /// Before the first character that shows whether there is reasoning.
    Front,
    Thinking,
    Text,
    Call(CallReader),
    /// Behind a call's JSON, before the closing mark.
    Behind,
}

impl PartReader {
    pub(crate) fn new(look: Look) -> Self {
        PartReader {
            look,
            state: if look.reasoning {
                State::Front
            } else {
                State::Text
            },
            held: String::new(),
            trim: false,
            called: false,
        }
    }

    /// All parts of a whole answer, pieces joined.
    pub(crate) fn read(look: Look, text: &str) -> Vec<Part> {
        let mut reader = PartReader::new(look);
        let mut parts = reader.push(text);
        parts.extend(reader.finish());
        joined(parts)
    }

    /// At least one call was made.
    pub(crate) fn called(&self) -> bool {
        self.called
    }

    /// Adds `piece`.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        joined(parts)
    }

    /// The answer has ended.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Text) {
            State::Thinking => some(held, Part::Reasoning),
            State::Call(reader) if reader.begun => Vec::new(),
            State::Call(reader) => some(format!("{OPEN}{}{held}", reader.raw), Part::Text),
            State::Behind => Vec::new(),
            State::Text | State::Front if self.called && held.trim().is_empty() => Vec::new(),
            State::Text | State::Front => some(held, Part::Text),
        }
    }

    /// Moves on as far as the held text allows; true when another step may.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        if self.trim {
            self.held = self.held.trim_start().to_owned();
            self.trim = self.held.is_empty();
            if self.trim {
                return false;
            }
        }
        match &mut self.state {
            State::Front => self.front(),
            State::Thinking => self.thinking(parts),
            State::Text => self.text(parts),
            State::Call(_) => self.call(parts),
            State::Behind => self.behind(),
        }
    }

    fn front(&mut self) -> bool {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(THINK) {
            self.held = rest.to_owned();
            self.trim = true;
            self.state = State::Thinking;
            return true;
        }
        if THINK.starts_with(text) {
            return false;
        }
        self.state = State::Text;
        true
    }

    fn thinking(&mut self, parts: &mut Vec<Part>) -> bool {
        if let Some(at) = self.held.find(END_OF_THINKING) {
            let rest = self.held.split_off(at);
            parts.extend(some(
                std::mem::take(&mut self.held).trim_end().to_owned(),
                Part::Reasoning,
            ));
            self.held = rest[END_OF_THINKING.len()..].to_owned();
            self.trim = true;
            self.state = State::Text;
            return true;
        }
        let rest = self
            .held
            .split_off(mark_or_space(&self.held, END_OF_THINKING));
        parts.extend(some(
            std::mem::replace(&mut self.held, rest),
            Part::Reasoning,
        ));
        false
    }

    fn text(&mut self, parts: &mut Vec<Part>) -> bool {
        if !self.look.tools {
            parts.extend(some(std::mem::take(&mut self.held), Part::Text));
            return false;
        }
        if self.called && self.held.trim_start().is_empty() {
            return false;
        }
        if let Some(at) = self.held.find(OPEN) {
            let rest = self.held.split_off(at);
            parts.extend(some(self.held.trim_end().to_owned(), Part::Text));
            self.held = rest[OPEN.len()..].to_owned();
            self.state = State::Call(CallReader::default());
            return true;
        }
        let rest = self.held.split_off(mark_or_space(&self.held, OPEN));
        parts.extend(some(std::mem::replace(&mut self.held, rest), Part::Text));
        false
    }

    fn call(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Call(reader) = &mut self.state else {
            return false;
        };
        let mut chars = self.held.char_indices();
        while let Some((_, c)) = chars.next() {
            match reader.push(c, parts) {
                Progress::More => {}
                Progress::Done => {
                    self.called = true;
                    self.held = chars.as_str().to_owned();
                    self.state = State::Behind;
                    return true;
                }
                Progress::Broken => {
                    // Calls of a list that were whole stay calls; the rest is text.
                    let raw = if reader.begun {
                        self.called = true;
                        c.to_string()
                    } else {
                        format!("{OPEN}{}", reader.raw)
                    };
                    let rest = chars.as_str().to_owned();
                    parts.push(Part::Text(raw));
                    self.held = rest;
                    self.state = State::Text;
                    return true;
                }
            }
        }
        self.called |= reader.begun;
        self.held.clear();
        false
    }

    fn behind(&mut self) -> bool {
        let text = self.held.trim_start();
        if let Some(rest) = text.strip_prefix(CLOSE) {
            self.held = rest.to_owned();
            self.state = State::Text;
            return true;
        }
        if CLOSE.starts_with(text) {
            return false;
        }
        self.state = State::Text;
        true
    }
}

/// Where the text behind which nothing is certain begins: a beginning of `mark`, or the white space before it.
fn mark_or_space(text: &str, mark: &str) -> usize {
    let from = text.len().saturating_sub(mark.len());
    let begins = |at: &usize| mark.starts_with(&text[*at..]);
    let at = (from..text.len())
        .filter(|at| text.is_char_boundary(*at))
        .find(begins)
        .unwrap_or(text.len());
    text[..at].trim_end().len()
}

fn some(text: String, part: fn(String) -> Part) -> Vec<Part> {
    match text.is_empty() {
        true => Vec::new(),
        false => vec![part(text)],
    }
}

/// Pieces of the same part in a row become one.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    for part in parts {
        match (out.last_mut(), part) {
            (Some(Part::Text(text)), Part::Text(more))
            | (Some(Part::Reasoning(text)), Part::Reasoning(more))
            | (Some(Part::Arguments(text)), Part::Arguments(more)) => text.push_str(&more),
            (_, part) => out.push(part),
        }
    }
    out
}

enum Progress {
    More,
    Done,
    Broken,
}

/// Reads the JSON of one block, a character at a time.
#[derive(Debug, Default)]
struct CallReader {
    /// All of it so far, for when it turns out to be no call.
    raw: String,
    at: At,
    /// In a list of calls.
    many: bool,
    name: Option<String>,
    /// Arguments that came before the name.
    early: String,
    /// The arguments of this call were seen.
    argued: bool,
    /// A key, or a value that is read whole.
    token: String,
    value: Scan,
    /// A call was given out.
    begun: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before `{` or `[`.
    #[default]
    Open,
    /// Before a key, `,` or `}`.
    Member,
    Key,
    Colon(Key),
    /// Before a value.
    Value(Key),
    InValue(Key),
    /// Behind an object of a list.
    Between,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    #[default]
    Other,
}

/// Where in a JSON value the reader is.
#[derive(Debug, Default, Clone, Copy)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The value is a string; else an object, an array, or a word.
    is_string: bool,
    is_word: bool,
}

impl CallReader {
    fn push(&mut self, c: char, parts: &mut Vec<Part>) -> Progress {
        self.raw.push(c);
        match self.at {
            At::Open if c.is_whitespace() => {}
            At::Open if c == '[' && !self.many => self.many = true,
            At::Open if c == '{' => self.at = At::Member,
            At::Member if c.is_whitespace() || c == ',' => {}
            At::Member if c == '"' => {
                self.token = "\"".into();
                self.value = Scan::of('"');
                self.at = At::Key;
            }
            At::Member if c == '}' => return self.end_of_call(parts),
            At::Key => {
                self.token.push(c);
                if self.value.ends_with(c) {
                    self.at = At::Colon(match self.token.as_str() {
                        "\"name\"" => Key::Name,
                        "\"arguments\"" | "\"parameters\"" => Key::Arguments,
                        _ => Key::Other,
                    });
                }
            }
            At::Colon(_) if c.is_whitespace() => {}
            At::Colon(key) if c == ':' => self.at = At::Value(key),
            At::Value(_) if c.is_whitespace() => {}
            At::Value(key) if !matches!(c, ',' | '}' | ']' | ':') => {
                self.token.clear();
                self.value = Scan::of(c);
                self.at = At::InValue(key);
                self.take(key, c, parts);
            }
            At::InValue(key)
                if self.value.is_word && (matches!(c, ',' | '}') || c.is_whitespace()) =>
            {
                if !self.end_of_value(key, parts) {
                    return Progress::Broken;
                }
                self.at = At::Member;
                if c == '}' {
                    return self.end_of_call(parts);
                }
            }
            At::InValue(key) => {
                let ends = self.value.ends_with(c);
                self.take(key, c, parts);
                if ends {
                    if !self.end_of_value(key, parts) {
                        return Progress::Broken;
                    }
                    self.at = At::Member;
                }
            }
            At::Between if c.is_whitespace() || c == ',' => {}
            At::Between if c == ']' => return Progress::Done,
            At::Between if c == '{' => {
                self.name = None;
                self.early.clear();
                self.argued = false;
                self.at = At::Member;
            }
            _ => return Progress::Broken,
        }
        Progress::More
    }

    /// A character of a value: arguments go out as they come, everything else is read whole.
    fn take(&mut self, key: Key, c: char, parts: &mut Vec<Part>) {
        if key == Key::Arguments && !self.value.is_string && !self.value.is_word {
            self.argue(c.to_string(), parts);
        } else {
            self.token.push(c);
        }
    }

    fn argue(&mut self, text: String, parts: &mut Vec<Part>) {
        self.argued = true;
        match self.name {
            Some(_) => parts.push(Part::Arguments(text)),
            None => self.early.push_str(&text),
        }
    }

    /// False when the value can't be what its key says.
    fn end_of_value(&mut self, key: Key, parts: &mut Vec<Part>) -> bool {
        let token = std::mem::take(&mut self.token);
        match key {
            Key::Other => true,
            Key::Name => match serde_json::from_str(&token) {
                Ok(Value::String(name)) if self.name.is_none() => {
                    let id = format!("call_{}", random_id(24));
                    let early = std::mem::take(&mut self.early);
                    parts.push(Part::Call {
                        id,
                        name: name.clone(),
                    });
                    parts.extend(some(early, Part::Arguments));
                    self.name = Some(name);
                    self.begun = true;
                    true
                }
                _ => false,
            },
            Key::Arguments if self.value.is_string => {
                let text = serde_json::from_str::<String>(&token);
                let is_ok = text.is_ok();
                self.argue(text.unwrap_or_default(), parts);
                is_ok
            }
            // `null` stands for none.
            Key::Arguments => !self.value.is_word || token == "null",
        }
    }

    fn end_of_call(&mut self, parts: &mut Vec<Part>) -> Progress {
        if self.name.is_none() {
            return Progress::Broken;
        }
        if !self.argued {
            parts.push(Part::Arguments("{}".into()));
        }
        self.at = At::Between;
        match self.many {
            true => Progress::More,
            false => Progress::Done,
        }
    }
}

impl Scan {
    fn of(first: char) -> Self {
        Scan {
            depth: usize::from(matches!(first, '{' | '[')),
            in_string: first == '"',
            escaped: false,
            is_string: first == '"',
            is_word: !matches!(first, '{' | '[' | '"'),
        }
    }

    /// Whether `c` is the value's last character. Words have none: what follows ends them.
    fn ends_with(&mut self, c: char) -> bool {
        if self.in_string {
            match (self.escaped, c) {
                (true, _) => self.escaped = false,
                (false, '\\') => self.escaped = true,
                (false, '"') => {
                    self.in_string = false;
                    return self.depth == 0;
                }
                _ => {}
            }
            return false;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0 && !self.is_word;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Look = Look {
        tools: true,
        reasoning: true,
    };

    /// `text`, `name(arguments)` and `(reasoning)` of the parts, for `text` cut into pieces of `size` characters.
    fn shown(look: Look, text: &str, size: usize) -> Vec<String> {
        let mut reader = PartReader::new(look);
        let chars: Vec<char> = text.chars().collect();
        let mut parts = Vec::new();
        for piece in chars.chunks(size) {
            parts.extend(reader.push(&piece.iter().collect::<String>()));
        }
        parts.extend(reader.finish());
        let mut out: Vec<String> = Vec::new();
        for part in joined(parts) {
            match part {
                Part::Text(text) => out.push(text),
                Part::Reasoning(text) => out.push(format!("({text})")),
                Part::Call { id, name } => {
                    assert!(id.starts_with("call_") && id.len() == 29, "{id}");
                    out.push(format!("{name}:"));
                }
                Part::Arguments(text) => {
                    let last = out.last_mut().expect("a call before arguments");
                    last.push_str(&text);
                }
            }
        }
        out
    }

    #[test]
    fn however_it_is_cut() {
        for (text, expected) in [
            ("just text < and <tool", vec!["just text < and <tool"]),
            (
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"\", \"b\": [1, {}]}}\n</tool_call>",
                vec!["f:{\"a\": \"}\\\"\", \"b\": [1, {}]}"],
            ),
            (
                "Let me see.\n<tool_call>{\"arguments\":{\"x\":1},\"name\":\"g\"}</tool_call>\n<tool_call>{\"name\":\"h\"}</tool_call>",
                vec!["Let me see.", "g:{\"x\":1}", "h:{}"],
            ),
            (
                "<tool_call>[{\"name\":\"a\",\"parameters\":{}},\n {\"name\":\"b\",\"arguments\":\"{\\\"k\\\":2}\"}]</tool_call> then more",
                vec!["a:{}", "b:{\"k\":2}", " then more"],
            ),
            (
                "<tool_call>no call</tool_call>",
                vec!["<tool_call>no call</tool_call>"],
            ),
            ("<tool_call>{\"name\": 3}", vec!["<tool_call>{\"name\": 3}"]),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1",
                vec!["f:{\"a\": 1"],
            ),
            ("<tool_call>{\"na", vec!["<tool_call>{\"na"]),
            (
                "<tool_call>{\"name\":\"f\",\"id\":7,\"arguments\":null}</tool_call>",
                vec!["f:{}"],
            ),
            (
                " <think>\nwhy é\n</think>\n\nBecause.",
                vec!["(why é)", "Because."],
            ),
            ("<think>never ends", vec!["(never ends)"]),
            (" <thin", vec![" <thin"]),
            (
                "<think>a</think><tool_call>{\"name\":\"f\"}</tool_call>",
                vec!["(a)", "f:{}"],
            ),
        ] {
            for size in 1..=text.chars().count() {
                assert_eq!(shown(ALL, text, size), expected, "{text:?} by {size}");
            }
        }
    }

    #[test]
    fn looks_only_for_what_it_should() {
        let text = "<think>x</think><tool_call>{\"name\":\"f\"}</tool_call>";
        assert_eq!(shown(Look::default(), text, 3), [text]);
    }

    #[test]
    fn arguments_come_in_pieces() {
        let mut reader = PartReader::new(ALL);
        let mut parts = reader.push("<tool_call>{\"name\":\"f\",\"arguments\":{\"a\"");
        assert!(matches!(&parts[0], Part::Call { name, .. } if name == "f"));
        assert_eq!(parts.pop(), Some(Part::Arguments("{\"a\"".into())));
        assert!(reader.called());
        assert_eq!(reader.push(": 1"), [Part::Arguments(": 1".into())]);
    }
}
