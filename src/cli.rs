//! The command line of `bitnet-launch`: commands by derive, the settings of `serve` from the table in `settings::keys`.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand};

use crate::settings::Flags;
use crate::settings::keys::{KEYS, Key, Shape};

const ABOUT: &str =
    "Serves BitNet b1.58 language models on CPUs behind llama-server's and OpenAI's HTTP API.";

const LONG_ABOUT: &str = "Serves BitNet b1.58 language models on CPUs behind llama-server's and OpenAI's HTTP API.

Looks at the machine, chooses kernel, threads, CPU placement and memory, says why, and serves on port 8081.
Without a model it serves a small bundled one.";

const EXAMPLES: &str = "Examples:
  bitnet-launch                                  the demo model on http://127.0.0.1:8081
  bitnet-launch -m ggml-model-i2_s.gguf          a model of yours
  bitnet-launch pull                             download Microsoft's 2B-4T
  bitnet-launch -m 2b-4t                         serve what was downloaded, by its name
  bitnet-launch chat -m 2b-4t                    talk to it here
  bitnet-launch -m models/ --host 0.0.0.0        the one model in a directory, open to the network
  bitnet-launch --check                          show what would be chosen and why, then exit
  bitnet-launch doctor                           what this machine offers, and what to improve
  curl http://127.0.0.1:8081/completion -d '{\"prompt\": \"BitNet is\"}'

Every setting can stand on the command line, in the environment variable named beside it, or in bitnet.toml
under the same name (threads = 8); that is also the order in which they win. `auto` and an empty variable mean: choose
for me. llama-server's own flags are understood by `bitnet-launch llama-server …`, and when the program is called
under the name llama-server.";

/// A parsed command line.
#[derive(Debug, Parser)]
#[command(
    name = "bitnet-launch",
    version = crate::VERSION,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Cli {
    /// What to do; serve when absent.
    #[command(subcommand)]
    pub command: Option<Task>,
    /// Settings of the default command.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Serve a model (the default)
    #[command(after_help = EXAMPLES)]
    Serve(ServeArgs),
    /// Show what this machine offers, what would be chosen and why, and what to improve
    Doctor(DoctorArgs),
    /// Download a model, checked, into the cache that Hugging Face's tools use
    Pull(PullArgs),
    /// List the known models: size, memory, what fits this machine, what is here
    Models(ModelsArgs),
    /// Download a model into a directory, with the old script's order of arguments
    #[command(name = "setup_model", alias = "setup-model")]
    SetupModel(SetupArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Measure speed, start, memory, CPU time and energy on this machine
    Bench(crate::bench::BenchArgs),
    /// Measure which kernel and threads are fastest for a model on this machine, and keep the answer for `serve`
    Tune(crate::tune::TuneArgs),
    /// Ask a running server whether it is well: exit code 0 or 1
    Health(HealthArgs),
    /// Let a running server read its settings and its model anew, without an outage: exit code 0 or 1
    Reload(ReloadArgs),
    /// Measure how surprised a model is by a text, as llama.cpp does
    Perplexity(PerplexityArgs),
    /// Make a GGUF file of a Hugging Face directory, or of a GGUF file in another ternary packing
    #[command(after_help = CONVERT_EXAMPLES)]
    Convert(ConvertArgs),
    /// Show what is in a GGUF file, what is known to be wrong with it, and the memory it needs
    Inspect(InspectArgs),
    /// Write a GGUF file with random ternary weights, for tests and measurements
    Synth(SynthArgs),
    /// Print shell completions
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages, one per command
    Man {
        /// Directory for them; made if missing
        dir: PathBuf,
    },
    /// Serve with llama-server's own flags
    #[command(name = "llama-server", disable_help_flag = true)]
    LlamaServer {
        /// As llama-server takes them; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<std::ffi::OsString>,
    },
    /// The server behind `chat`; ends with it
    #[command(hide = true)]
    ChatServer(ServeArgs),
    /// One of the servers behind `serve --per-node`; ends with the first process
    #[command(hide = true)]
    NodeServer(NodeArgs),
    /// The process that runs the model; started by the server
    #[command(hide = true)]
    Engine(EngineArgs),
    /// Becomes another engine, on its CPUs; started by the server
    #[command(hide = true)]
    EngineExec(EngineExecArgs),
}

/// What the server tells an engine of its confinement; all else comes in frames.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// Give nothing up
    #[arg(long)]
    pub unconfined: bool,
    /// Nice value
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub nice: i32,
    /// Folder of saved slots
    #[arg(long)]
    pub slot_folder: Option<PathBuf>,
}

/// What one server of several is told beside its settings.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Process that it ends with
    #[arg(long)]
    pub node_parent: u32,
    /// CPUs to bind it to
    #[arg(long)]
    pub node_cpus: String,
    /// As of `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// How the server wants another program to be started.
#[derive(Debug, Default, Args)]
pub(crate) struct EngineExecArgs {
    /// Process that it ends with
    #[arg(long)]
    pub parent: u32,
    /// CPUs to bind it to
    #[arg(long)]
    pub cpus: Option<String>,
    /// Take rights from it
    #[arg(long)]
    pub confined: bool,
    /// It listens on a Unix socket and needs no other kind
    #[arg(long, requires = "confined")]
    pub offline: bool,
    /// Folders and files that it may write
    #[arg(long, requires = "confined")]
    pub writable: Vec<PathBuf>,
    /// Program and arguments
    #[arg(last = true, required = true)]
    pub argv: Vec<std::ffi::OsString>,
}

/// Flags of `serve`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServeArgs {
    /// What was said.
    pub flags: Flags,
    /// Show the plan and exit.
    pub check: bool,
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// One JSON object instead of a table
    #[arg(long, help_heading = "Report")]
    pub json: bool,
    /// Look at the machine described by this directory or report instead of this one
    #[arg(long, value_name = "PATH", help_heading = "Report")]
    pub host_root: Option<PathBuf>,
    /// Write what was read of this machine to a file that `--host-root` understands, for a bug report
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "host_root",
        help_heading = "Report"
    )]
    pub save_host: Option<PathBuf>,
    /// Settings to plan with, as in `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Flags of `pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A name that `bitnet-launch models` lists, ORG/REPO, ORG/REPO:FILE, either with @REVISION, or the address of a page on
    /// the hub
    #[arg(value_name = "MODEL", default_value = "microsoft/BitNet-b1.58-2B-4T")]
    pub model: String,
    /// Put plain files into this directory instead of the cache
    #[arg(long, short = 'o', value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Take the safetensors, to be converted, although there is a ready GGUF file
    #[arg(long)]
    pub safetensors: bool,
    /// Hash what is here already; what is damaged is downloaded again
    #[arg(long)]
    pub verify: bool,
    /// Take a file whose hash is not the one this program knows
    #[arg(long)]
    pub trust_hub: bool,
    /// Connections at once, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub connections: u8,
    /// Tries without progress after which it is an error
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub retries: u32,
    /// Seconds without a byte after which a connection is given up [env: HF_HUB_DOWNLOAD_TIMEOUT] [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: Option<u64>,
    /// Print the path only
    #[arg(long, short)]
    pub quiet: bool,
}

/// Flags of `models`.
#[derive(Debug, Args)]
pub(crate) struct ModelsArgs {
    /// Everything known about one of them, by its name or repository
    pub name: Option<String>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Flags of `setup_model`.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// As for `pull`
    #[arg(default_value = "microsoft/BitNet-b1.58-2B-4T")]
    pub repo: String,
    /// The model gets a directory of its own in this one
    #[arg(default_value = "models")]
    pub dir: PathBuf,
    /// Named in the command that serves the model; kernels are made at load, so that one file serves them all
    #[arg(default_value = "auto", value_parser = ["auto", "i2_s", "tl1", "tl2"])]
    pub kernel: String,
}

/// Flags of `chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Model to start a server for: a GGUF file or a name that `bitnet-launch models` lists [default: as for `serve`]
    #[arg(long, short, conflicts_with = "url")]
    pub model: Option<String>,
    /// Talk to this server instead, such as http://127.0.0.1:8081
    #[arg(long)]
    pub url: Option<String>,
    /// Key of that server [env: LLAMA_API_KEY]
    #[arg(long, requires = "url")]
    pub api_key: Option<String>,
    /// System prompt
    #[arg(long, short)]
    pub system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, short = 'n', value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Sampling temperature
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Same seed, same answers
    #[arg(long)]
    pub seed: Option<u32>,
    /// Flags of `serve` for the server that is started, after `--`
    #[arg(last = true, conflicts_with = "url")]
    pub serve: Vec<String>,
}

/// A running server, by default the one that this environment's variables mean.
#[derive(Debug, Default, Args)]
pub(crate) struct ServerArgs {
    /// Where the server is, such as http://127.0.0.1:8081
    #[arg(long, conflicts_with_all = ["host", "port"])]
    pub url: Option<String>,
    /// Its host; 0.0.0.0 and :: mean this machine [env: HOST] [default: 127.0.0.1]
    #[arg(long)]
    pub host: Option<String>,
    /// Its port [env: PORT] [default: 8081]
    #[arg(long)]
    pub port: Option<u16>,
    /// Say nothing, only exit
    #[arg(long, short)]
    pub quiet: bool,
}

/// Flags of `health`.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Seconds to wait for the answer
    #[arg(long, default_value_t = 5.0)]
    pub timeout: f64,
}

/// Flags of `reload`.
#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    /// Who is to reload.
    #[command(flatten)]
    pub server: ServerArgs,
    /// One of its keys [env: LLAMA_API_KEY]
    #[arg(long)]
    pub api_key: Option<String>,
    /// End the old engine before the new one starts: for a machine that can't hold both; requests wait meanwhile
    #[arg(long)]
    pub gap: bool,
    /// Seconds to wait for the outcome
    #[arg(long, default_value_t = 600.0)]
    pub timeout: f64,
}

/// Flags of `perplexity`.
#[derive(Debug, Args)]
pub(crate) struct PerplexityArgs {
    /// GGUF file
    #[arg(value_name = "FILE")]
    pub model: PathBuf,
    /// UTF-8 text, at least two chunks long; - reads standard input
    #[arg(value_name = "TEXT")]
    pub text: PathBuf,
    /// Tokens per chunk; the second half of each is scored
    #[arg(long, short = 'c', value_name = "N", default_value_t = 512)]
    pub ctx: usize,
    /// Evaluate this many chunks only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: Option<u32>,
    /// Threads [default: one per physical core]
    #[arg(long, short = 't', value_name = "N")]
    pub threads: Option<String>,
    /// Kernel, such as i2_s or i2_s/avx2 [default: the best]
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
    /// One JSON object instead of a line
    #[arg(long)]
    pub json: bool,
}

const CONVERT_EXAMPLES: &str = "Examples:
  bitnet-launch convert bitnet-b1.58-2B-4T-bf16 -o 2b4t.gguf            master weights to I2_S
  bitnet-launch convert Falcon3-3B-Instruct-1.58bit -o falcon3.gguf     packed weights to I2_S
  bitnet-launch convert 2b4t.gguf --outtype tq2_0 -o 2b4t-tq2.gguf      another packing, the same weights
  bitnet-launch convert arm.gguf --i2s-layout 64 -o fixed.gguf          a file that bitnet.cpp made on ARM since 2026";

/// Flags of `convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// A Hugging Face directory (config.json, *.safetensors, tokenizer), or a GGUF file
    pub source: PathBuf,
    /// File to write; it appears when it is whole, and replaces one of this name
    #[arg(long, short)]
    pub output: PathBuf,
    /// Packing of the ternary weights: i2_s for this program and bitnet.cpp, tq2_0 or tq1_0 for llama.cpp, tl1 or tl2 for
    /// bitnet.cpp built with these kernels [default: i2_s; tl2 or tl1 where rows are no multiple of 128]
    #[arg(long, value_parser = names(bitnet_model::convert::OUTTYPES))]
    pub outtype: Option<String>,
    /// Type of embedding and output head, for a Hugging Face directory [default: f16]
    #[arg(long, value_parser = names(bitnet_model::convert::EMBEDDING_TYPES))]
    pub embedding_type: Option<String>,
    /// Tile sizes of TL1 or TL2 matrices, to read and to write [default: the file's, or bitnet.cpp's presets]
    #[arg(long, value_name = "ROWSxCOLS=BM/BK", value_delimiter = ',')]
    pub lookup_tiles: Vec<String>,
    /// How text is cut, in place of what tokenizer.json says
    #[arg(long, value_name = "NAME")]
    pub pre_tokenizer: Option<String>,
    /// A Jinja file with the chat template, in place of the source's
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// The weights are masters of a model trained as BitNet b1.58, though its config.json doesn't say so
    #[arg(long)]
    pub absmean: bool,
    /// Order of the codes in the source's I2_S tensors: 128 as Microsoft's files, 64 as bitnet.cpp writes on ARM since 2026
    #[arg(long, default_value_t = 128, value_parser = clap::builder::TypedValueParser::map(clap::builder::PossibleValuesParser::new(["64", "128"]), |text: String| text.parse::<u32>().unwrap_or(128)))]
    pub i2s_layout: u32,
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A GGUF file
    pub file: PathBuf,
    /// One JSON object instead of a report
    #[arg(long)]
    pub json: bool,
    /// Read the whole file: SHA-256, every code, exact shares
    #[arg(long)]
    pub verify: bool,
    /// List every key and every tensor
    #[arg(long)]
    pub all: bool,
    /// Tile sizes of TL1 or TL2 matrices, in place of bitnet.cpp's presets
    #[arg(long, value_name = "ROWSxCOLS=BM/BK", value_delimiter = ',')]
    pub lookup_tiles: Vec<String>,
}

fn names(
    table: &'static [(&'static str, bitnet_model::gguf::TensorType)],
) -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(table.iter().map(|entry| entry.0))
}

/// Flags of `synth`.
#[derive(Debug, Args)]
pub(crate) struct SynthArgs {
    /// Shape of the model; 2b-4t is a twin of Microsoft's official file
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(bitnet_model::synth::Shape::names()))]
    pub shape: String,
    /// Same seed, same file
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// File to write
    #[arg(long, short)]
    pub output: PathBuf,
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let command = KEYS
            .iter()
            .fold(command, |command, key| command.args(arguments(key)));
        command.arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help_heading("Logging and configuration")
                .help("Check settings and model, show the plan with its reasons, exit"),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut serve = ServeArgs::default();
        serve.update_from_arg_matches(matches)?;
        Ok(serve)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for key in KEYS {
            self.flags.values.extend(said(key, matches));
        }
        self.check |= matches.get_flag("check");
        Ok(())
    }
}

/// The clap arguments of one setting: one, and its `--no-` twin for a switch.
fn arguments(key: &'static Key) -> Vec<Arg> {
    let arg = Arg::new(key.name)
        .long(key.name)
        .help_heading(key.group)
        .help(help(key))
        .visible_aliases(key.aliases.to_vec());
    let arg = match key.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match key.shape {
        Shape::Value(name) => vec![
            arg.value_name(name)
                .action(ArgAction::Set)
                .overrides_with(key.name)
                .allow_hyphen_values(true),
        ],
        Shape::List(name) => vec![
            arg.value_name(name)
                .action(ArgAction::Append)
                .allow_hyphen_values(true),
        ],
        Shape::Switch => {
            let no = format!("no-{}", key.name);
            let twin = Arg::new(no.clone())
                .long(no.clone())
                .action(ArgAction::SetTrue)
                .overrides_with(key.name)
                .help_heading(key.group)
                .hide(true);
            vec![arg.action(ArgAction::SetTrue).overrides_with(no), twin]
        }
    }
}

fn help(key: &Key) -> String {
    let mut text = key.help.to_owned();
    if key.shape == Shape::Switch {
        text.push_str(&format!(" (--no-{} turns it off)", key.name));
    }
    if !key.default.is_empty() {
        text.push_str(&format!(" [default: {}]", key.default));
    }
    if !key.env.is_empty() {
        text.push_str(&format!(" [env: {}]", key.env.join(", ")));
    }
    text
}

/// What the command line said about one setting.
fn said(key: &'static Key, matches: &ArgMatches) -> Vec<(&'static str, String, String)> {
    let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let flag = format!("--{}", key.name);
    if key.shape == Shape::Switch {
        let no = format!("no-{}", key.name);
        return if typed(&no) && matches.get_flag(&no) {
            vec![(key.name, "off".to_owned(), format!("--{no}"))]
        } else if typed(key.name) && matches.get_flag(key.name) {
            vec![(key.name, "on".to_owned(), flag)]
        } else {
            Vec::new()
        };
    }
    let values = matches.get_many::<String>(key.name).into_iter().flatten();
    values
        .map(|value| (key.name, value.clone(), flag.clone()))
        .collect()
}
