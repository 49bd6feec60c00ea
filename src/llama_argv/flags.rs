//! The table of llama-server's flags: names, arity, environment variables of flags that are no setting of ours, action.
//!
//! It covers the server of October 2024 that bitnet.cpp ships and the one of autumn 2026.

/// How many values follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arity {
    /// None.
    Bare,
    /// The next argument, whatever it is.
    One,
    /// The next two.
    Two,
    /// The next argument if it is one of these words: the flag was bare once and takes a value now.
    OneOf(&'static [&'static str]),
}

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Its value is the setting's.
    Set(&'static str),
    /// It means this value of the setting.
    SetTo(&'static str, &'static str),
    /// A mask of CPUs.
    CpuMask,
    /// Nothing is downloaded.
    Offline,
    /// Nothing to do, nothing lost.
    Accept,
    /// No effect, and the user should know.
    Warn(&'static str),
    /// The same, unless the value is 0.
    ZeroOrWarn(&'static str),
    /// Going on without it would be wrong.
    Refuse(&'static str),
    /// Whether `\n` and the like in texts of the command line stand for other characters.
    Escapes(bool),
    /// Print the list.
    Help,
    /// Print the version.
    Version,
}

/// One flag under all its names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    pub(super) names: &'static [&'static str],
    pub(super) arity: Arity,
    pub(super) action: Action,
    pub(super) env: &'static [&'static str],
}

const fn flag(
    names: &'static [&'static str],
    arity: Arity,
    action: Action,
    env: &'static [&'static str],
) -> Flag {
    Flag {
        names,
        arity,
        action,
        env,
    }
}

use Action::{
    Accept, CpuMask, Escapes, Help, Offline, Refuse, Set, SetTo, Version, Warn, ZeroOrWarn,
};
use Arity::{Bare, One, OneOf, Two};

/// Every flag, in the order of the help.
#[rustfmt::skip]
pub(super) const FLAGS: &[Flag] = &[
    flag(&["-h", "--help", "--usage"], Bare, Help, &[]),
    flag(&["--version"], Bare, Version, &[]),
    flag(&["-m", "--model"], One, Set("model"), &[]),
    flag(&["--engine"], One, Set("engine"), &[]),
    flag(&["--engine-arg"], One, Set("engine-arg"), &[]),
    flag(&["--no-engine-check"], Bare, SetTo("engine-check", "off"), &[]),
    flag(&["--exec"], Bare, SetTo("exec", "on"), &[]),
    flag(&["-a", "--alias"], One, Set("alias"), &[]),
    flag(&["--tags"], One, Set("tags"), &[]),
    flag(&["--host"], One, Set("host"), &[]),
    flag(&["--port"], One, Set("port"), &[]),
    flag(&["--reuse-port"], Bare, SetTo("reuse-port", "on"), &[]),
    flag(&["-t", "--threads"], One, Set("threads"), &[]),
    flag(&["-tb", "--threads-batch"], One, Set("threads-batch"), &[]),
    flag(&["-C", "--cpu-mask"], One, CpuMask, &[]),
    flag(&["-Cr", "--cpu-range"], One, Set("cpu-affinity"), &[]),
    flag(&["-Cb", "--cpu-mask-batch"], One, Warn("prompts run on the CPUs that tokens run on"), &[]),
    flag(&["-Crb", "--cpu-range-batch"], One, Warn("prompts run on the CPUs that tokens run on"), &[]),
    flag(&["--cpu-strict", "--cpu-strict-batch"], One, Accept, &[]),
    flag(&["--prio"], One, Set("prio"), &[]),
    flag(&["--prio-batch"], One, ZeroOrWarn("prompts are read with the priority of `--prio`"), &[]),
    flag(&["--poll", "--poll-batch"], One, Accept, &[]),
    flag(&["--numa"], OneOf(&["distribute", "isolate", "numactl"]), Set("numa"), &[]),
    flag(&["-c", "--ctx-size"], One, Set("ctx-size"), &[]),
    flag(&["-n", "--predict", "--n-predict"], One, Set("n-predict"), &[]),
    flag(&["-b", "--batch-size"], One, Set("batch-size"), &[]),
    flag(&["-ub", "--ubatch-size"], One, Set("ubatch-size"), &[]),
    flag(&["-np", "--parallel"], One, Set("parallel"), &[]),
    flag(&["-kvu", "--kv-unified"], Bare, Warn("each slot has a context of its own: `--ctx-size` divided by `--parallel`"), &["LLAMA_ARG_KV_UNIFIED"]),
    flag(&["-no-kvu", "--no-kv-unified"], Bare, Accept, &["LLAMA_ARG_NO_KV_UNIFIED"]),
    flag(&["--kv-unified-per-slot"], One, Warn("each slot has a context of its own: `--ctx-size` divided by `--parallel`"), &["LLAMA_ARG_KV_UNIFIED_PER_SLOT"]),
    flag(&["-cb", "--cont-batching"], Bare, Accept, &["LLAMA_ARG_CONT_BATCHING"]),
    flag(&["-nocb", "--no-cont-batching"], Bare, Warn("requests are always batched"), &["LLAMA_ARG_NO_CONT_BATCHING"]),
    flag(&["-fa", "--flash-attn"], OneOf(&["on", "off", "auto", "1", "0", "true", "false", "enabled", "disabled"]), Accept, &["LLAMA_ARG_FLASH_ATTN"]),
    flag(&["-ctk", "--cache-type-k", "-ctv", "--cache-type-v"], One, Set("kv-type"), &[]),
    flag(&["--mmap"], Bare, SetTo("mmap", "on"), &[]),
    flag(&["--no-mmap"], Bare, SetTo("mmap", "off"), &[]),
    flag(&["--mlock"], Bare, SetTo("mlock", "on"), &[]),
    flag(&["-lm", "--load-mode"], One, Set("load-mode"), &[]),
    flag(&["-dio", "--direct-io", "-ndio", "--no-direct-io"], Bare, Accept, &["LLAMA_ARG_DIO", "LLAMA_ARG_NO_DIO"]),
    flag(&["--keep"], One, Set("keep"), &[]),
    flag(&["--context-shift"], Bare, SetTo("context-shift", "on"), &[]),
    flag(&["--no-context-shift"], Bare, SetTo("context-shift", "off"), &[]),
    flag(&["--cache-prompt"], Bare, SetTo("cache-prompt", "on"), &[]),
    flag(&["--no-cache-prompt"], Bare, SetTo("cache-prompt", "off"), &[]),
    flag(&["--cache-reuse", "-cram", "--cache-ram", "-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", "-cms", "--checkpoint-min-step", "-sps", "--slot-prompt-similarity"], One, Accept, &["LLAMA_ARG_CACHE_REUSE", "LLAMA_ARG_CACHE_RAM", "LLAMA_ARG_CTX_CHECKPOINTS", "LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT", "LLAMA_ARG_CHECKPOINT_MIN_STEP", "LLAMA_ARG_SLOT_PROMPT_SIMILARITY"]),
    flag(&["--cache-idle-slots", "--no-cache-idle-slots"], Bare, Accept, &["LLAMA_ARG_CACHE_IDLE_SLOTS", "LLAMA_ARG_NO_CACHE_IDLE_SLOTS"]),
    flag(&["--slot-save-path"], One, Set("slot-save-path"), &[]),
    flag(&["--metrics"], Bare, SetTo("metrics", "on"), &[]),
    flag(&["--slots"], Bare, SetTo("slots", "on"), &[]),
    flag(&["--no-slots"], Bare, SetTo("slots", "off"), &[]),
    flag(&["--props"], Bare, SetTo("props", "on"), &[]),
    flag(&["--api-key"], One, Set("api-key"), &[]),
    flag(&["--api-key-file"], One, Set("api-key-file"), &[]),
    flag(&["--ssl-key-file"], One, Set("ssl-key-file"), &[]),
    flag(&["--ssl-cert-file"], One, Set("ssl-cert-file"), &[]),
    flag(&["-to", "--timeout"], One, Set("timeout"), &[]),
    flag(&["--threads-http"], One, Accept, &["LLAMA_ARG_THREADS_HTTP"]),
    flag(&["--sse-ping-interval"], One, Set("sse-ping-interval"), &[]),
    flag(&["--path"], One, Set("path"), &[]),
    flag(&["--ui", "--webui"], Bare, SetTo("ui", "on"), &[]),
    flag(&["--no-ui", "--no-webui"], Bare, SetTo("ui", "off"), &[]),
    flag(&["--ui-config", "--webui-config", "--ui-config-file", "--webui-config-file"], One, Warn("the page has no settings"), &["LLAMA_ARG_UI_CONFIG", "LLAMA_ARG_UI_CONFIG_FILE", "LLAMA_ARG_WEBUI_CONFIG", "LLAMA_ARG_WEBUI_CONFIG_FILE"]),
    flag(&["--api-prefix"], One, Set("api-prefix"), &[]),
    flag(&["--cors-origins"], One, Set("cors-origins"), &[]),
    flag(&["--cors-methods"], One, Set("cors-methods"), &[]),
    flag(&["--cors-headers"], One, Set("cors-headers"), &[]),
    flag(&["--cors-credentials"], Bare, SetTo("cors-credentials", "on"), &[]),
    flag(&["--no-cors-credentials"], Bare, SetTo("cors-credentials", "off"), &[]),
    flag(&["--chat-template"], One, Set("chat-template"), &[]),
    flag(&["--chat-template-file"], One, Set("chat-template-file"), &[]),
    flag(&["--chat-template-kwargs"], One, Set("chat-template-kwargs"), &[]),
    flag(&["--jinja"], Bare, Accept, &["LLAMA_ARG_JINJA"]),
    flag(&["--no-jinja"], Bare, Warn("templates are always rendered by Jinja"), &["LLAMA_ARG_NO_JINJA"]),
    flag(&["--prefill-assistant"], Bare, SetTo("prefill-assistant", "on"), &[]),
    flag(&["--no-prefill-assistant"], Bare, SetTo("prefill-assistant", "off"), &[]),
    flag(&["--skip-chat-parsing"], Bare, SetTo("skip-chat-parsing", "on"), &[]),
    flag(&["--no-skip-chat-parsing"], Bare, SetTo("skip-chat-parsing", "off"), &[]),
    flag(&["--reasoning-format"], One, Set("reasoning-format"), &[]),
    flag(&["-rea", "--reasoning", "--reasoning-budget", "--reasoning-budget-message", "--reasoning-effort"], One, Accept, &["LLAMA_ARG_REASONING", "LLAMA_ARG_THINK_BUDGET", "LLAMA_ARG_THINK_BUDGET_MESSAGE", "LLAMA_ARG_REASONING_PRESERVE", "LLAMA_ARG_REASONING_BUDGET", "LLAMA_ARG_REASONING_EFFORT"]),
    flag(&["--temp", "--temperature"], One, Set("temp"), &[]),
    flag(&["-s", "--seed"], One, Set("seed"), &[]),
    flag(&["--top-k"], One, Set("top-k"), &[]),
    flag(&["--top-p"], One, Set("top-p"), &[]),
    flag(&["--min-p"], One, Set("min-p"), &[]),
    flag(&["--repeat-last-n"], One, Set("repeat-last-n"), &[]),
    flag(&["--repeat-penalty"], One, Set("repeat-penalty"), &[]),
    flag(&["--presence-penalty"], One, Set("presence-penalty"), &[]),
    flag(&["--frequency-penalty"], One, Set("frequency-penalty"), &[]),
    flag(&["--dynatemp-range"], One, Set("dynatemp-range"), &[]),
    flag(&["--dynatemp-exp"], One, Set("dynatemp-exp"), &[]),
    flag(&["--typical", "--typical-p"], One, Set("typical"), &[]),
    flag(&["--samplers"], One, Set("samplers"), &[]),
    flag(&["--sampling-seq", "--sampler-seq"], One, Set("sampling-seq"), &[]),
    flag(&["--ignore-eos"], Bare, SetTo("ignore-eos", "on"), &[]),
    flag(&["-l", "--logit-bias"], One, Set("logit-bias"), &[]),
    flag(&["--dry-multiplier"], One, Set("dry-multiplier"), &[]),
    flag(&["--dry-base"], One, Set("dry-base"), &[]),
    flag(&["--dry-allowed-length"], One, Set("dry-allowed-length"), &[]),
    flag(&["--dry-penalty-last-n"], One, Set("dry-penalty-last-n"), &[]),
    flag(&["--dry-sequence-breaker"], One, Set("dry-sequence-breaker"), &[]),
    flag(&["--xtc-probability"], One, Set("xtc-probability"), &[]),
    flag(&["--xtc-threshold"], One, Set("xtc-threshold"), &[]),
    flag(&["--top-nsigma", "--top-n-sigma"], One, Set("top-n-sigma"), &[]),
    flag(&["--mirostat"], One, Set("mirostat"), &[]),
    flag(&["--mirostat-lr"], One, Set("mirostat-lr"), &[]),
    flag(&["--mirostat-ent"], One, Set("mirostat-ent"), &[]),
    flag(&["--adaptive-target"], One, Set("adaptive-target"), &[]),
    flag(&["--adaptive-decay"], One, Set("adaptive-decay"), &[]),
    flag(&["--tfs"], One, Warn("tail-free sampling was dropped by llama-server, too"), &[]),
    flag(&["--penalize-nl", "--no-penalize-nl"], Bare, Warn("newlines are penalized like other tokens"), &[]),
    flag(&["--grammar"], One, Set("grammar"), &[]),
    flag(&["--grammar-file"], One, Set("grammar-file"), &[]),
    flag(&["-j", "--json-schema"], One, Set("json-schema"), &[]),
    flag(&["-jf", "--json-schema-file"], One, Set("json-schema-file"), &[]),
    flag(&["-r", "--reverse-prompt"], One, Set("reverse-prompt"), &[]),
    flag(&["-sp", "--special"], Bare, SetTo("special", "on"), &[]),
    flag(&["-e", "--escape"], Bare, Escapes(true), &[]),
    flag(&["--no-escape"], Bare, Escapes(false), &[]),
    flag(&["--spm-infill", "--warmup", "--no-warmup", "--verbose-prompt"], Bare, Accept, &[]),
    flag(&["--check-tensors"], Bare, Warn("weights are not searched for invalid numbers at the start; `bitnet-launch inspect FILE --verify` does it"), &[]),
    flag(&["--embedding", "--embeddings"], Bare, Accept, &["LLAMA_ARG_EMBEDDINGS"]),
    flag(&["--pooling"], One, Set("pooling"), &[]),
    flag(&["--embd-normalize"], One, Set("embd-normalize"), &[]),
    flag(&["--attention"], One, Warn("attention is causal, as the model was trained"), &[]),
    flag(&["--rerank", "--reranking"], Bare, Refuse("this server generates text; it does not rank documents"), &["LLAMA_ARG_RERANKING"]),
    flag(&["--lora", "--control-vector"], One, Refuse("adapters can't be added to ternary weights"), &["LLAMA_ARG_LORA"]),
    flag(&["--lora-scaled", "--control-vector-scaled", "--control-vector-layer-range"], Two, Refuse("adapters can't be added to ternary weights"), &[]),
    flag(&["--lora-init-without-apply"], Bare, Accept, &[]),
    flag(&["--rope-freq-base"], One, Set("rope-freq-base"), &[]),
    flag(&["--rope-freq-scale"], One, Set("rope-freq-scale"), &[]),
    flag(&["--rope-scale"], One, Set("rope-scale"), &[]),
    flag(&["--rope-scaling"], One, Set("rope-scaling"), &[]),
    flag(&["--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor", "--yarn-beta-slow", "--yarn-beta-fast"], One, Warn("positions are scaled linearly"), &["LLAMA_ARG_YARN_ORIG_CTX", "LLAMA_ARG_YARN_EXT_FACTOR", "LLAMA_ARG_YARN_ATTN_FACTOR", "LLAMA_ARG_YARN_BETA_SLOW", "LLAMA_ARG_YARN_BETA_FAST"]),
    flag(&["-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"], One, Warn("self-extend is not offered"), &["LLAMA_ARG_GRP_ATTN_N", "LLAMA_ARG_GRP_ATTN_W"]),
    flag(&["--override-kv"], One, Set("override-kv"), &[]),
    flag(&["--log-disable"], Bare, SetTo("log-level", "error"), &[]),
    flag(&["-v", "--verbose", "--log-verbose"], Bare, SetTo("log-level", "debug"), &[]),
    flag(&["-lv", "--verbosity", "--log-verbosity"], One, Set("log-level"), &[]),
    flag(&["--log-file"], One, Set("log-file"), &[]),
    flag(&["--log-jsonl"], Bare, SetTo("log-format", "json"), &["LLAMA_ARG_LOG_JSONL"]),
    flag(&["--log-colors"], OneOf(&["on", "off", "auto"]), Accept, &["LLAMA_ARG_LOG_COLORS"]),
    flag(&["--no-log-colors", "--log-prefix", "--no-log-prefix", "--log-timestamps", "--no-log-timestamps"], Bare, Accept, &["LLAMA_ARG_LOG_PREFIX", "LLAMA_ARG_LOG_TIMESTAMPS", "LLAMA_ARG_NO_LOG_PREFIX", "LLAMA_ARG_NO_LOG_TIMESTAMPS", "LLAMA_ARG_SHOW_TIMINGS"]),
    flag(&["-hf", "-hfr", "--hf-repo"], One, Set("model"), &[]),
    flag(&["-hff", "--hf-file", "-mu", "--model-url", "-dr", "--docker-repo"], One, Refuse("name a file, or ORG/REPO:FILE after `bitnet-launch pull`, with `-m`"), &["LLAMA_ARG_HF_FILE", "LLAMA_ARG_MODEL_URL", "LLAMA_ARG_DOCKER_REPO"]),
    flag(&["-hft", "--hf-token"], One, Warn("set HF_TOKEN in the environment: what stands on a command line, everybody on this machine can read"), &[]),
    flag(&["--offline"], Bare, Offline, &["LLAMA_ARG_OFFLINE"]),
    flag(&["-ngl", "--gpu-layers", "--n-gpu-layers"], One, ZeroOrWarn("the model runs on the CPU"), &["LLAMA_ARG_N_GPU_LAYERS"]),
    flag(&["-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu", "-dev", "--device", "-ot", "--override-tensor", "-ncmoe", "--n-cpu-moe", "-ncffn", "--n-cpu-ffn", "--rpc"], One, ZeroOrWarn("the model runs on the CPU"), &["LLAMA_ARG_SPLIT_MODE", "LLAMA_ARG_TENSOR_SPLIT", "LLAMA_ARG_MAIN_GPU", "LLAMA_ARG_DEVICE", "LLAMA_ARG_OVERRIDE_TENSOR", "LLAMA_ARG_N_CPU_MOE", "LLAMA_ARG_RPC"]),
    flag(&["-fit", "--fit"], OneOf(&["on", "off"]), Warn("the model runs on the CPU"), &["LLAMA_ARG_FIT"]),
    flag(&["-fitt", "--fit-target", "-fitc", "--fit-ctx"], One, Warn("the model runs on the CPU"), &["LLAMA_ARG_FIT_TARGET", "LLAMA_ARG_FIT_CTX"]),
    flag(&["-nkvo", "--no-kv-offload", "-kvo", "--kv-offload", "--op-offload", "--no-op-offload", "-cmoe", "--cpu-moe", "--no-host", "--repack", "-nr", "--no-repack"], Bare, Warn("the model runs on the CPU"), &["LLAMA_ARG_KV_OFFLOAD", "LLAMA_ARG_NO_KV_OFFLOAD", "LLAMA_ARG_CPU_MOE", "LLAMA_ARG_NO_HOST", "LLAMA_ARG_REPACK", "LLAMA_ARG_NO_REPACK", "LLAMA_ARG_OP_OFFLOAD", "LLAMA_ARG_NO_OP_OFFLOAD"]),
    flag(&["--list-devices"], Bare, Refuse("there are no devices but the CPU; `bitnet-launch doctor` describes it"), &[]),
    flag(&["-dt", "--defrag-thold"], One, Accept, &["LLAMA_ARG_DEFRAG_THOLD"]),
    flag(&["--swa-full", "-dkvc", "--dump-kv-cache", "--perf", "--no-perf", "-bs", "--backend-sampling"], Bare, Accept, &["LLAMA_ARG_SWA_FULL", "LLAMA_ARG_NO_PERF", "LLAMA_ARG_PERF", "LLAMA_ARG_BACKEND_SAMPLING", "LLAMA_ARG_LAZY_MODE"]),
    flag(&["-md", "--model-draft", "--draft", "--draft-n", "--draft-max", "--draft-min", "--draft-n-min", "--draft-p-min", "--draft-p-split", "--spec-type", "--spec-default", "-td", "--threads-draft", "-tbd", "--threads-batch-draft", "-ctkd", "--cache-type-k-draft", "-ctvd", "--cache-type-v-draft", "-devd", "--device-draft", "-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "-cd", "--ctx-size-draft", "-hfd", "--hf-repo-draft", "-lcs", "--lookup-cache-static", "-lcd", "--lookup-cache-dynamic", "--spec-replace", "--spec-draft-model"], One, Warn("there is no speculative decoding"), &["LLAMA_ARG_MODEL_DRAFT", "LLAMA_ARG_DRAFT_MAX", "LLAMA_ARG_DRAFT_MIN", "LLAMA_ARG_DRAFT_P_MIN", "LLAMA_ARG_DRAFT_P_SPLIT", "LLAMA_ARG_CTX_SIZE_DRAFT", "LLAMA_ARG_N_GPU_LAYERS_DRAFT", "LLAMA_ARG_CACHE_TYPE_K_DRAFT", "LLAMA_ARG_CACHE_TYPE_V_DRAFT", "LLAMA_ARG_HFD_REPO", "LLAMA_ARG_THREADS_DRAFT", "LLAMA_ARG_SPEC_TYPE", "LLAMA_ARG_SPEC_DRAFT_MODEL"]),
    flag(&["-mm", "--mmproj", "-mmu", "--mmproj-url", "--image-min-tokens", "--image-max-tokens", "--media-path", "--video-fps", "--video-max-frames"], One, Refuse("the model reads text only"), &["LLAMA_ARG_MMPROJ", "LLAMA_ARG_MMPROJ_URL", "LLAMA_ARG_IMAGE_MIN_TOKENS", "LLAMA_ARG_IMAGE_MAX_TOKENS", "LLAMA_ARG_MEDIA_PATH"]),
    flag(&["--no-mmproj", "--mmproj-auto", "--no-mmproj-auto", "--mmproj-offload", "--no-mmproj-offload"], Bare, Accept, &["LLAMA_ARG_NO_MMPROJ", "LLAMA_ARG_MMPROJ_AUTO", "LLAMA_ARG_NO_MMPROJ_AUTO", "LLAMA_ARG_MMPROJ_OFFLOAD", "LLAMA_ARG_NO_MMPROJ_OFFLOAD"]),
    flag(&["--tools", "--mcp-servers-config", "--mcp-servers-json"], One, Refuse("this server runs no tools; the client does"), &["LLAMA_ARG_TOOLS", "LLAMA_ARG_MCP_SERVERS_CONFIG", "LLAMA_ARG_MCP_SERVERS_JSON"]),
    flag(&["--agent", "--ui-mcp-proxy", "--webui-mcp-proxy"], Bare, Refuse("this server runs no tools; the client does"), &["LLAMA_ARG_AGENT", "LLAMA_ARG_UI_MCP_PROXY", "LLAMA_ARG_WEBUI_MCP_PROXY"]),
    flag(&["--no-agent", "--no-ui-mcp-proxy", "--no-webui-mcp-proxy"], Bare, Accept, &["LLAMA_ARG_NO_AGENT", "LLAMA_ARG_NO_UI_MCP_PROXY", "LLAMA_ARG_NO_WEBUI_MCP_PROXY"]),
    flag(&["--models-dir", "--models-preset", "--models-max"], One, Refuse("one server serves one model; name it with `-m`"), &["LLAMA_ARG_MODELS_DIR", "LLAMA_ARG_MODELS_PRESET", "LLAMA_ARG_MODELS_MAX"]),
    flag(&["--models-autoload", "--no-models-autoload"], Bare, Accept, &["LLAMA_ARG_MODELS_AUTOLOAD", "LLAMA_ARG_NO_MODELS_AUTOLOAD"]),
    flag(&["--sleep-idle-seconds"], One, Set("sleep-idle-seconds"), &[]),
    flag(&["-p", "--prompt", "-sys", "--system-prompt"], One, Set("system-prompt"), &[]),
    flag(&["-f", "--file", "-bf", "--binary-file", "-spf", "-sysf", "--system-prompt-file", "--in-prefix", "--in-suffix"], One, Warn("this is a server, not a chat program"), &[]),
    flag(&["-cnv", "--conversation", "-no-cnv", "--no-conversation", "-i", "--interactive", "-if", "--interactive-first", "--color", "-co", "-ins", "--instruct", "-cml", "--chatml", "-st", "--single-turn", "-mli", "--multiline-input", "--in-prefix-bos", "--no-display-prompt"], Bare, Warn("this is a server, not a chat program"), &[]),
];
