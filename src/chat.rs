//! `bitnet-launch chat`: a conversation in the terminal, with a running server or one started for as long as it lasts.
//!
//! Answers go to standard output, everything else to standard error. Ctrl-C stops an answer; what came of it stays in the
//! history. Without a terminal every line of standard input is a message.

mod client;
mod lines;
pub(crate) mod server;
mod session;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::cli::ChatArgs;
use crate::interrupt::Interrupt;
use crate::models::cache::write_whole;
use crate::models::locate::{Found, locate, offer};
use crate::settings::Environment;
use client::{Answer, Client};
use lines::{Line, Lines};
use server::OwnServer;
use session::{Input, Session};

/// Talks until the input ends.
///
/// # Errors
/// When there is no server to talk to; without a terminal, when an answer fails.
pub(crate) fn run(args: ChatArgs, env: &Environment) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.model
        && !Path::new(name).exists()
        && locate(name, env) == Found::NotHere
    {
        offer(name, env)?;
    }
    let interrupt = Interrupt::watch()?;
    let own = match &args.url {
        Some(_) => None,
        None => Some(OwnServer::start(&args, interrupt)?),
    };
    let (url, key) = match &own {
        Some(own) => (own.url(), Some(own.key().to_owned())),
        None => {
            let url = args.url.clone().unwrap_or_default();
            let key = args
                .api_key
                .clone()
                .or_else(|| env.get("LLAMA_API_KEY").cloned());
            (url, key.filter(|key| !key.is_empty()))
        }
    };
    let client = Client::new(&url, key);
    if own.is_none() {
        client.check()?;
    }
    let mut chat = Chat {
        session: Session::new(args.system.clone()),
        client,
        args,
        interrupt,
        terminal: std::io::stdin().is_terminal(),
    };
    let result = chat.talk();
    drop(own);
    result
}

struct Chat {
    session: Session,
    client: Client,
    args: ChatArgs,
    interrupt: &'static Interrupt,
    terminal: bool,
}

impl Chat {
    fn talk(&mut self) -> anyhow::Result<ExitCode> {
        let mut lines = Lines::open(self.terminal)?;
        if self.terminal {
            eprintln!(
                "Type a message; /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends."
            );
        }
        loop {
            self.interrupt.hold(false);
            let line = match lines.next()? {
                Line::Text(text) => text,
                Line::Interrupted => {
                    eprintln!("(/exit or Ctrl-D ends)");
                    continue;
                }
                Line::End => return Ok(ExitCode::SUCCESS),
            };
            self.interrupt.hold(true);
            match session::read(&line) {
                Ok(Input::Nothing) => {}
                Ok(Input::Exit) => return Ok(ExitCode::SUCCESS),
                Ok(input) => {
                    if let Err(error) = self.obey(input) {
                        if !self.terminal {
                            return Err(error);
                        }
                        eprintln!("error: {error:#}");
                    }
                }
                Err(what) if self.terminal => eprintln!("error: {what}"),
                Err(what) => bail!(what),
            }
        }
    }

    fn obey(&mut self, input: Input) -> anyhow::Result<()> {
        match input {
            Input::Nothing | Input::Exit => {}
            Input::Help => eprint!("{}", session::HELP),
            Input::Clear => self.session.clear(),
            Input::System(None) => match &self.session.system {
                Some(text) => eprintln!("system: {text}"),
                None => eprintln!("no system prompt"),
            },
            Input::System(text) => self.session.system = text.filter(|text| text != "-"),
            Input::Save(path) => {
                write_whole(path.as_ref(), &self.session.transcript(&path))
                    .with_context(|| format!("cannot write `{path}`"))?;
                eprintln!("saved to {path}");
            }
            Input::Regenerate => {
                if !self.session.take_back_answer() {
                    bail!("there is no answer to do again");
                }
                self.answer()?;
            }
            Input::Message(text) => {
                self.session.say(text);
                self.answer()?;
            }
        }
        Ok(())
    }

    /// Asks for an answer and prints it as it comes. What fails before the first character leaves the history as it was.
    fn answer(&mut self) -> anyhow::Result<()> {
        let body = self.session.request(&self.args);
        let mut stdout = std::io::stdout().lock();
        let shown = |text: &str| -> std::io::Result<()> {
            stdout.write_all(text.as_bytes())?;
            stdout.flush()
        };
        let Answer {
            text,
            failure,
            remark,
        } = self.client.answer(body, self.interrupt, shown)?;
        if !text.is_empty() {
            if !text.ends_with('\n') {
                writeln!(stdout)?;
            }
            self.session.answered(text);
        } else if failure.is_some() {
            self.session.take_back_message();
        } else {
            writeln!(stdout)?;
            self.session.answered(text);
        }
        if let Some(failure) = failure {
            bail!(failure);
        }
        if let Some(remark) = remark.filter(|_| self.terminal) {
            eprintln!("[{remark}]");
        }
        Ok(())
    }
}
