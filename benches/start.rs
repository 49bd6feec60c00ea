//! What a user waits for and pays: from the program's start to the first served token, and the memory held after it.
//!
//!     cargo bench --bench start -- [FILE.gguf]
//!
//! Starts the release binary, asks `/completion` for one token until it comes, reads both processes' resident memory, then
//! asks for a longer answer. Rounds of the demo model and of FILE take turns; medians with the smallest and largest value.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const ROUNDS: usize = 7;
const PROMPT_TOKENS: usize = 128;
const ANSWER_TOKENS: usize = 64;
const START_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(2);

/// One round.
struct Round {
    first_token_ms: f64,
    resident_mb: f64,
    file_mb: f64,
    prefill_tok_s: f64,
    decode_tok_s: f64,
}

fn main() -> ExitCode {
    let file = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let mut models = vec![("demo model".to_owned(), None)];
    if let Some(file) = &file {
        models.push((file.clone(), Some(Path::new(file))));
    }
    let mut rounds: Vec<Vec<Round>> = models.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for ((name, model), rounds) in models.iter().zip(&mut rounds) {
            match measure(*model) {
                Ok(round) => rounds.push(round),
                Err(error) => {
                    eprintln!("error: cannot measure {name}: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    println!(
        "medians of {ROUNDS} rounds (smallest-largest); resident: both processes, file pages included"
    );
    for ((name, _), rounds) in models.iter().zip(&rounds) {
        println!("\n{name}");
        row("start to first token, ms", rounds, |round| {
            round.first_token_ms
        });
        row("resident, MB", rounds, |round| round.resident_mb);
        row("  of it file pages, MB", rounds, |round| round.file_mb);
        row("prefill, tok/s", rounds, |round| round.prefill_tok_s);
        row("decode, tok/s", rounds, |round| round.decode_tok_s);
    }
    ExitCode::SUCCESS
}

fn row(name: &str, rounds: &[Round], value: impl Fn(&Round) -> f64) {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let (low, median, high) = (
        values[0],
        values[values.len() / 2],
        values[values.len() - 1],
    );
    println!("  {name:<28} {median:>9.1}  ({low:.1}-{high:.1})");
}

/// A server that ends with its owner.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(model: Option<&Path>) -> Result<Round, String> {
    let port = free_port()?;
    let url = format!("http://127.0.0.1:{port}/completion");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-launch"));
    command.args(["--port", &port.to_string(), "--parallel", "4"]);
    if let Some(model) = model {
        command.arg("--model").arg(model);
    }
    let start = Instant::now();
    let child = command.stderr(Stdio::null()).spawn();
    let server = Server(child.map_err(|error| error.to_string())?);
    let first = json!({"prompt": "Once upon a time", "n_predict": 1});
    while ask(&url, &first).is_err() {
        if start.elapsed() > START_DEADLINE {
            return Err(format!("no token within {} s", START_DEADLINE.as_secs()));
        }
        sleep(POLL);
    }
    let first_token_ms = start.elapsed().as_secs_f64() * 1e3;
    let (resident_mb, file_mb) = resident(server.0.id());
    let prompt: Vec<u32> = (0..PROMPT_TOKENS as u32)
        .map(|i| 40 + i * 7 % 200)
        .collect();
    let long =
        json!({"prompt": prompt, "n_predict": ANSWER_TOKENS, "ignore_eos": true, "temperature": 0});
    let timings = ask(&url, &long)?["timings"].clone();
    let rate = |key: &str| timings[key].as_f64().unwrap_or(f64::NAN);
    Ok(Round {
        first_token_ms,
        resident_mb,
        file_mb,
        prefill_tok_s: rate("prompt_per_second"),
        decode_tok_s: rate("predicted_per_second"),
    })
}

fn ask(url: &str, body: &Value) -> Result<Value, String> {
    let answer = ureq::post(url)
        .send_json(body)
        .map_err(|error| error.to_string())?;
    let text = answer
        .into_body()
        .read_to_string()
        .map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    Ok(listener
        .local_addr()
        .map_err(|error| error.to_string())?
        .port())
}

/// Resident memory of a process and its children in MB, and the part of it that belongs to files.
fn resident(pid: u32) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        number.unwrap_or(0.0) / 1024.0
    };
    let mut sum = (field("VmRSS:"), field("RssFile:"));
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            let (resident, file) = resident(child);
            sum = (sum.0 + resident, sum.1 + file);
        }
    }
    sum
}
