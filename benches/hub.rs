//! How fast models come in: `convert`, `pull` and `inspect`, beside what this disk writes and one core hashes in the same run.
//!
//!     cargo bench --bench hub -- [FILE.gguf]
//!
//! Makes checkpoints of random weights in the widths of BitNet b1.58 2B-4T with four layers (master weights of 0.56 GB, packed ones
//! of 0.07 GB), converts them with the release binary, downloads 1 GB from a hub of this process, and inspects FILE, or what was
//! converted. Medians with the smallest and largest value; CPU seconds are the command's, of all its threads.

#[path = "../tests/common/hub.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod hub;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use hub::{Hub, HubFile, noise};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

const ROUNDS: usize = 3;
const N_EMBD: u64 = 2560;
const N_FF: u64 = 6912;
const N_KV: u64 = 640;
const N_LAYER: u64 = 4;
const N_VOCAB: u64 = 288;
const PULLED_BYTES: usize = 1 << 30;
const REPO: &str = "some/model";

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let file = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    match measure(file.as_deref().map(Path::new)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(file: Option<&Path>) -> Result<(), Error> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let path = |name: &str| scratch.path().join(name);
    println!("medians of {ROUNDS} rounds (smallest-largest)");
    let bytes = noise(PULLED_BYTES, 1);
    baselines(&bytes, &path("written"))?;
    checkpoint(&path("bf16"), Weights::Masters)?;
    checkpoint(&path("packed"), Weights::Packed)?;
    println!(
        "\nconvert{:>27}GB read  written  GB/s read{:>16}CPU GB/s",
        "", ""
    );
    let model = path("i2_s.gguf");
    convert("bf16 to I2_S", &path("bf16"), "i2_s", &model)?;
    convert("packed to I2_S", &path("packed"), "i2_s", &model)?;
    convert("I2_S to TQ2_0", &model, "tq2_0", &path("tq2_0.gguf"))?;
    convert("I2_S to TL2", &model, "tl2", &path("tl2.gguf"))?;
    convert("TL2 to I2_S", &path("tl2.gguf"), "i2_s", &path("back.gguf"))?;
    pull(bytes, &path("pulled"))?;
    inspect(file.unwrap_or(&model))
}

/// Medians and range of one number per round.
fn shown(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[0], values[values.len() - 1]);
    format!("{:>8.2}  ({low:.2}-{high:.2})", values[values.len() / 2])
}

fn baselines(bytes: &[u8], path: &Path) -> Result<(), Error> {
    let gb = bytes.len() as f64 / 1e9;
    let (mut written, mut hashed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        written.push(gb / start.elapsed().as_secs_f64());
        fs::remove_file(path)?;
        let start = Instant::now();
        std::hint::black_box(Sha256::digest(bytes));
        hashed.push(gb / start.elapsed().as_secs_f64());
    }
    println!("\nthis machine");
    println!("  file written and saved, GB/s      {}", shown(written));
    println!("  SHA-256 on one core, GB/s         {}", shown(hashed));
    Ok(())
}

enum Weights {
    Masters,
    Packed,
}

/// A Hugging Face directory of random weights, with the tokenizer of the tests.
fn checkpoint(directory: &Path, weights: Weights) -> Result<(), Error> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/model/tests/data/convert");
    let like = match weights {
        Weights::Masters => models.join("masters"),
        Weights::Packed => models.join("packed"),
    };
    fs::create_dir(directory)?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(like.join(name), directory.join(name))?;
    }
    let mut config: Value = serde_json::from_slice(&fs::read(like.join("config.json"))?)?;
    config["hidden_size"] = json!(N_EMBD);
    config["intermediate_size"] = json!(N_FF);
    config["num_hidden_layers"] = json!(N_LAYER);
    config["num_attention_heads"] = json!(20);
    config["num_key_value_heads"] = json!(5);
    fs::write(directory.join("config.json"), config.to_string())?;
    let mut header = Map::new();
    let mut at = 0;
    let mut tensors = Vec::new();
    for (name, shape) in shapes() {
        let is_linear = name.contains("_proj");
        let packed = is_linear && matches!(weights, Weights::Packed);
        let (ty, shape, width) = match packed {
            true => ("U8", vec![shape[0] / 4, shape[1]], 1),
            false => ("BF16", shape, 2),
        };
        let bytes = shape.iter().product::<u64>() * width;
        let entry = json!({"dtype": ty, "shape": shape, "data_offsets": [at, at + bytes]});
        header.insert(name.clone(), entry);
        tensors.push((bytes, packed));
        at += bytes;
        if packed {
            let entry = json!({"dtype": "BF16", "shape": [1], "data_offsets": [at, at + 2]});
            header.insert(format!("{name}_scale"), entry);
            tensors.push((2, false));
            at += 2;
        }
    }
    let header = Value::Object(header).to_string();
    let mut out = BufWriter::new(File::create(directory.join("model.safetensors"))?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for (seed, (bytes, packed)) in (2..).zip(tensors) {
        fill(&mut out, bytes as usize, packed, seed)?;
    }
    Ok(out.flush()?)
}

/// Codes 0 to 2 four to a byte, or bf16 numbers around 0.01 of both signs.
fn fill(out: &mut impl Write, bytes: usize, packed: bool, seed: u64) -> io::Result<()> {
    let mut noise = noise(bytes, seed);
    if bytes == 2 {
        noise = vec![0x80, 0x3f];
    } else if packed {
        let digit = |byte: u8, place: u8| byte / place % 3;
        let code = |b: u8| digit(b, 1) | digit(b, 3) << 2 | digit(b, 9) << 4 | digit(b, 27) << 6;
        noise.iter_mut().for_each(|byte| *byte = code(*byte));
    } else {
        let numbers = noise.chunks_exact_mut(2);
        numbers.for_each(|number| number[1] = number[1] & 0x80 | 0x3c | number[0] & 1);
    }
    out.write_all(&noise)
}

fn shapes() -> Vec<(String, Vec<u64>)> {
    let mut all = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![N_VOCAB, N_EMBD],
        ),
        ("model.norm.weight".to_owned(), vec![N_EMBD]),
    ];
    for layer in 0..N_LAYER {
        for (name, shape) in [
            ("self_attn.q_proj", vec![N_EMBD, N_EMBD]),
            ("self_attn.k_proj", vec![N_KV, N_EMBD]),
            ("self_attn.v_proj", vec![N_KV, N_EMBD]),
            ("self_attn.o_proj", vec![N_EMBD, N_EMBD]),
            ("mlp.gate_proj", vec![N_FF, N_EMBD]),
            ("mlp.up_proj", vec![N_FF, N_EMBD]),
            ("mlp.down_proj", vec![N_EMBD, N_FF]),
            ("input_layernorm", vec![N_EMBD]),
            ("post_attention_layernorm", vec![N_EMBD]),
            ("self_attn.attn_sub_norm", vec![N_EMBD]),
            ("mlp.ffn_sub_norm", vec![N_FF]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    all
}

/// Seconds by the clock and of CPU.
fn run(command: &mut Command) -> Result<(f64, f64), Error> {
    let cpu_s = || -> Result<f64, Error> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let times = [usage.user_time(), usage.system_time()];
        let seconds = times.map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6);
        Ok(seconds.iter().sum())
    };
    let (start, before_s) = (Instant::now(), cpu_s()?);
    let output = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    let wall_s = start.elapsed().as_secs_f64();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    Ok((wall_s, cpu_s()? - before_s))
}

fn launch(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-launch"));
    command.args(args);
    command
}

/// Of the bytes the model has in `source`.
fn convert(name: &str, source: &Path, outtype: &str, target: &Path) -> Result<(), Error> {
    let weights = match source.is_dir() {
        true => source.join("model.safetensors"),
        false => source.to_owned(),
    };
    let gb = |path: &PathBuf| fs::metadata(path).map(|found| found.len() as f64 / 1e9);
    let read = gb(&weights)?;
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut command = launch(&["convert", "--outtype", outtype]);
        let (wall_s, cpu_s) = run(command.arg(source).arg("-o").arg(target))?;
        wall.push(read / wall_s);
        cpu.push(read / cpu_s);
    }
    let written = gb(&target.to_owned())?;
    println!(
        "  {name:<30} {read:>8.3} {written:>8.3} {:<26}{}",
        shown(wall),
        shown(cpu)
    );
    Ok(())
}

fn pull(bytes: Vec<u8>, directory: &Path) -> Result<(), Error> {
    let gb = bytes.len() as f64 / 1e9;
    let hub = Hub::start();
    hub.put(REPO, "model.gguf", HubFile::large(bytes));
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut command = launch(&["pull", REPO, "--quiet", "--dir"]);
        let command = command.arg(directory).env("HF_ENDPOINT", hub.url());
        let (wall_s, cpu_s) = run(command)?;
        wall.push(gb / wall_s);
        cpu.push(gb / cpu_s);
        fs::remove_dir_all(directory)?;
    }
    println!("\npull from this machine, hashed on the way and saved");
    println!("  GB/s                              {}", shown(wall));
    println!("  GB per CPU second                 {}", shown(cpu));
    Ok(())
}

fn inspect(file: &Path) -> Result<(), Error> {
    let gb = fs::metadata(file)?.len() as f64 / 1e9;
    let look = |flags: &[&str]| -> Result<Vec<(f64, f64)>, Error> {
        let command = || run(launch(&["inspect"]).args(flags).arg(file));
        (0..ROUNDS).map(|_| command()).collect()
    };
    let (plain, verified) = (look(&[])?, look(&["--verify"])?);
    println!("\ninspect {} ({gb:.2} GB)", file.display());
    let ms = |rounds: &[(f64, f64)]| shown(rounds.iter().map(|r| r.0 * 1e3).collect());
    println!("  ms                                {}", ms(&plain));
    println!("  ms with --verify                  {}", ms(&verified));
    let rate = verified.iter().map(|round| gb / round.1).collect();
    println!("  with --verify, CPU GB/s           {}", shown(rate));
    Ok(())
}
