//! Reads GBNF, llama.cpp's grammar notation, into flat rules.
//!
//! `name ::= alternatives`, from the start rule `root`. Literals `"…"`, character classes `[a-z]` and `[^…]`, any character
//! `.`, groups, `|`, repetition `* + ? {m} {m,} {m,n}`, comments from `#` to the end of the line. Escapes: `\n \r \t \\ \"
//! \[ \]`, `\x41`, `\u0041`, `\U00000041`. `<[12]>` is the token of this number, `<think>` the one of this text, `!` before them any
//! other. A rule ends at the end of its line, unless a parenthesis is open or a `|` is near.

use std::collections::HashMap;

use super::GrammarError;

/// Elements of all rules, at most; repetitions are written out.
const MAX_ELEMENTS: usize = 200_000;
/// Groups inside groups.
const MAX_DEPTH: usize = 100;

/// One step of an alternative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// A character of `classes[_]`.
    Class(u32),
    /// What `rules[_]` says.
    Rule(u32),
    /// This token as a whole.
    Token(u32),
    /// Any other token.
    NotToken(u32),
    /// The end of the alternative.
    End,
}

/// A set of characters as ranges, ascending.
pub(super) type Class = Vec<(u32, u32)>;

/// A grammar without undefined rules and without left recursion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) classes: Vec<Class>,
    pub(super) elements: Vec<Element>,
    /// Where the alternatives of each rule begin in `elements`.
    pub(super) rules: Vec<Vec<u32>>,
    pub(super) root: u32,
    /// Some elements are tokens.
    pub(super) has_tokens: bool,
}

/// A token as a grammar names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenName<'a> {
    Number(u32),
    /// With its angle brackets.
    Text(&'a str),
}

/// Finds the token of a name; `None`: there is none.
pub(super) type FindToken<'a> =
    &'a mut dyn FnMut(TokenName<'_>) -> Result<Option<u32>, GrammarError>;

/// Reads a grammar.
///
/// # Errors
/// Where it is wrong, and how.
pub(super) fn parse(text: &str, find_token: FindToken<'_>) -> Result<Rules, GrammarError> {
    let mut parser = Parser::new(text, find_token);
    parser.skip(true);
    while parser.peek().is_some() {
        parser.rule()?;
        parser.skip(true);
    }
    parser.finish()
}

type Alternatives = Vec<Vec<Element>>;

struct Parser<'a> {
    find_token: FindToken<'a>,
    has_tokens: bool,
    text: Vec<char>,
    at: usize,
    depth: usize,
    names: HashMap<String, u32>,
    /// By rule; `None`: not defined yet.
    rules: Vec<Option<Alternatives>>,
    /// Where a rule was first named.
    named_at: Vec<(String, usize)>,
    classes: Vec<Class>,
    class_ids: HashMap<Class, u32>,
    n_elements: usize,
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

impl<'a> Parser<'a> {
    fn new(text: &str, find_token: FindToken<'a>) -> Self {
        Parser {
            find_token,
            has_tokens: false,
            text: text.chars().collect(),
            at: 0,
            depth: 0,
            names: HashMap::new(),
            rules: Vec::new(),
            named_at: Vec::new(),
            classes: Vec::new(),
            class_ids: HashMap::new(),
            n_elements: 0,
        }
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    fn eats(&mut self, c: char) -> bool {
        let is_next = self.peek() == Some(c);
        self.at += usize::from(is_next);
        is_next
    }

    /// White space and comments; line ends only where they mean nothing.
    fn skip(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            if c == '#' {
                while self.peek().is_some_and(|c| c != '\n' && c != '\r') {
                    self.at += 1;
                }
            } else if c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r')) {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn error_at(&self, at: usize, problem: impl Into<String>) -> GrammarError {
        let before = &self.text[..at.min(self.text.len())];
        let line = 1 + before.iter().filter(|c| **c == '\n').count();
        let column = 1 + before.iter().rev().take_while(|c| **c != '\n').count();
        let problem = problem.into();
        GrammarError::Gbnf {
            line,
            column,
            problem,
        }
    }

    fn error(&self, expected: &str) -> GrammarError {
        let found = match self.peek() {
            Some('\n' | '\r') => "the end of the line".to_owned(),
            Some(c) => format!("`{c}`"),
            None => "the end of the grammar".to_owned(),
        };
        self.error_at(self.at, format!("found {found}, expected {expected}"))
    }

    fn name(&mut self) -> Result<String, GrammarError> {
        let start = self.at;
        while self.peek().is_some_and(is_name) {
            self.at += 1;
        }
        match self.at > start {
            true => Ok(self.text[start..self.at].iter().collect()),
            false => Err(self.error("a rule name of letters, digits and `-`")),
        }
    }

    fn rule_id(&mut self, name: String, at: usize) -> u32 {
        if let Some(&id) = self.names.get(&name) {
            return id;
        }
        let id = self.new_rule(None);
        self.named_at[id as usize] = (name.clone(), at);
        self.names.insert(name, id);
        id
    }

    fn new_rule(&mut self, alternatives: Option<Alternatives>) -> u32 {
        self.rules.push(alternatives);
        self.named_at.push((String::new(), self.at));
        (self.rules.len() - 1) as u32
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        let at = self.at;
        let name = self.name()?;
        self.skip(false);
        for c in "::=".chars() {
            if !self.eats(c) {
                return Err(self.error("`::=` after the rule's name"));
            }
        }
        self.skip(true);
        let alternatives = self.alternatives(false)?;
        if self.peek().is_some_and(|c| c != '\n' && c != '\r') {
            return Err(self.error("the end of the line, or more of the rule"));
        }
        let id = self.rule_id(name, at);
        self.rules[id as usize] = Some(alternatives);
        Ok(())
    }

    fn alternatives(&mut self, is_nested: bool) -> Result<Alternatives, GrammarError> {
        let mut alternatives = vec![self.sequence(is_nested)?];
        loop {
            // A `|` may open the next line.
            let end = self.at;
            self.skip(true);
            if !self.eats('|') {
                self.at = if is_nested { self.at } else { end };
                return Ok(alternatives);
            }
            self.skip(true);
            alternatives.push(self.sequence(is_nested)?);
        }
    }

    fn sequence(&mut self, is_nested: bool) -> Result<Vec<Element>, GrammarError> {
        let mut sequence = Vec::new();
        loop {
            let at = self.at;
            let mut item = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => vec![self.class()?],
                Some('(') => vec![self.group()?],
                Some('.') => {
                    self.at += 1;
                    vec![self.element_of(vec![(0, 0x10_ffff)])]
                }
                Some(c) if is_name(c) => {
                    let name = self.name()?;
                    let end = self.at;
                    self.skip(false);
                    if self.text[self.at..].starts_with(&[':', ':', '=']) {
                        // The next rule, where an open group or a `|` has led here.
                        self.at = at;
                        return Err(self.error("more of the rule before the next one"));
                    }
                    self.at = end;
                    vec![Element::Rule(self.rule_id(name, at))]
                }
                Some('<' | '!') => vec![self.token()?],
                _ => break,
            };
            self.skip(is_nested);
            while let Some((low, high)) = self.repetition()? {
                item = self.repeated(item, low, high, at)?;
                self.skip(is_nested);
            }
            self.n_elements += item.len();
            sequence.append(&mut item);
            self.check_size(at)?;
        }
        Ok(sequence)
    }

    fn check_size(&self, at: usize) -> Result<(), GrammarError> {
        match self.n_elements > MAX_ELEMENTS {
            true => Err(self.error_at(
                at,
                format!("the grammar has more than {MAX_ELEMENTS} elements when its repetitions are written out"),
            )),
            false => Ok(()),
        }
    }

    fn group(&mut self) -> Result<Element, GrammarError> {
        let open = self.at;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error_at(
                open,
                format!("more than {MAX_DEPTH} groups inside each other"),
            ));
        }
        self.at += 1;
        self.skip(true);
        let alternatives = self.alternatives(true)?;
        self.skip(true);
        if !self.eats(')') {
            return Err(self.error("`)`"));
        }
        self.depth -= 1;
        Ok(Element::Rule(self.new_rule(Some(alternatives))))
    }

    /// `<[12]>`, `<think>`, or one of them behind `!`.
    fn token(&mut self) -> Result<Element, GrammarError> {
        let at = self.at;
        let is_negated = self.eats('!');
        let start = self.at;
        if !self.eats('<') {
            return Err(self.error("a token such as `<[12]>` or `<think>`"));
        }
        let found = if self.eats('[') {
            let number = self.number()?;
            if !(self.eats(']') && self.eats('>')) {
                return Err(self.error("`]>` behind a token's number"));
            }
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            (self.find_token)(TokenName::Number(number))?
        } else {
            while self.peek().is_some_and(|c| c != '>' && c != '\n') {
                self.at += 1;
            }
            if !self.eats('>') {
                return Err(self.error("`>` behind a token's text"));
            }
            let text: String = self.text[start..self.at].iter().collect();
            (self.find_token)(TokenName::Text(&text))?
        };
        self.has_tokens = true;
        match found {
            Some(token) if is_negated => Ok(Element::NotToken(token)),
            Some(token) => Ok(Element::Token(token)),
            None => {
                let name: String = self.text[start..self.at].iter().collect();
                Err(self.error_at(at, format!("the vocabulary has no token `{name}`")))
            }
        }
    }

    fn literal(&mut self) -> Result<Vec<Element>, GrammarError> {
        let open = self.at;
        self.at += 1;
        let mut elements = Vec::new();
        while !self.eats('"') {
            if self.peek().is_none() {
                return Err(self.error_at(open, "this `\"` is never closed"));
            }
            let c = self.character()?;
            elements.push(self.element_of(vec![(c, c)]));
        }
        Ok(elements)
    }

    fn class(&mut self) -> Result<Element, GrammarError> {
        let open = self.at;
        self.at += 1;
        let is_negated = self.eats('^');
        let mut ranges = Vec::new();
        while !self.eats(']') {
            if self.peek().is_none() {
                return Err(self.error_at(open, "this `[` is never closed"));
            }
            let low = self.character()?;
            let is_range = self.peek() == Some('-') && self.text.get(self.at + 1) != Some(&']');
            let mut high = low;
            if is_range {
                self.at += 1;
                if self.peek().is_none() {
                    return Err(self.error_at(open, "this `[` is never closed"));
                }
                high = self.character()?;
            }
            if high < low {
                return Err(self.error_at(open, "a range of this class ends before it begins"));
            }
            ranges.push((low, high));
        }
        let ranges = merged(ranges);
        Ok(self.element_of(match is_negated {
            true => complement(&ranges),
            false => ranges,
        }))
    }

    /// One character, perhaps escaped.
    fn character(&mut self) -> Result<u32, GrammarError> {
        let at = self.at;
        let c = match self.next() {
            Some('\\') => self.next(),
            other => return Ok(other.map_or(0, u32::from)),
        };
        match c {
            Some('n') => Ok(u32::from('\n')),
            Some('r') => Ok(u32::from('\r')),
            Some('t') => Ok(u32::from('\t')),
            Some('x') => self.hexadecimal(at, 2),
            Some('u') => self.hexadecimal(at, 4),
            Some('U') => self.hexadecimal(at, 8),
            Some(c) if c.is_ascii_punctuation() => Ok(u32::from(c)),
            Some(c) => Err(self.error_at(at, format!("the escape `\\{c}` is not known"))),
            None => Err(self.error("a character after `\\`")),
        }
    }

    fn hexadecimal(&mut self, at: usize, n: usize) -> Result<u32, GrammarError> {
        let digits: String = self.text.iter().skip(self.at).take(n).collect();
        let is_whole = digits.len() == n && digits.chars().all(|c| c.is_ascii_hexdigit());
        let value = u32::from_str_radix(&digits, 16).ok().filter(|_| is_whole);
        match value.filter(|&value| char::from_u32(value).is_some()) {
            Some(value) => {
                self.at += n;
                Ok(value)
            }
            None => Err(self.error_at(
                at,
                format!("expected {n} hexadecimal digits of a character"),
            )),
        }
    }

    fn element_of(&mut self, class: Class) -> Element {
        let next = self.classes.len() as u32;
        let id = *self.class_ids.entry(class.clone()).or_insert(next);
        if id == next {
            self.classes.push(class);
        }
        Element::Class(id)
    }

    /// `*`, `+`, `?` or `{m,n}`: least and most.
    fn repetition(&mut self) -> Result<Option<(usize, Option<usize>)>, GrammarError> {
        let found = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => return self.braces().map(Some),
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(found))
    }

    fn braces(&mut self) -> Result<(usize, Option<usize>), GrammarError> {
        let open = self.at;
        self.at += 1;
        self.skip(false);
        let low = self.number()?;
        self.skip(false);
        let mut high = Some(low);
        if self.eats(',') {
            self.skip(false);
            high = match self.peek() {
                Some('}') => None,
                _ => Some(self.number()?),
            };
            self.skip(false);
        }
        if !self.eats('}') {
            return Err(self.error("`}`"));
        }
        match high {
            Some(high) if high < low => {
                Err(self.error_at(open, format!("at least {low} and at most {high} times")))
            }
            high => Ok((low, high)),
        }
    }

    fn number(&mut self) -> Result<usize, GrammarError> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        let digits: String = self.text[start..self.at].iter().collect();
        match digits.parse() {
            Ok(number) => Ok(number),
            Err(_) if digits.is_empty() => Err(self.error("a number")),
            Err(_) => Err(self.error_at(start, "this number is too large")),
        }
    }

    /// `item` at least `low` times and at most `high` times: copies, then nested options or a loop.
    fn repeated(
        &mut self,
        item: Vec<Element>,
        low: usize,
        high: Option<usize>,
        at: usize,
    ) -> Result<Vec<Element>, GrammarError> {
        self.n_elements += low.max(high.unwrap_or(0)).saturating_mul(2);
        self.check_size(at)?;
        let one = match item[..] {
            [one] => one,
            _ => Element::Rule(self.new_rule(Some(vec![item]))),
        };
        let mut elements = vec![one; low];
        match high {
            None => {
                let id = self.new_rule(None);
                self.rules[id as usize] = Some(vec![vec![one, Element::Rule(id)], vec![]]);
                elements.push(Element::Rule(id));
            }
            Some(high) => {
                let mut rest = None;
                for _ in low..high {
                    let mut more = vec![one];
                    more.extend(rest);
                    let id = self.new_rule(Some(vec![more, vec![]]));
                    rest = Some(Element::Rule(id));
                }
                elements.extend(rest);
            }
        }
        Ok(elements)
    }

    fn finish(self) -> Result<Rules, GrammarError> {
        let undefined = self.rules.iter().position(Option::is_none);
        if let Some(id) = undefined {
            let (name, at) = &self.named_at[id];
            return Err(self.error_at(*at, format!("rule `{name}` is not defined")));
        }
        let Some(&root) = self.names.get("root") else {
            let problem = "there is no rule `root`, which a grammar begins with";
            return Err(self.error_at(0, problem));
        };
        let alternatives: Vec<Alternatives> = self.rules.into_iter().flatten().collect();
        if let Some(id) = left_recursive(&alternatives) {
            let named = self.named_at[id].0.clone();
            let rule = match named.is_empty() {
                true => "(a group or repetition)".to_owned(),
                false => named,
            };
            let problem =
                "begins with itself: left recursion can't be followed, write it as a repetition";
            return Err(GrammarError::Rule { rule, problem });
        }
        let mut rules = Rules {
            classes: self.classes,
            root,
            has_tokens: self.has_tokens,
            ..Rules::default()
        };
        for alternatives in alternatives {
            let starts = alternatives.into_iter().map(|sequence| {
                let start = rules.elements.len() as u32;
                rules.elements.extend(sequence);
                rules.elements.push(Element::End);
                start
            });
            let starts = starts.collect();
            rules.rules.push(starts);
        }
        Ok(rules)
    }
}

/// Sorted, without overlaps.
fn merged(mut ranges: Class) -> Class {
    ranges.sort_unstable();
    let mut merged: Class = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match merged.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    merged
}

fn complement(ranges: &Class) -> Class {
    let mut rest = Vec::new();
    let mut low = 0;
    for &(from, to) in ranges {
        if from > low {
            rest.push((low, from - 1));
        }
        low = to + 1;
    }
    if low <= 0x10_ffff {
        rest.push((low, 0x10_ffff));
    }
    rest
}

/// A rule that can come back to itself before any character. A repetition of what may be empty does, too, but as the last thing
/// it does: nothing piles up.
fn left_recursive(rules: &[Alternatives]) -> Option<usize> {
    let mut is_empty = vec![false; rules.len()];
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); rules.len()];
    for (id, alternatives) in rules.iter().enumerate() {
        for element in alternatives.iter().flatten() {
            if let Element::Rule(used) = element {
                users[*used as usize].push(id);
            }
        }
    }
    let can_be_empty = |is_empty: &[bool], id: usize| {
        let skips = |element: &Element| match element {
            Element::Rule(id) => is_empty[*id as usize],
            _ => false,
        };
        rules[id].iter().any(|sequence| sequence.iter().all(skips))
    };
    let mut work: Vec<usize> = (0..rules.len()).collect();
    while let Some(id) = work.pop() {
        if !is_empty[id] && can_be_empty(&is_empty, id) {
            is_empty[id] = true;
            work.extend(&users[id]);
        }
    }
    let firsts: Vec<Vec<usize>> = rules
        .iter()
        .enumerate()
        .map(|(rule, alternatives)| {
            let mut firsts = Vec::new();
            for sequence in alternatives {
                for (place, element) in sequence.iter().enumerate() {
                    let Element::Rule(id) = element else { break };
                    let goes_round =
                        *id as usize == rule && place > 0 && place + 1 == sequence.len();
                    if !goes_round {
                        firsts.push(*id as usize);
                    }
                    if !is_empty[*id as usize] {
                        break;
                    }
                }
            }
            firsts
        })
        .collect();
    cycle(&firsts)
}

/// A node that can reach itself.
fn cycle(edges: &[Vec<usize>]) -> Option<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; edges.len()];
    for start in 0..edges.len() {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::Open;
        let mut path = vec![(start, 0)];
        while let Some((node, place)) = path.last_mut() {
            let Some(&next) = edges[*node].get(*place) else {
                marks[*node] = Mark::Done;
                path.pop();
                continue;
            };
            *place += 1;
            match marks[next] {
                Mark::Open => return Some(next),
                Mark::New => {
                    marks[next] = Mark::Open;
                    path.push((next, 0));
                }
                Mark::Done => {}
            }
        }
    }
    None
}
