//! Follows a GBNF grammar byte by byte: a pushdown automaton whose sets of stacks become states, made as they come up.
//!
//! A stack is what must follow: an element, and the stack below it; equal stacks are one number. A state is the set of
//! stacks that the bytes so far allow, each with a character class on top, and how much of a UTF-8 character has been seen.
//! Transitions are kept, so that a walk over a vocabulary mostly looks them up. Right recursion takes no stack.

use std::collections::{HashMap, HashSet};

use llguidance::toktrie::Recognizer;

use super::gbnf::{Class, Element, Rules};
use super::{GrammarError, Vocabulary};
use crate::sampler::TokenSet;

/// Stacks in one state, at most: how many readings of the same text are followed.
const MAX_STACKS: usize = 4096;
/// Steps inside rules for one transition, at most.
const MAX_STEPS: usize = 100_000;
/// States beyond which all but the current one are forgotten between two tokens, and beyond which a walk is given up.
const MANY_STATES: usize = 8192;
const MAX_STATES: usize = 65_536;
/// Stacks beyond which the same happens.
const MANY_NODES: usize = 1 << 18;
const MAX_NODES: usize = 1 << 21;
/// Token sets kept for states that come back.
const KEPT_SETS: usize = 64;

/// The empty stack: nothing must follow.
const BOTTOM: u32 = 0;
const UNKNOWN: u32 = u32::MAX;
const DEAD: u32 = u32::MAX - 1;

/// An answer's way through a grammar.
#[derive(Clone)]
pub(super) struct Pushdown {
    rules: Rules,
    tables: Tables,
    state: u32,
}

#[derive(Clone, Default)]
struct Tables {
    /// By stack: the element on top, and the stack below; the first is [`BOTTOM`].
    nodes: Vec<(u32, u32)>,
    node_ids: HashMap<(u32, u32), u32>,
    states: Vec<State>,
    state_ids: HashMap<State, u32>,
    /// `[states, 256]`
    next: Vec<[u32; 256]>,
    sets: HashMap<u32, TokenSet>,
    /// Why the last walk is worth nothing.
    too_much: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// Ascending.
    stacks: Vec<u32>,
    partial: Partial,
}

/// The beginning of a UTF-8 character.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Partial {
    value: u32,
    /// Bytes that must follow; 0: between characters.
    missing: u32,
    /// The least character of this length.
    least: u32,
}

impl Pushdown {
    pub(super) fn new(rules: Rules) -> Result<Self, GrammarError> {
        let mut tables = Tables {
            nodes: vec![(u32::MAX, BOTTOM)],
            ..Tables::default()
        };
        let starts = rules.rules[rules.root as usize]
            .iter()
            .map(|&start| (start, BOTTOM));
        let stacks = tables.expand(&rules, starts.collect());
        let state = tables.state(State {
            stacks,
            partial: Partial::default(),
        });
        tables.check()?;
        Ok(Pushdown {
            rules,
            tables,
            state,
        })
    }

    /// Whether the text may end here.
    pub(super) fn may_end(&self) -> bool {
        let state = &self.tables.states[self.state as usize];
        state.partial.missing == 0 && state.stacks.first() == Some(&BOTTOM)
    }

    /// Whether a token may come, by what it adds to the text or as a whole.
    pub(super) fn allows_token(&mut self, token: u32, text: &[u8]) -> Result<bool, GrammarError> {
        Ok(self.after_token(token, text)? != DEAD)
    }

    /// Goes on; false when the token is not allowed.
    pub(super) fn accept_token(&mut self, token: u32, text: &[u8]) -> Result<bool, GrammarError> {
        let after = self.after_token(token, text)?;
        Ok(self.go_to(after))
    }

    /// Goes on; false when the bytes are not allowed.
    pub(super) fn accept(&mut self, bytes: &[u8]) -> Result<bool, GrammarError> {
        let after = self.after(bytes)?;
        Ok(self.go_to(after))
    }

    fn go_to(&mut self, after: u32) -> bool {
        if after == DEAD {
            return false;
        }
        self.state = after;
        if self.tables.states.len() > MANY_STATES || self.tables.nodes.len() > MANY_NODES {
            self.forget();
        }
        true
    }

    fn after_token(&mut self, token: u32, text: &[u8]) -> Result<u32, GrammarError> {
        let by_text = match text.is_empty() {
            true => DEAD,
            false => self.after(text)?,
        };
        if !self.rules.has_tokens {
            return Ok(by_text);
        }
        let after = self
            .tables
            .step_token(&self.rules, self.state, token, by_text);
        self.tables.check()?;
        Ok(after)
    }

    fn after(&mut self, bytes: &[u8]) -> Result<u32, GrammarError> {
        let mut state = self.state;
        for &byte in bytes {
            state = self.tables.step(&self.rules, state, byte);
            if state == DEAD {
                break;
            }
        }
        self.tables.check()?;
        Ok(state)
    }

    /// The tokens whose bytes are allowed.
    pub(super) fn allowed(&mut self, vocabulary: &Vocabulary) -> Result<TokenSet, GrammarError> {
        if let Some(set) = self.tables.sets.get(&self.state) {
            return Ok(set.clone());
        }
        let trie = vocabulary.trie();
        let mut found = trie.alloc_token_set();
        let mut walk = Walk {
            rules: &self.rules,
            tables: &mut self.tables,
            path: vec![self.state],
        };
        trie.add_bias(&mut walk, &mut found, &[]);
        self.tables.check()?;
        let mut set = vocabulary.set_of(&found);
        for element in self.tables.tokens_on_top(&self.rules, self.state) {
            match element {
                Element::Token(token) => set.set(token, true),
                Element::NotToken(other) => {
                    let n_vocab = vocabulary.n_vocab() as u32;
                    (0..n_vocab)
                        .filter(|it| *it != other)
                        .for_each(|it| set.set(it, true));
                }
                _ => {}
            }
        }
        if self.tables.sets.len() >= KEPT_SETS {
            self.tables.sets.clear();
        }
        self.tables.sets.insert(self.state, set.clone());
        Ok(set)
    }

    /// Keeps the current state only.
    fn forget(&mut self) {
        let old = std::mem::take(&mut self.tables);
        let State { stacks, partial } = &old.states[self.state as usize];
        let tables = &mut self.tables;
        tables.nodes.push((u32::MAX, BOTTOM));
        let mut kept: Vec<u32> = stacks
            .iter()
            .map(|&stack| {
                let mut elements = Vec::new();
                let mut at = stack;
                while at != BOTTOM {
                    let (element, below) = old.nodes[at as usize];
                    elements.push(element);
                    at = below;
                }
                let push = |below, &element: &u32| tables.node(element, below);
                elements.iter().rev().fold(BOTTOM, push)
            })
            .collect();
        kept.sort_unstable();
        self.state = tables.state(State {
            stacks: kept,
            partial: *partial,
        });
    }
}

impl Tables {
    fn check(&mut self) -> Result<(), GrammarError> {
        match self.too_much.take() {
            Some(what) => Err(GrammarError::TooMuch(what.to_owned())),
            None => Ok(()),
        }
    }

    fn node(&mut self, element: u32, below: u32) -> u32 {
        let next = self.nodes.len() as u32;
        let id = *self.node_ids.entry((element, below)).or_insert(next);
        if id == next {
            self.nodes.push((element, below));
        }
        id
    }

    fn state(&mut self, state: State) -> u32 {
        if let Some(&id) = self.state_ids.get(&state) {
            return id;
        }
        let id = self.states.len() as u32;
        self.states.push(state.clone());
        self.state_ids.insert(state, id);
        self.next.push([UNKNOWN; 256]);
        id
    }

    /// The stacks with a class on top, and the empty one, that (element, stack below) lead to; ascending.
    fn expand(&mut self, rules: &Rules, mut work: Vec<(u32, u32)>) -> Vec<u32> {
        let mut seen: HashSet<(u32, u32)> = HashSet::new();
        let mut stacks = Vec::new();
        while let Some((at, below)) = work.pop() {
            if !seen.insert((at, below)) {
                continue;
            }
            if seen.len() > MAX_STEPS || self.nodes.len() > MAX_NODES {
                self.too_much = Some("it has too many ways to go on");
                return Vec::new();
            }
            match rules.elements[at as usize] {
                Element::End if below == BOTTOM => stacks.push(BOTTOM),
                Element::End => work.push(self.nodes[below as usize]),
                Element::Class(_) | Element::Token(_) | Element::NotToken(_) => {
                    stacks.push(self.node(at, below));
                }
                Element::Rule(rule) => {
                    let is_last = rules.elements[at as usize + 1] == Element::End;
                    let below = match is_last {
                        true => below,
                        false => self.node(at + 1, below),
                    };
                    let starts = &rules.rules[rule as usize];
                    work.extend(starts.iter().map(|&start| (start, below)));
                }
            }
        }
        stacks.sort_unstable();
        stacks.dedup();
        if stacks.len() > MAX_STACKS {
            self.too_much = Some("the same text can be read in too many ways");
            stacks.clear();
        }
        stacks
    }

    /// The elements on top of a state's stacks that are tokens; none in the middle of a character.
    fn tokens_on_top(&self, rules: &Rules, state: u32) -> Vec<Element> {
        let State { stacks, partial } = &self.states[state as usize];
        if !rules.has_tokens || partial.missing > 0 {
            return Vec::new();
        }
        let on_top = stacks.iter().filter_map(|&stack| {
            let element = rules.elements.get(self.nodes[stack as usize].0 as usize)?;
            matches!(element, Element::Token(_) | Element::NotToken(_)).then_some(*element)
        });
        on_top.collect()
    }

    /// The state behind a token: what it means as a whole, and `by_text`. Where its text ends inside a character, the whole counts.
    fn step_token(&mut self, rules: &Rules, state: u32, token: u32, by_text: u32) -> u32 {
        let State { stacks, partial } = &self.states[state as usize];
        if partial.missing > 0 {
            return by_text;
        }
        let is_meant = |at: u32| match rules.elements.get(at as usize) {
            Some(Element::Token(it)) => *it == token,
            Some(Element::NotToken(it)) => *it != token,
            _ => false,
        };
        let on_top = stacks.iter().map(|&stack| self.nodes[stack as usize]);
        let after: Vec<(u32, u32)> = on_top
            .filter(|(at, _)| is_meant(*at))
            .map(|(at, below)| (at + 1, below))
            .collect();
        if after.is_empty() {
            return by_text;
        }
        let mut stacks = self.expand(rules, after);
        if let Some(state) = self.states.get(by_text as usize)
            && state.partial.missing == 0
        {
            stacks.extend(&state.stacks);
            stacks.sort_unstable();
            stacks.dedup();
        }
        let partial = Partial::default();
        self.state(State { stacks, partial })
    }

    fn step(&mut self, rules: &Rules, state: u32, byte: u8) -> u32 {
        let known = self.next[state as usize][usize::from(byte)];
        if known != UNKNOWN {
            return known;
        }
        if self.states.len() > MAX_STATES {
            self.too_much = Some("it has too many states");
        }
        if self.too_much.is_some() {
            return DEAD;
        }
        let found = self.find_step(rules, state, byte);
        if self.too_much.is_none() {
            self.next[state as usize][usize::from(byte)] = found;
        }
        found
    }

    fn find_step(&mut self, rules: &Rules, state: u32, byte: u8) -> u32 {
        let Some(partial) = self.states[state as usize].partial.with(byte) else {
            return DEAD;
        };
        let (low, high) = partial.range();
        let on_top = |tables: &Tables, stack: u32| {
            let (at, below) = tables.nodes[stack as usize];
            match rules.elements.get(at as usize) {
                Some(Element::Class(class)) => Some((&rules.classes[*class as usize], at, below)),
                _ => None,
            }
        };
        let matching: Vec<u32> = self.states[state as usize]
            .stacks
            .iter()
            .copied()
            .filter(|&stack| on_top(self, stack).is_some_and(|(class, ..)| meets(class, low, high)))
            .collect();
        let stacks = match partial.missing {
            0 => {
                let after = matching.iter().map(|&stack| {
                    let (at, below) = self.nodes[stack as usize];
                    (at + 1, below)
                });
                let after = after.collect();
                self.expand(rules, after)
            }
            _ => matching,
        };
        let partial = if partial.missing == 0 {
            Partial::default()
        } else {
            partial
        };
        match stacks.is_empty() {
            true => DEAD,
            false => self.state(State { stacks, partial }),
        }
    }
}

/// Whether the class has a character from `low` to `high`.
fn meets(class: &Class, low: u32, high: u32) -> bool {
    let first = class.partition_point(|range| range.1 < low);
    class.get(first).is_some_and(|range| range.0 <= high)
}

impl Partial {
    /// With one more byte; `None`: not UTF-8.
    fn with(self, byte: u8) -> Option<Partial> {
        let byte_value = u32::from(byte);
        let of = |value, missing, least| Partial {
            value,
            missing,
            least,
        };
        if self.missing > 0 {
            let value = self.value << 6 | byte_value & 0x3f;
            let partial = of(value, self.missing - 1, self.least);
            let (low, high) = partial.range();
            let is_surrogate = low >= 0xd800 && high <= 0xdfff;
            let fits = byte & 0xc0 == 0x80 && low <= high && low <= 0x10_ffff && !is_surrogate;
            return fits.then_some(partial);
        }
        match byte {
            0..0x80 => Some(of(byte_value, 0, 0)),
            0xc2..0xe0 => Some(of(byte_value & 0x1f, 1, 0x80)),
            0xe0..0xf0 => Some(of(byte_value & 0x0f, 2, 0x800)),
            0xf0..0xf5 => Some(of(byte_value & 0x07, 3, 0x1_0000)),
            _ => None,
        }
    }

    /// The characters it can become; none when the first is greater than the last.
    fn range(self) -> (u32, u32) {
        let low = self.value << (6 * self.missing);
        let high = low | ((1 << (6 * self.missing)) - 1);
        (low.max(self.least), high)
    }
}

/// A walk over the trie of a vocabulary.
struct Walk<'a> {
    rules: &'a Rules,
    tables: &'a mut Tables,
    path: Vec<u32>,
}

impl Recognizer for Walk<'_> {
    fn pop_bytes(&mut self, num: usize) {
        self.path.truncate(self.path.len() - num);
    }

    fn collapse(&mut self) {
        self.path.drain(..self.path.len() - 1);
    }

    fn trie_finished(&mut self) {
        self.path.truncate(1);
    }

    fn try_push_byte(&mut self, byte: u8) -> bool {
        let state = self.path[self.path.len() - 1];
        let next = self.tables.step(self.rules, state, byte);
        if next != DEAD {
            self.path.push(next);
        }
        next != DEAD
    }
}
