//! The one table of settings: name, environment variables, default and help text of each.
//!
//! The command line, `bitnet.toml`, the environment and llama-server's flags all end here, as text under a key's name;
//! `settings` turns that text into typed values.

/// How a setting is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `--name VALUE`; the text names the value in the help.
    Value(&'static str),
    /// `--name VALUE`, repeatable; the values are joined by commas.
    List(&'static str),
    /// `--name` and `--no-name`.
    Switch,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// Long flag without dashes, and key in `bitnet.toml`.
    pub name: &'static str,
    /// One-letter flag.
    pub short: Option<char>,
    /// Other long flags.
    pub aliases: &'static [&'static str],
    /// Environment variables; the first one set wins.
    pub env: &'static [&'static str],
    /// How it is written.
    pub shape: Shape,
    /// Heading in the help.
    pub group: &'static str,
    /// What applies when nobody says anything, in words.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

const MODEL: &str = "Model";
const MACHINE: &str = "Machine (automatic unless you say otherwise)";
const ENGINE: &str = "Another engine";
const MEMORY: &str = "Context and memory";
const NETWORK: &str = "Network";
const ANSWERS: &str = "Answers (defaults for requests that don't say)";
const LOGGING: &str = "Logging and configuration";

const fn value(
    group: &'static str,
    name: &'static str,
    value: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        short: None,
        aliases: &[],
        env: &[],
        shape: Shape::Value(value),
        group,
        default: "",
        help,
    }
}

const fn switch(group: &'static str, name: &'static str, help: &'static str) -> Key {
    Key {
        shape: Shape::Switch,
        ..value(group, name, "", help)
    }
}

const fn list(
    group: &'static str,
    name: &'static str,
    what: &'static str,
    help: &'static str,
) -> Key {
    Key {
        shape: Shape::List(what),
        ..value(group, name, "", help)
    }
}

impl Key {
    const fn short(self, short: char) -> Key {
        Key {
            short: Some(short),
            ..self
        }
    }
    const fn alias(self, aliases: &'static [&'static str]) -> Key {
        Key { aliases, ..self }
    }
    const fn env(self, env: &'static [&'static str]) -> Key {
        Key { env, ..self }
    }
    const fn default(self, default: &'static str) -> Key {
        Key { default, ..self }
    }
}

/// Every setting, in the order of the help.
pub(crate) const KEYS: &[Key] = &[
    value(MODEL, "model", "FILE", "GGUF file, a directory that holds exactly one, or the name of a pulled model")
        .short('m')
        .env(&["LLAMA_ARG_MODEL", "MODEL_PATH", "LLAMA_ARG_HF_REPO"])
        .default("the bundled demo model"),
    value(MODEL, "alias", "NAME", "Name shown to clients; several separated by commas")
        .short('a')
        .env(&["LLAMA_ARG_ALIAS"])
        .default("the file's name"),
    value(MODEL, "tags", "LIST", "Words that describe the model, shown in /models, separated by commas").env(&["LLAMA_ARG_TAGS"]),
    value(
        MODEL,
        "model-size",
        "SIZE",
        "What the model should be: small (under 1 billion parameters), medium (to 4), large or auto; a file that differs gives a warning",
    )
    .env(&["MODEL_SIZE"])
    .default("auto"),
    value(
        MODEL,
        "chat-template",
        "TEMPLATE",
        "Name of a built-in template (bitnet, chatml, llama2, llama3, falcon3, …) or Jinja text",
    )
    .env(&["LLAMA_ARG_CHAT_TEMPLATE"])
    .default("the file's, corrected where it is known to be wrong"),
    value(MODEL, "chat-template-file", "FILE", "Jinja template from a file").env(&["LLAMA_ARG_CHAT_TEMPLATE_FILE"]),
    value(MODEL, "chat-template-kwargs", "JSON", "Variables added to every template, as a JSON object")
        .env(&["LLAMA_ARG_CHAT_TEMPLATE_KWARGS"]),
    switch(MODEL, "prefill-assistant", "Continue a last message of the assistant instead of answering it")
        .env(&["LLAMA_ARG_PREFILL_ASSISTANT"])
        .default("on"),
    value(
        MODEL,
        "reasoning-format",
        "FORMAT",
        "Thoughts between <think> and </think> at an answer's front: none leaves them in the text, deepseek puts them into reasoning_content",
    )
    .env(&["LLAMA_ARG_THINK", "LLAMA_ARG_REASONING_FORMAT"])
    .default("none"),
    switch(MODEL, "skip-chat-parsing", "Leave thoughts and tool calls in an answer's text, as the model wrote them")
        .env(&["LLAMA_ARG_SKIP_CHAT_PARSING"])
        .default("off"),
    value(MODEL, "pooling", "NAME", "What becomes of the tokens' vectors in an embedding: none, mean, cls or last")
        .env(&["LLAMA_ARG_POOLING"])
        .default("the file's, else last"),
    value(MODEL, "embd-normalize", "N", "Scale of embeddings: -1 as they are, 0 largest number 32760, 1 taxicab, 2 Euclidean, above p-norm")
        .default("2"),
    value(MODEL, "system-prompt", "TEXT", "System message of chats that have none"),
    value(
        MODEL,
        "activation",
        "NAME",
        "Feed-forward activation, relu2, silu or gelu, where the file's architecture name misleads",
    )
    .default("by architecture"),
    switch(
        MODEL,
        "untied-head",
        "Use the file's output.weight as output head; off: the token embedding",
    )
    .default("by architecture and file"),
    value(MODEL, "pre-tokenizer", "NAME", "Pre-tokenizer in place of tokenizer.ggml.pre").default("the file's"),
    list(
        MODEL,
        "lookup-tiles",
        "ROWSxCOLS=BM/BK",
        "Tile sizes of a TL1 or TL2 file made by bitnet.cpp with other than its preset ones",
    ),
    value(MODEL, "rope-freq-base", "HZ", "RoPE base frequency in place of the file's")
        .env(&["LLAMA_ARG_ROPE_FREQ_BASE"])
        .default("the file's"),
    value(MODEL, "rope-freq-scale", "X", "Multiply positions by X: 0.5 lets the context be twice the model's")
        .env(&["LLAMA_ARG_ROPE_FREQ_SCALE"])
        .default("as the file says"),
    value(MODEL, "rope-scale", "N", "The same as --rope-freq-scale 1/N").env(&["LLAMA_ARG_ROPE_SCALE"]),
    value(MODEL, "rope-scaling", "METHOD", "none: positions as they are, whatever the file says; linear")
        .env(&["LLAMA_ARG_ROPE_SCALING_TYPE"])
        .default("as the file says"),
    list(
        MODEL,
        "override-kv",
        "KEY=TYPE:VALUE",
        "Another value for a key of the model file; types: int, float, bool, str; several separated by commas",
    )
    .env(&["LLAMA_ARG_OVERRIDE_KV"]),
    value(MACHINE, "kernel", "NAME", "auto, i2_s, tl1 or tl2, or one exactly, such as i2_s/avx2")
        .env(&["BITNET_KERNEL"])
        .default("auto: the best this CPU has"),
    value(
        MACHINE,
        "head",
        "MODE",
        "How the output head finds the best tokens: exact (screened by 4-bit copies, within 8 standard deviations), proven (by 8-bit copies, within bounds that always hold) or full (all of it for every token), by which the tokens are the same; or q8_0 or q6_k (rounded to 8 or 6 bits at the start), by which they may be others",
    )
    .default("auto: exact for a large head of F32, F16 or BF16"),
    value(
        MACHINE,
        "spec",
        "HOW",
        "Guess tokens ahead and check several in one step; the tokens are the same. ngram: guesses are what followed the last tokens earlier in the same text; none",
    )
    .env(&["BITNET_SPEC", "LLAMA_ARG_SPEC_TYPE"])
    .default("none"),
    value(MACHINE, "draft-max", "N", "Most tokens guessed ahead in one step, with --spec; how many are worth it is measured")
        .env(&["LLAMA_ARG_DRAFT_MAX", "LLAMA_ARG_SPEC_DRAFT_N_MAX"])
        .default("7"),
    value(
        MACHINE,
        "weights",
        "WHERE",
        "huge_pages (moved into memory of large pages after the start: fastest), mapped (read in place from the file: smallest, shared between processes) or copied (the whole file is read into memory at the start)",
    )
    .default("auto: huge_pages for a large model where the system has them"),
    switch(MACHINE, "mmap", "Map the model file; off: the same as --weights copied")
        .env(&["LLAMA_ARG_MMAP"])
        .default("on"),
    value(
        MACHINE,
        "load-mode",
        "MODE",
        "llama-server's word for both: auto, mmap, none or dio (--weights copied), mlock, mmap+mlock (--mlock)",
    )
    .env(&["LLAMA_ARG_LOAD_MODE"])
    .default("auto"),
    value(MACHINE, "threads", "N", "Threads that produce tokens")
        .short('t')
        .env(&["LLAMA_ARG_THREADS", "OMP_NUM_THREADS"])
        .default("auto: one per physical core, P-cores first, within the CPU quota"),
    value(MACHINE, "threads-batch", "N", "Threads that read prompts, at least as many as --threads")
        .default("auto: one per physical core within the CPU quota"),
    value(MACHINE, "cpu-affinity", "LIST", "CPUs to pin threads to, such as 0-3,6; none never pins")
        .env(&["CPU_AFFINITY"])
        .default("auto: pinned where nobody else is expected on the CPUs"),
    value(
        MACHINE,
        "numa",
        "HOW",
        "On machines with several nodes of memory: distribute (threads evenly over all), isolate (on one, whatever fits) or numactl (on the CPUs this process was given)",
    )
    .env(&["LLAMA_ARG_NUMA"])
    .default("auto: one node whose memory holds everything, else all"),
    value(
        MACHINE,
        "prio",
        "N",
        "Scheduling priority of the process that computes: -1 low, 0 normal, 1 medium, 2 high, 3 realtime; above 0 the system has to allow it",
    )
    .default("0"),
    switch(
        MACHINE,
        "tune",
        "Before the first start with this model on this machine, measure for up to 25 s what is fastest, and keep it",
    )
    .env(&["BITNET_TUNE"])
    .default("off: what `bitnet-launch tune` kept, else what the machine's facts suggest"),
    switch(
        MACHINE,
        "per-node",
        "One server for each NUMA node, on its CPUs and with its memory: the first on --port, the next one port higher, or all on one with --reuse-port",
    )
    .env(&["BITNET_PER_NODE"])
    .default("off: one server, on the node that holds the model"),
    switch(
        MACHINE,
        "replan",
        "When CPU or memory limits change while serving, choose anew and put another engine in the place of the one that runs",
    )
    .env(&["BITNET_REPLAN"])
    .default("off: a change is only logged"),
    value(
        MACHINE,
        "sandbox",
        "MODE",
        "auto: the process that runs the model may read its file and compute, as far as the kernel can see to that; off: for debuggers and kernels that get it wrong",
    )
    .env(&["BITNET_SANDBOX"])
    .default("auto"),
    value(
        MACHINE,
        "use-case",
        "NAME",
        "high_performance (8 slots, 512-token prompt steps), balanced (4 slots, 128) or memory_efficient (1 slot of 2048 tokens in q8_0, 64)",
    )
    .env(&["USE_CASE"])
    .default("balanced"),
    value(
        ENGINE,
        "engine",
        "PATH",
        "A llama-server to run the model with, of bitnet.cpp, llama.cpp or ik_llama.cpp; auto: the first one in PATH, ./vendor/BitNet/build/bin, /app/BitNet/build/bin",
    )
    .env(&["BITNET_ENGINE"])
    .default("builtin"),
    list(ENGINE, "engine-arg", "ARG", "Further argument for that engine, as it is: --engine-arg=--flash-attn"),
    switch(ENGINE, "engine-check", "Look into engine and model file before the start, and refuse what can't work").default("on"),
    switch(ENGINE, "exec", "Become that engine instead of supervising it: plan, pin, and replace this process").default("off"),
    value(
        MEMORY,
        "ctx-size",
        "N",
        "Context in tokens: alone, of each slot; together with --parallel, of all slots together, as in llama-server",
    )
    .short('c')
    .env(&["LLAMA_ARG_CTX_SIZE", "LLAMA_CTX_SIZE"])
    .default("the model's, at most 4096 per slot; less where memory is short"),
    value(MEMORY, "parallel", "N", "Slots: requests answered at the same time")
        .env(&["LLAMA_ARG_N_PARALLEL"])
        .default("by use case, fewer where memory is short"),
    value(MEMORY, "batch-size", "N", "Prompt tokens evaluated in one step, at most")
        .short('b')
        .env(&["LLAMA_ARG_BATCH", "LLAMA_BATCH_SIZE"])
        .default("by use case"),
    value(MEMORY, "ubatch-size", "N", "llama-server's physical batch; the smaller of both counts")
        .env(&["LLAMA_ARG_UBATCH"]),
    value(MEMORY, "kv-type", "TYPE", "Type of the key/value cache: f16, q8_0 (half as large, rounded) or f32")
        .alias(&["cache-type-k", "cache-type-v"])
        .env(&["LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V"])
        .default("f16"),
    value(MEMORY, "memory", "MB", "Plan slots and context with this many megabytes at most").default("what the machine and its limits leave"),
    switch(MEMORY, "mlock", "Lock the weights in memory")
        .env(&["LLAMA_ARG_MLOCK"])
        .default("off"),
    value(MEMORY, "slot-save-path", "FOLDER", "Let clients save slots to files in this folder, and restore them")
        .env(&["LLAMA_ARG_SLOT_SAVE_PATH"])
        .default("slots are not saved"),
    switch(
        MEMORY,
        "context-shift",
        "Drop the oldest half of a full context and go on, instead of ending the answer",
    )
    .env(&["LLAMA_ARG_CONTEXT_SHIFT"])
    .default("off"),
    value(
        NETWORK,
        "host",
        "ADDRESS",
        "Address to listen on, or a path that ends in .sock; several separated by commas; 0.0.0.0 opens it to the network",
    )
        .env(&["LLAMA_ARG_HOST", "HOST"])
        .default("127.0.0.1"),
    value(NETWORK, "port", "N", "Port to listen on; 0 takes any free one and prints it")
        .env(&["LLAMA_ARG_PORT", "PORT"])
        .default("8081"),
    switch(
        NETWORK,
        "reuse-port",
        "Let other servers listen on the same port; the system shares connections out among them",
    )
    .env(&["LLAMA_ARG_REUSE_PORT"])
    .default("off"),
    value(
        NETWORK,
        "ssl-cert-file",
        "FILE",
        "Speak HTTPS with this certificate: PEM, the server's own first; read again when it changes",
    )
    .env(&["LLAMA_ARG_SSL_CERT_FILE"])
    .default("plain HTTP"),
    value(NETWORK, "ssl-key-file", "FILE", "The certificate's private key, PEM without a password").env(&["LLAMA_ARG_SSL_KEY_FILE"]),
    value(NETWORK, "api-key", "KEY", "Key that clients must send; several separated by commas. Better in a file or the environment")
        .env(&["LLAMA_API_KEY"])
        .default("none: open to whoever reaches the port"),
    value(NETWORK, "api-key-file", "FILE", "File with one key per line; `#` begins a comment").env(&["LLAMA_ARG_API_KEY_FILE"]),
    switch(NETWORK, "public-models", "Serve /models without a key").default("off"),
    value(NETWORK, "max-queue", "N", "Requests waiting for a slot before further ones get status 429").default("64"),
    value(
        NETWORK,
        "agent-check-port",
        "N",
        "Tell HAProxy's agent check state, weight and connections on this port; 0 takes any free one and prints it",
    )
    .default("none"),
    value(
        NETWORK,
        "full-speed",
        "TOKENS_PER_SECOND",
        "Load balancers are told full weight at this measured speed, and less in proportion; the same on all servers",
    )
    .default("100"),
    value(NETWORK, "queue-timeout", "SECONDS", "Requests that have waited for a slot for this long get status 503; 0 is never")
        .default("0"),
    value(NETWORK, "max-body", "MB", "Larger request bodies get status 413").default("64"),
    value(
        NETWORK,
        "drain-notice",
        "SECONDS",
        "At SIGTERM and POST /drain, tell load balancers first, and take requests for this long before they are refused",
    )
    .default("0"),
    value(NETWORK, "drain-timeout", "SECONDS", "At SIGTERM, time for running answers to finish").default("4"),
    value(NETWORK, "timeout", "SECONDS", "A client that takes or sends no bytes for this long is gone; for what it sends, 60 at most")
        .env(&["LLAMA_ARG_TIMEOUT"])
        .default("600"),
    value(NETWORK, "sse-ping-interval", "SECONDS", "Silence in a stream before a comment line is sent; 0 is never")
        .env(&["LLAMA_ARG_SSE_PING_INTERVAL"])
        .default("30"),
    value(NETWORK, "api-prefix", "PATH", "Put before every route, such as /llm").env(&["LLAMA_ARG_API_PREFIX"]),
    value(NETWORK, "cors-origins", "ORIGIN", "Origins whose pages may read answers; localhost: pages of this machine")
        .env(&["LLAMA_ARG_CORS_ORIGINS"])
        .default("any"),
    value(NETWORK, "cors-methods", "LIST", "Methods allowed to them")
        .env(&["LLAMA_ARG_CORS_METHODS"])
        .default("GET, POST, DELETE, OPTIONS"),
    value(NETWORK, "cors-headers", "LIST", "Request headers allowed to them")
        .env(&["LLAMA_ARG_CORS_HEADERS"])
        .default("those the browser asks for"),
    switch(NETWORK, "cors-credentials", "Let them send credentials")
        .env(&["LLAMA_ARG_CORS_CREDENTIALS"])
        .default("on"),
    switch(NETWORK, "ui", "Serve the page at /")
        .alias(&["webui"])
        .env(&["LLAMA_ARG_UI", "LLAMA_ARG_WEBUI"])
        .default("on"),
    value(NETWORK, "path", "FOLDER", "Serve the files of this folder in place of the page")
        .env(&["LLAMA_ARG_STATIC_PATH"])
        .default("the page inside the program"),
    value(
        NETWORK,
        "hang-timeout",
        "SECONDS",
        "An engine that works without a sign of progress for this long is replaced",
    )
    .default("auto: long enough for this machine"),
    value(
        NETWORK,
        "crash-loop",
        "WHAT",
        "When engines end again and again: stay (answer 503 with the reason) or exit (with code 1, for a restart policy)",
    )
    .env(&["BITNET_CRASH_LOOP"])
    .default("stay"),
    switch(
        NETWORK,
        "reload-gap",
        "A reload may end the old engine before the new one starts, where memory can't hold both; requests wait meanwhile",
    )
    .env(&["BITNET_RELOAD_GAP"])
    .default("off: such a reload is refused"),
    value(
        NETWORK,
        "sleep-idle-seconds",
        "SECONDS",
        "Without a request for this long the engine ends and gives its memory back; the next request starts another; -1 is never",
    )
    .default("-1"),
    switch(NETWORK, "metrics", "Serve /metrics for Prometheus")
        .env(&["LLAMA_ARG_ENDPOINT_METRICS"])
        .default("on"),
    switch(NETWORK, "slots", "Serve /slots")
        .env(&["LLAMA_ARG_ENDPOINT_SLOTS"])
        .default("on"),
    switch(NETWORK, "props", "Let clients POST /props")
        .env(&["LLAMA_ARG_ENDPOINT_PROPS"])
        .default("off"),
    value(ANSWERS, "n-predict", "N", "Most tokens of an answer, unless the request asks for more; -1 is without limit")
        .short('n')
        .alias(&["predict"])
        .env(&["LLAMA_ARG_N_PREDICT"])
        .default("-1"),
    value(ANSWERS, "max-tokens-cap", "N", "Most tokens of any answer, whatever the request asks for").default("none"),
    value(ANSWERS, "temp", "X", "Temperature; 0 always takes the likeliest token")
        .alias(&["temperature"])
        .env(&["LLAMA_ARG_TEMPERATURE"])
        .default("0.8"),
    value(ANSWERS, "top-k", "N", "Keep the N likeliest tokens; 0 is all")
        .env(&["LLAMA_ARG_TOP_K"])
        .default("40"),
    value(ANSWERS, "top-p", "P", "Keep the likeliest tokens that together reach P; 1 is all")
        .env(&["LLAMA_ARG_TOP_P"])
        .default("0.95"),
    value(ANSWERS, "min-p", "P", "Drop tokens less likely than P times the likeliest; 0 is off")
        .env(&["LLAMA_ARG_MIN_P"])
        .default("0.05"),
    value(ANSWERS, "typical", "P", "Locally typical sampling; 1 is off")
        .alias(&["typical-p"])
        .default("1"),
    value(ANSWERS, "repeat-last-n", "N", "Tokens the penalties look back over; 0 is off, -1 the whole context").default("64"),
    value(ANSWERS, "repeat-penalty", "X", "Penalty on repeated tokens; 1 is off")
        .env(&["LLAMA_ARG_REPEAT_PENALTY"])
        .default("1"),
    value(ANSWERS, "presence-penalty", "X", "Penalty on tokens already used; 0 is off").default("0"),
    value(ANSWERS, "frequency-penalty", "X", "Penalty by how often a token was used; 0 is off").default("0"),
    value(ANSWERS, "dynatemp-range", "X", "Width of the entropy-driven temperature range; 0 is off").default("0"),
    value(ANSWERS, "dynatemp-exp", "X", "Exponent of the dynamic temperature").default("1"),
    value(ANSWERS, "top-n-sigma", "N", "Keep tokens whose logit lies within N standard deviations of the best; -1 is off")
        .alias(&["top-nsigma"])
        .env(&["LLAMA_ARG_TOP_N_SIGMA"])
        .default("-1"),
    value(ANSWERS, "xtc-probability", "P", "How often the likeliest tokens are excluded (XTC); 0 is off").default("0"),
    value(ANSWERS, "xtc-threshold", "P", "Probability from which XTC counts a token as likely; above 0.5 is off").default("0.1"),
    value(ANSWERS, "dry-multiplier", "X", "Penalty on continued repetitions (DRY); 0 is off").default("0"),
    value(ANSWERS, "dry-base", "X", "What each further token of a repetition multiplies it by").default("1.75"),
    value(ANSWERS, "dry-allowed-length", "N", "Longest repetition that costs nothing").default("2"),
    value(ANSWERS, "dry-penalty-last-n", "N", "Tokens DRY looks back over; 0 is off, -1 the whole context").default("64"),
    list(
        ANSWERS,
        "dry-sequence-breaker",
        "TEXT",
        "Text that no repetition reaches across, in place of line break, colon, quote and star; none is none",
    ),
    value(ANSWERS, "mirostat", "N", "Mirostat 1 or 2 in place of the sampler chain; 0 is off")
        .env(&["LLAMA_ARG_MIROSTAT"])
        .default("0"),
    value(ANSWERS, "mirostat-ent", "X", "Surprise that mirostat aims at, in bits").default("5"),
    value(ANSWERS, "mirostat-lr", "X", "How fast mirostat corrects itself").default("0.1"),
    value(ANSWERS, "adaptive-target", "P", "Probability that chosen tokens should have on average, where --samplers names adaptive_p; negative is off")
        .default("-1"),
    value(ANSWERS, "adaptive-decay", "X", "How much the tokens before count in that average, 0 to 0.99").default("0.9"),
    value(ANSWERS, "samplers", "LIST", "Order of the sampler chain, separated by semicolons")
        .default("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"),
    value(ANSWERS, "sampling-seq", "LETTERS", "The same in letters: edskypmxt, and a for adaptive_p")
        .alias(&["sampler-seq"]),
    value(ANSWERS, "grammar", "GBNF", "Grammar that answers follow; Lark after a line `%llguidance {}`"),
    value(ANSWERS, "grammar-file", "FILE", "The same from a file"),
    value(ANSWERS, "json-schema", "SCHEMA", "JSON schema that answers follow").short('j'),
    value(ANSWERS, "json-schema-file", "FILE", "The same from a file"),
    value(ANSWERS, "seed", "N", "Seed of the random numbers; -1 draws a new one per request")
        .short('s')
        .default("-1"),
    list(ANSWERS, "logit-bias", "ID+X", "Add X to the logit of token ID, or subtract it: 15043+1, 15043-1").short('l'),
    list(ANSWERS, "reverse-prompt", "TEXT", "Text that ends an answer").short('r'),
    switch(ANSWERS, "special", "Show the text of control tokens in answers").default("off"),
    switch(ANSWERS, "cache-prompt", "Reuse what is cached of a prompt's beginning")
        .env(&["LLAMA_ARG_CACHE_PROMPT"])
        .default("on"),
    value(ANSWERS, "keep", "N", "Prompt tokens kept when the context is shifted; -1 is all").default("0"),
    switch(ANSWERS, "ignore-eos", "Never end an answer by itself; for measurements").default("off"),
    value(LOGGING, "log-level", "LEVEL", "error, warn, info, debug or trace")
        .env(&["LLAMA_LOG_LEVEL", "LLAMA_ARG_LOG_VERBOSITY", "LLAMA_LOG_VERBOSITY"])
        .default("info, or what RUST_LOG says"),
    value(LOGGING, "log-format", "FORMAT", "text or json").default("text"),
    value(LOGGING, "log-file", "FILE", "Append the log to a file instead of standard error")
        .env(&["LLAMA_ARG_LOG_FILE", "LLAMA_LOG_FILE"]),
    value(LOGGING, "config", "FILE", "Settings file; keys are the flags' names without dashes")
        .env(&["BITNET_CONFIG"])
        .default("./bitnet.toml or /etc/bitnet-launch/bitnet.toml, if there is one"),
];

/// The key of this name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| key.name == name || key.aliases.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_aliases_shorts_and_variables_are_unique() {
        let mut seen = BTreeSet::new();
        for key in KEYS {
            for name in key.aliases.iter().chain([&key.name]) {
                assert!(seen.insert(format!("--{name}")), "--{name} twice");
            }
            for name in key.env {
                assert!(seen.insert((*name).to_owned()), "{name} twice");
            }
            if let Some(short) = key.short {
                assert!(seen.insert(format!("-{short}")), "-{short} twice");
            }
        }
    }
}
