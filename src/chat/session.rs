//! The conversation so far, and what a typed line asks for. Pure.

use serde_json::{Value, json};

use crate::cli::ChatArgs;

/// What the commands do.
pub(super) const HELP: &str = "\
/help            this list
/clear           forget the conversation; the system prompt stays
/system [TEXT]   show or set the system prompt; `/system -` takes it away
/regen           answer the last message again
/save FILE       write the conversation: as JSON if FILE ends in .json, else as text
/exit            end (also Ctrl-D)
A line that ends in \\ goes on in the next one; //text sends `/text`.
";

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// An empty line.
    Nothing,
    /// To be answered.
    Message(String),
    /// The commands.
    Help,
    /// Forget all messages.
    Clear,
    /// Show the system prompt, or set it.
    System(Option<String>),
    /// Answer once more.
    Regenerate,
    /// Write to this file.
    Save(String),
    /// End.
    Exit,
}

/// Reads one line.
///
/// # Errors
/// A command that there isn't, or that lacks something, in words.
pub(super) fn read(line: &str) -> Result<Input, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Input::Nothing);
    }
    let Some(command) = line.strip_prefix('/') else {
        return Ok(Input::Message(line.to_owned()));
    };
    if command.starts_with('/') {
        return Ok(Input::Message(command.to_owned()));
    }
    let (name, rest) = command
        .split_once(char::is_whitespace)
        .unwrap_or((command, ""));
    let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
    match (name, rest) {
        ("help" | "?", None) => Ok(Input::Help),
        ("clear" | "reset", None) => Ok(Input::Clear),
        ("system", text) => Ok(Input::System(text.map(str::to_owned))),
        ("regen", None) => Ok(Input::Regenerate),
        ("save", Some(file)) => Ok(Input::Save(file.to_owned())),
        ("save", None) => Err("found `/save`, expected `/save FILE`".to_owned()),
        ("exit" | "quit" | "bye", None) => Ok(Input::Exit),
        _ => Err(format!(
            "found `{line}`, expected one of /help, /clear, /system, /regen, /save FILE, /exit; `/{line}` sends it as it is"
        )),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// The conversation.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Stands before all messages.
    pub system: Option<String>,
    messages: Vec<(Role, String)>,
}

impl Session {
    /// An empty one.
    pub(super) fn new(system: Option<String>) -> Session {
        Session {
            system,
            messages: Vec::new(),
        }
    }

    /// The user said something.
    pub(super) fn say(&mut self, text: String) {
        self.messages.push((Role::User, text));
    }

    /// The model answered, perhaps in part.
    pub(super) fn answered(&mut self, text: String) {
        self.messages.push((Role::Assistant, text));
    }

    /// Forgets all messages.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }

    /// Takes back the last answer, if it is last; whether there is a message to answer now.
    pub(super) fn take_back_answer(&mut self) -> bool {
        if self
            .messages
            .last()
            .is_some_and(|(role, _)| *role == Role::Assistant)
        {
            self.messages.pop();
        }
        !self.messages.is_empty()
    }

    /// Takes back the last message, which nobody answered.
    pub(super) fn take_back_message(&mut self) {
        if self
            .messages
            .last()
            .is_some_and(|(role, _)| *role == Role::User)
        {
            self.messages.pop();
        }
    }

    fn all(&self) -> Vec<(&'static str, &str)> {
        let system = self.system.iter().map(|text| ("system", text.as_str()));
        let messages = self.messages.iter();
        system
            .chain(messages.map(|(role, text)| (role.name(), text.as_str())))
            .collect()
    }

    /// The body that asks for an answer.
    pub(super) fn request(&self, args: &ChatArgs) -> Value {
        let mut body = json!({"messages": self.messages_json(), "stream": true});
        if let Some(n) = args.max_tokens {
            body["max_tokens"] = json!(n);
        }
        if let Some(temperature) = args.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(seed) = args.seed {
            body["seed"] = json!(seed);
        }
        body
    }

    fn messages_json(&self) -> Value {
        let message = |(role, text)| json!({"role": role, "content": text});
        self.all().into_iter().map(message).collect()
    }

    /// The conversation as a file with this name holds it.
    pub(super) fn transcript(&self, path: &str) -> String {
        if path.ends_with(".json") {
            return format!("{:#}\n", self.messages_json());
        }
        let paragraph = |(role, text): (&str, &str)| format!("{role}: {text}\n");
        self.all()
            .into_iter()
            .map(paragraph)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines() {
        for (line, wanted) in [
            ("  ", Input::Nothing),
            (" hello ", Input::Message("hello".into())),
            ("//etc is a path", Input::Message("/etc is a path".into())),
            ("/help", Input::Help),
            ("/clear", Input::Clear),
            ("/system", Input::System(None)),
            ("/system be brief", Input::System(Some("be brief".into()))),
            ("/regen", Input::Regenerate),
            ("/save a b.txt", Input::Save("a b.txt".into())),
            ("/exit", Input::Exit),
        ] {
            assert_eq!(read(line).unwrap(), wanted, "{line}");
        }
        for line in ["/save", "/exit now", "/nonsense", "/"] {
            assert!(read(line).is_err(), "{line}");
        }
    }

    #[test]
    fn keeps_the_history() {
        let mut session = Session::new(Some("be brief".into()));
        session.say("hi".into());
        session.answered("hello".into());
        session.say("why?".into());
        let roles = |session: &Session| {
            let messages = session.messages_json();
            let role = |message: &Value| message["role"].as_str().unwrap().to_owned();
            messages
                .as_array()
                .unwrap()
                .iter()
                .map(role)
                .collect::<Vec<_>>()
        };
        assert_eq!(roles(&session), ["system", "user", "assistant", "user"]);
        session.take_back_message();
        assert!(session.take_back_answer());
        assert_eq!(roles(&session), ["system", "user"]);
        assert_eq!(
            session.transcript("x.txt"),
            "system: be brief\n\nuser: hi\n"
        );
        let json: Value = serde_json::from_str(&session.transcript("x.json")).unwrap();
        assert_eq!(json[1]["content"], "hi");
        session.clear();
        assert!(!session.take_back_answer());
        assert_eq!(roles(&session), ["system"]);
    }
}
