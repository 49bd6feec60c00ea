//! llama-server's command line: every flag it ever had, and what becomes of it here.
//!
//! Called under the name `llama-server`, the program takes these flags in place of its own. Rules copied: the last of
//! several wins, `_` stands for `-`, a value may begin with `-`, an unknown flag ends the program with exit code 1. One
//! addition: `--flag=value`.

mod flags;

use std::collections::VecDeque;
use std::fmt::Write;

use crate::host::CpuSet;
use crate::settings::keys;
use crate::settings::{Flags, SettingsError, Source};
use flags::{Action, Arity, FLAGS, Flag};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Serve with these settings.
    Serve(Flags),
    /// Print the list of flags.
    Help,
    /// Print the version.
    Version,
}

/// Why a command line can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgvError {
    /// No version of llama-server has this flag.
    #[error("invalid argument: {0}")]
    Unknown(String),
    /// The value is missing.
    #[error("flag {0} needs a value")]
    NoValue(String),
    /// The value makes no sense.
    #[error("flag {flag} is `{found}`, expected {expected}")]
    Bad {
        /// As typed.
        flag: String,
        /// Its value.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// One of llama-server's flags in a command line of this program's own.
    #[error("{0} is a flag of llama-server's")]
    Foreign(String),
    /// Known, and not offered.
    #[error("flag {flag} can't be used: {why}")]
    Refused {
        /// As typed.
        flag: String,
        /// Why not.
        why: &'static str,
    },
}

impl ArgvError {
    /// What to do next, if there is something.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = "call `bitnet-launch llama-server …` to use llama-server's flags; `bitnet-launch --help` lists this program's own";
        matches!(self, ArgvError::Foreign(_)).then(|| hint.to_owned())
    }
}

/// Reads llama-server's arguments, without the program's name.
///
/// # Errors
/// The first argument that is unknown, incomplete or refused.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Request, ArgvError> {
    let mut args: VecDeque<String> = args.into_iter().collect();
    let mut flags = Flags::default();
    let is_engine = |arg: &String| arg == "--engine" || arg.starts_with("--engine=");
    let for_another = args.iter().any(is_engine);
    // Another engine undoes them itself.
    let mut escapes = !for_another;
    while let Some(typed) = args.pop_front() {
        let (flag, inline) = lookup(&typed)?;
        let name = typed.split('=').next().unwrap_or(&typed).to_owned();
        let value = take_value(flag, &name, inline, &mut args)?;
        match flag.action {
            Action::Help => return Ok(Request::Help),
            Action::Version => return Ok(Request::Version),
            Action::Accept
            | Action::Warn(_)
            | Action::ZeroOrWarn(_)
            | Action::Refuse(_)
            | Action::Escapes(_)
                if for_another =>
            {
                hand_over(name, value, &mut flags);
            }
            Action::Escapes(on) => escapes = on,
            // Another engine knows more kinds.
            Action::Set("spec" | "draft-max") | Action::SetTo("spec", _) if for_another => {
                hand_over(name, value, &mut flags);
            }
            _ => apply(flag, &name, value, &mut flags)?,
        }
    }
    if escapes {
        let texts = flags.values.iter_mut();
        for (_, text, _) in texts.filter(|(key, ..)| ESCAPED.contains(key)) {
            *text = unescaped(text);
        }
    }
    Ok(Request::Serve(flags))
}

/// Settings whose texts may be written with escapes.
const ESCAPED: &[&str] = &["reverse-prompt", "system-prompt"];

/// `\n`, `\r`, `\t`, quotes, backslashes and `\x41`; what is none of these stays as it is.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.strip_prefix('x').and_then(|hex| hex.get(..2));
        let code = code.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let (length, found) = match (after.chars().next(), code) {
            (Some('n'), _) => (1, '\n'),
            (Some('r'), _) => (1, '\r'),
            (Some('t'), _) => (1, '\t'),
            (Some(c @ ('\'' | '"' | '\\')), _) => (1, c),
            (Some('x'), Some(code)) if code.is_ascii() => (3, char::from(code)),
            _ => (0, '\\'),
        };
        out.push(found);
        rest = &after[length..];
    }
    out + rest
}

/// The first argument that is one of llama-server's flags of one dash and several letters, such as `-np`: this program's own
/// command line would read it as `-n p`.
pub(crate) fn short_flag(args: &[std::ffi::OsString]) -> Option<String> {
    let args = args.iter().map_while(|arg| match arg.to_str() {
        Some("--") => None,
        text => Some(text.unwrap_or_default()),
    });
    let is_short = |arg: &&str| arg.len() > 2 && !arg.starts_with("--") && find(arg).is_some();
    args.filter(|arg| arg.starts_with('-'))
        .find(is_short)
        .map(str::to_owned)
}

/// The flag of an argument, and the value behind `=`.
fn lookup(typed: &str) -> Result<(&'static Flag, Option<String>), ArgvError> {
    let unknown = || ArgvError::Unknown(typed.to_owned());
    if let Some(flag) = find(typed) {
        return Ok((flag, None));
    }
    let (name, value) = typed.split_once('=').ok_or_else(unknown)?;
    let flag = find(name)
        .filter(|_| name.starts_with("--"))
        .ok_or_else(unknown)?;
    Ok((flag, Some(value.to_owned())))
}

fn find(name: &str) -> Option<&'static Flag> {
    let name = match name.starts_with("--") {
        true => name.replace('_', "-"),
        false => name.to_owned(),
    };
    FLAGS
        .iter()
        .find(|flag| flag.names.contains(&name.as_str()))
}

fn take_value(
    flag: &Flag,
    name: &str,
    inline: Option<String>,
    args: &mut VecDeque<String>,
) -> Result<Option<String>, ArgvError> {
    if inline.is_some() {
        return match flag.arity {
            Arity::Bare => Err(ArgvError::Bad {
                flag: name.to_owned(),
                found: inline.unwrap_or_default(),
                expected: "no value",
            }),
            _ => Ok(inline),
        };
    }
    match flag.arity {
        Arity::Bare => Ok(None),
        Arity::One => args
            .pop_front()
            .map(Some)
            .ok_or_else(|| ArgvError::NoValue(name.to_owned())),
        Arity::Two => {
            let mut next = || {
                let missing = || ArgvError::NoValue(name.to_owned());
                args.pop_front().ok_or_else(missing)
            };
            let (first, second) = (next()?, next()?);
            Ok(Some(format!("{first}{BETWEEN_TWO}{second}")))
        }
        Arity::OneOf(words) => Ok(match args.front() {
            Some(next) if words.contains(&next.as_str()) => args.pop_front(),
            _ => None,
        }),
    }
}

/// Between the values of a flag with two: a character nobody types.
const BETWEEN_TWO: char = '\u{1e}';

/// What means nothing here may mean something to another engine.
fn hand_over(name: String, value: Option<String>, flags: &mut Flags) {
    let value = value.unwrap_or_default();
    let values = value.split(BETWEEN_TWO).filter(|value| !value.is_empty());
    for word in std::iter::once(name.as_str()).chain(values) {
        let word = word.to_owned();
        let flag = "--engine-arg".to_owned();
        flags.values.push(("engine-arg", word, flag));
    }
}

fn apply(
    flag: &Flag,
    name: &str,
    value: Option<String>,
    flags: &mut Flags,
) -> Result<(), ArgvError> {
    let bad = |found: &str, expected| ArgvError::Bad {
        flag: name.to_owned(),
        found: found.to_owned(),
        expected,
    };
    let mut set =
        |key: &'static str, value: String| flags.values.push((key, value, name.to_owned()));
    match flag.action {
        // What a bare `--numa` once meant.
        Action::Set("numa") => set("numa", value.unwrap_or_else(|| "distribute".to_owned())),
        Action::Set(key) => set(key, value.unwrap_or_else(|| "on".to_owned())),
        Action::SetTo(key, to) => set(key, to.to_owned()),
        Action::CpuMask => {
            let mask = value.unwrap_or_default();
            let list = cpus_of_mask(&mask)
                .ok_or_else(|| bad(&mask, "a hexadecimal mask of CPUs such as `0xf`"))?;
            set("cpu-affinity", list);
        }
        Action::ZeroOrWarn(why) => {
            if value.as_deref().is_none_or(|value| value != "0") {
                flags.warnings.push(format!("{name} has no effect: {why}"));
            }
        }
        Action::Warn(why) => flags.warnings.push(format!("{name} has no effect: {why}")),
        Action::Refuse(why) => {
            let flag = name.to_owned();
            return Err(ArgvError::Refused { flag, why });
        }
        Action::Offline => flags.offline = true,
        Action::Accept | Action::Escapes(_) | Action::Help | Action::Version => {}
    }
    Ok(())
}

/// CPUs of a hexadecimal mask, as a list; the lowest bit is CPU 0.
fn cpus_of_mask(mask: &str) -> Option<String> {
    let digits = mask.strip_prefix("0x").unwrap_or(mask);
    let nibbles: Option<Vec<u32>> = digits
        .chars()
        .rev()
        .map(|digit| digit.to_digit(16))
        .collect();
    let cpus: CpuSet = nibbles?
        .into_iter()
        .enumerate()
        .flat_map(|(i, nibble)| {
            (0..4)
                .filter(move |bit| nibble >> bit & 1 == 1)
                .map(move |bit| 4 * i + bit)
        })
        .collect();
    (!cpus.is_empty()).then(|| cpus.to_string())
}

/// Judges a `LLAMA_ARG_…` variable that is not a setting of ours, as its flag would be.
///
/// # Errors
/// When its flag is one that is refused.
pub(crate) fn judge_variable(
    name: &str,
    value: &str,
    warnings: &mut Vec<String>,
) -> Result<(), SettingsError> {
    let Some(flag) = FLAGS.iter().find(|flag| flag.env.contains(&name)) else {
        warnings.push(format!("environment {name} is not known and has no effect"));
        return Ok(());
    };
    match flag.action {
        Action::Refuse(why) => {
            let source_ = Source::Environment(name.to_owned());
            return Err(SettingsError::Refused { source_, why });
        }
        Action::ZeroOrWarn(_) if value == "0" => {}
        Action::Warn(why) | Action::ZeroOrWarn(why) => {
            warnings.push(format!("environment {name} has no effect: {why}"));
        }
        _ => {}
    }
    Ok(())
}

/// The list of flags for `--help`.
pub(crate) fn help() -> String {
    let mut text =
        "Usage: llama-server [flags]\n\nFlags of llama-server, and what they do here:\n".to_owned();
    for flag in FLAGS {
        let names = flag.names.join(", ");
        let what = match flag.action {
            Action::Set(key) | Action::SetTo(key, _) => {
                keys::find(key).map_or("", |key| key.help).to_owned()
            }
            Action::CpuMask => "CPUs to pin threads to, as a hexadecimal mask".to_owned(),
            Action::Help => "Print this list".to_owned(),
            Action::Version => "Print the version".to_owned(),
            Action::Offline => "Nothing is downloaded for -hf".to_owned(),
            Action::Accept => "Accepted; nothing to do here".to_owned(),
            Action::Escapes(true) => "Read `\\n` and the like in -r and -p; the default".to_owned(),
            Action::Escapes(false) => "Leave them as they are".to_owned(),
            Action::Warn(why) | Action::ZeroOrWarn(why) => format!("No effect: {why}"),
            Action::Refuse(why) => format!("Refused: {why}"),
        };
        let value = match flag.arity {
            Arity::Bare => String::new(),
            Arity::One => " VALUE".to_owned(),
            Arity::Two => " VALUE VALUE".to_owned(),
            Arity::OneOf(words) => format!(" [{}]", words.join("|")),
        };
        let _ = writeln!(text, "  {names}{value}\n      {what}{}", variables(flag));
    }
    text.push_str("\n`bitnet-launch --help` shows this program's own flags.\n");
    text
}

fn variables(flag: &Flag) -> String {
    let of_key = match flag.action {
        Action::Set(key) => keys::find(key).map_or(&[][..], |key| key.env),
        _ => &[],
    };
    let names: Vec<&str> = of_key.iter().chain(flag.env).copied().collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(" [env: {}]", names.join(", ")),
    }
}

#[cfg(test)]
mod tests;
