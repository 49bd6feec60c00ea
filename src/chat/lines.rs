//! Lines that somebody types or pipes in; a `\` at the end of one joins the next.

use std::io::BufRead;

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};

/// What came.
pub(super) enum Line {
    /// A line, or several joined ones.
    Text(String),
    /// Ctrl-C while typing.
    Interrupted,
    /// End of the input.
    End,
}

/// Where they come from.
pub(super) enum Lines {
    /// An editor with a history that lives as long as the program.
    Terminal(Box<Editor<(), MemHistory>>),
    /// Anything else.
    Pipe,
}

impl Lines {
    /// # Errors
    /// When the terminal can't be used.
    pub(super) fn open(terminal: bool) -> anyhow::Result<Lines> {
        if !terminal {
            return Ok(Lines::Pipe);
        }
        let editor = Editor::with_history(Config::default(), MemHistory::new());
        Ok(Lines::Terminal(Box::new(
            editor.context("cannot use the terminal")?,
        )))
    }

    /// The next one; waits for it.
    ///
    /// # Errors
    /// When the input can't be read.
    pub(super) fn next(&mut self) -> anyhow::Result<Line> {
        let mut text = String::new();
        loop {
            let line = match self.one(text.is_empty())? {
                Line::Text(line) => line,
                Line::End if !text.is_empty() => return Ok(Line::Text(text)),
                other => return Ok(other),
            };
            match line.strip_suffix('\\') {
                Some(begun) => {
                    text.push_str(begun);
                    text.push('\n');
                }
                None => {
                    text.push_str(&line);
                    if let Lines::Terminal(editor) = self {
                        let _ = editor.add_history_entry(text.as_str());
                    }
                    return Ok(Line::Text(text));
                }
            }
        }
    }

    fn one(&mut self, first: bool) -> anyhow::Result<Line> {
        match self {
            Lines::Terminal(editor) => match editor.readline(if first { "> " } else { ". " }) {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Lines::Pipe => {
                let mut bytes = Vec::new();
                let read = std::io::stdin().lock().read_until(b'\n', &mut bytes);
                if read.context("cannot read standard input")? == 0 {
                    return Ok(Line::End);
                }
                let line = String::from_utf8_lossy(&bytes);
                Ok(Line::Text(line.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }
}
