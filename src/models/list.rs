//! `bitnet-launch models`: the catalogue, with what fits into this machine's memory and what is here already.

use std::io::Write;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::cache::Cache;
use super::catalogue::{MODELS, Model};
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
    let rows: Vec<Row> = MODELS
        .iter()
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
    print(&table(&rows, budget_bytes))
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
        assert_eq!(rows[0].json()["fits"], true);
        assert_eq!(rows[0].json()["gguf"]["size_bytes"], 1_187_801_280_u64);
    }
}
