//! `bitnet-launch models`: the catalogue, with what fits into this machine's memory and what is here already.

use std::io::Write;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::cache::Cache;
use super::catalogue::{self, MODELS, Model};
use super::error::PullError;
use super::locate::{Found, locate};
use super::size;
use crate::cli::ModelsArgs;
use crate::host::Host;
use crate::plan;
use crate::settings::Environment;

fn print(text: &str) -> anyhow::Result<ExitCode> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// One model on one machine.
struct Row {
    model: &'static Model,
    /// Whether its least memory is there; `None` if one of the two is unknown.
    fits: Option<bool>,
    here: Found,
}

/// Prints a table, or JSON.
///
/// # Errors
/// When it can't be printed; a reader that has seen enough is none.
pub(crate) fn run(args: &ModelsArgs, env: &Environment) -> anyhow::Result<ExitCode> {
    let budget = plan::budget(&Host::detect());
    let budget_bytes = budget.as_ref().map(|budget| budget.bytes);
    let wanted = args.name.as_deref().map(known).transpose()?;
    let rows: Vec<Row> = MODELS
        .iter()
        .filter(|m| wanted.is_none_or(|wanted| wanted.name == m.name))
        .map(|m| Row::new(m, budget_bytes, env))
        .collect();
    if args.json {
        let all: Vec<Value> = rows.iter().map(Row::json).collect();
        let out = json!({
            "memory_budget_bytes": budget_bytes,
            "cache": Cache::from_env(env).map(|cache| cache.root),
            "models": all,
        });
        return print(&format!("{out:#}"));
    }
    match (wanted, rows.first()) {
        (Some(_), Some(row)) => print(&row.details()),
        _ => print(&table(&rows, budget_bytes)),
    }
}

fn known(name: &str) -> Result<&'static Model, PullError> {
    let found = catalogue::find(name).or_else(|| catalogue::by_repo(name));
    found.ok_or_else(|| PullError::Reference {
        found: name.to_owned(),
        expected: "a name or repository that `bitnet-launch models` lists".to_owned(),
    })
}

impl Row {
    fn new(model: &'static Model, budget_bytes: Option<u64>, env: &Environment) -> Row {
        let fits = model
            .least_memory_bytes()
            .zip(budget_bytes)
            .map(|(least, budget)| least <= budget);
        Row {
            model,
            fits,
            here: locate(model.name, env),
        }
    }

    fn here(&self) -> &'static str {
        match (&self.here, self.model.gguf.is_some()) {
            (Found::File(_), _) => "here",
            (Found::ToConvert(_), _) => "here, to convert",
            (_, true) => "to pull",
            (_, false) => "to pull and convert",
        }
    }

    fn cells(&self) -> [String; 7] {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), size);
        let fits = match self.fits {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        [
            self.model.name.to_owned(),
            bytes(self.model.file_bytes()),
            bytes(self.model.least_memory_bytes()),
            fits.to_owned(),
            self.here().to_owned(),
            self.model.licence.unwrap_or("?").to_owned(),
            self.model.about.to_owned(),
        ]
    }

    /// One line for each thing that is known.
    fn details(&self) -> String {
        let model = self.model;
        let unknown = || "unknown".to_owned();
        let bytes = |bytes: Option<u64>| bytes.map_or_else(unknown, size);
        let fits = match self.fits {
            Some(true) => ", this machine has it",
            Some(false) => ", this machine doesn't have it",
            None => "",
        };
        let mut lines = vec![format!("{}: {}", model.name, model.about)];
        let mut line = |what: &str, text: String| lines.push(format!("  {what:<14}{text}"));
        if let Some(gguf) = &model.gguf {
            line("GGUF", format!("{}:{}", gguf.repo, gguf.file));
        }
        line("safetensors", model.sources.join(", "));
        line("file", bytes(model.file_bytes()));
        let least = bytes(model.least_memory_bytes());
        line("least memory", format!("{least}{fits}"));
        let context = model.shape.map(|shape| format!("{} tokens", shape.context));
        line("context", context.unwrap_or_else(unknown));
        let licence = model.licence.map(str::to_owned);
        line("licence", licence.unwrap_or_else(unknown));
        line("chat", model.chat.to_owned());
        line("state", self.here().to_owned());
        if let Some(note) = model.note {
            line("note", note.to_owned());
        }
        lines.join("\n")
    }

    fn json(&self) -> Value {
        let Model {
            name,
            about,
            gguf,
            sources,
            licence,
            chat,
            note,
            shape,
        } = self.model;
        let gguf = gguf.as_ref().map(|gguf| {
            json!({"repo": gguf.repo, "file": gguf.file, "size_bytes": gguf.size, "sha256": gguf.sha256})
        });
        let path = match &self.here {
            Found::File(path) | Found::ToConvert(path) => Some(path),
            Found::NotHere | Found::NoName => None,
        };
        json!({
            "name": name,
            "about": about,
            "gguf": gguf,
            "safetensors": sources,
            "file_bytes": self.model.file_bytes(),
            "least_memory_bytes": self.model.least_memory_bytes(),
            "fits": self.fits,
            "context_length": shape.map(|shape| shape.context),
            "state": self.here(),
            "path": path,
            "licence": licence,
            "chat": chat,
            "note": note,
        })
    }
}

fn table(rows: &[Row], budget_bytes: Option<u64>) -> String {
    let head = ["NAME", "FILE", "MEMORY", "FITS", "STATE", "LICENCE", "WHAT"].map(str::to_owned);
    let cells: Vec<[String; 7]> = std::iter::once(head)
        .chain(rows.iter().map(Row::cells))
        .collect();
    let widths: Vec<usize> = (0..7)
        .map(|column| cells.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut lines: Vec<String> = cells
        .iter()
        .map(|row| {
            let padded = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect();
    lines.push(String::new());
    let budget = budget_bytes.map_or_else(|| "an unknown amount".to_owned(), size);
    lines.push(format!(
        "FILE and MEMORY are those of I2_S; MEMORY is the least, for one request at a time. This machine has {budget} to give."
    ));
    lines.push("bitnet-launch pull NAME fetches one; ? is what nobody could check.".to_owned());
    for row in rows {
        if let Some(note) = row.model.note {
            lines.push(format!("{}: {note}", row.model.name));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_all_and_what_fits() {
        let env = Environment::new();
        let rows: Vec<Row> = MODELS
            .iter()
            .map(|m| Row::new(m, Some(2 << 30), &env))
            .collect();
        let text = table(&rows, Some(2 << 30));
        assert_eq!(
            text.lines().filter(|line| line.contains("to pull")).count(),
            MODELS.len()
        );
        let line = |name: &str| {
            text.lines()
                .find(|l| l.starts_with(name))
                .unwrap()
                .to_owned()
        };
        assert!(line("2b-4t ").contains("1.19 GB"));
        assert!(line("2b-4t ").contains("yes"));
        assert!(line("falcon3-10b ").contains("no"));
        let details = rows[0].details();
        for part in [
            "microsoft/bitnet-b1.58-2B-4T-gguf:ggml-model-i2_s.gguf",
            "microsoft/bitnet-b1.58-2B-4T-bf16",
            "this machine has it",
            "mit",
            "`Role: text<|eot_id|>`",
        ] {
            assert!(details.contains(part), "{part}: {details}");
        }
        assert_eq!(
            known("tiiuae/falcon-e-3b-base").unwrap().name,
            "falcon-e-3b"
        );
        assert!(known("no-such-name").is_err());
        assert_eq!(rows[0].json()["fits"], true);
        assert_eq!(rows[0].json()["gguf"]["size_bytes"], 1_187_801_280_u64);
    }
}
