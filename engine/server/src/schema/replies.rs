//! The fields of every reply that clients may rely on. Replies may hold more.

use super::Kind::{Bool, Either, List, Map, Null, Number, Object, Text, Word};
use super::{COUNT, INTEGER, Kind, field, required};

/// An error, on all routes but Ollama's.
pub(crate) const ERROR: Kind = Object(&[required(
    &["error"],
    Object(&[
        required(&["code"], Kind::Integer(400, 599), "the HTTP status"),
        required(
            &["message"],
            Text,
            "one line for the person who wrote the request",
        ),
        required(&["type"], Text, ""),
    ]),
    "",
)]);

/// An error on Ollama's routes: a text where the route answers, an object where the request never came so far.
pub(crate) const OLLAMA_ERROR: Kind = Object(&[required(&["error"], Either(&[Text, Map]), "")]);

const TIMINGS: Kind = Object(&[
    required(&["cache_n"], COUNT, "prompt tokens found in the cache"),
    required(&["prompt_n"], COUNT, "prompt tokens evaluated"),
    required(&["prompt_ms"], Number, ""),
    required(&["prompt_per_token_ms"], Number, ""),
    required(&["prompt_per_second"], Number, ""),
    required(&["predicted_n"], COUNT, "tokens produced"),
    required(
        &["predicted_ms"],
        Number,
        "from the first token to the last",
    ),
    required(&["predicted_per_token_ms"], Number, ""),
    required(&["predicted_per_second"], Number, ""),
    field(&["draft_n"], COUNT, "with `--spec`: tokens guessed ahead"),
    field(
        &["draft_n_accepted"],
        COUNT,
        "of them, those that were right",
    ),
    field(
        &["cpu_ms"],
        Number,
        "CPU time of the engine's threads; that of a step is shared among its requests by tokens",
    ),
    field(
        &["joules"],
        Number,
        "of the machine's processors, idle power taken off; at the end of an answer that ran alone, where a counter can be read",
    ),
    field(
        &["joules_per_token"],
        Number,
        "by the tokens evaluated and produced",
    ),
]);

const USAGE: Kind = Object(&[
    required(&["completion_tokens"], COUNT, ""),
    required(&["prompt_tokens"], COUNT, ""),
    required(&["total_tokens"], COUNT, ""),
    required(
        &["prompt_tokens_details"],
        Object(&[required(&["cached_tokens"], COUNT, "")]),
        "",
    ),
]);

const LOGPROBS: Kind = Either(&[
    Null,
    Object(&[required(&["content"], List(&Map), "one per token")]),
]);

const ONE_NATIVE: Kind = Object(&[
    field(&["index"], COUNT, ""),
    field(&["content"], Text, ""),
    field(&["stop"], Bool, ""),
    field(&["stop_type"], Word(&["none", "eos", "word", "limit"]), ""),
    field(&["tokens_predicted"], COUNT, ""),
    field(&["tokens_evaluated"], COUNT, ""),
    field(&["tokens_cached"], COUNT, ""),
    field(&["truncated"], Bool, "the context was full, or was shifted"),
    field(&["timings"], TIMINGS, ""),
    field(&["generation_settings"], Map, ""),
]);

/// `/completion`; all are optional, since `response_fields` chooses.
pub(crate) const NATIVE: Kind = Either(&[ONE_NATIVE, List(&ONE_NATIVE)]);

/// `/v1/completions`
pub(crate) const TEXT: Kind = Object(&[
    required(&["id"], Text, ""),
    required(&["object"], Word(&["text_completion"]), ""),
    required(&["created"], COUNT, "seconds since 1970"),
    required(&["model"], Text, ""),
    required(&["usage"], USAGE, ""),
    required(&["timings"], TIMINGS, ""),
    required(
        &["choices"],
        List(&Object(&[
            required(&["index"], COUNT, ""),
            required(&["text"], Text, ""),
            required(&["logprobs"], LOGPROBS, ""),
            required(&["finish_reason"], Word(&["stop", "length"]), ""),
        ])),
        "",
    ),
]);

/// `/v1/chat/completions`
pub(crate) const CHAT: Kind = Object(&[
    required(&["id"], Text, ""),
    required(&["object"], Word(&["chat.completion"]), ""),
    required(&["created"], COUNT, "seconds since 1970"),
    required(&["model"], Text, ""),
    required(&["system_fingerprint"], Text, ""),
    required(&["usage"], USAGE, ""),
    required(&["timings"], TIMINGS, ""),
    required(
        &["choices"],
        List(&Object(&[
            required(&["index"], COUNT, ""),
            required(
                &["finish_reason"],
                Word(&["stop", "length", "tool_calls"]),
                "",
            ),
            required(
                &["message"],
                Object(&[
                    required(&["role"], Word(&["assistant"]), ""),
                    required(
                        &["content"],
                        Either(&[Text, Null]),
                        "null when there are only calls",
                    ),
                    field(&["reasoning_content"], Text, ""),
                    field(
                        &["tool_calls"],
                        List(&Object(&[
                            required(&["id"], Text, ""),
                            required(&["type"], Word(&["function"]), ""),
                            required(
                                &["function"],
                                Object(&[
                                    required(&["name"], Text, ""),
                                    required(&["arguments"], Text, "JSON text"),
                                ]),
                                "",
                            ),
                        ])),
                        "",
                    ),
                ]),
                "",
            ),
            field(&["logprobs"], LOGPROBS, ""),
        ])),
        "",
    ),
]);

/// `/v1/responses`
pub(crate) const RESPONSE: Kind = Object(&[
    required(&["id"], Text, ""),
    required(&["object"], Word(&["response"]), ""),
    required(&["created_at"], COUNT, "seconds since 1970"),
    required(&["status"], Word(&["completed", "incomplete"]), ""),
    required(&["model"], Text, ""),
    required(
        &["output"],
        List(&Object(&[
            required(&["id"], Text, ""),
            required(
                &["type"],
                Word(&["message", "function_call", "reasoning"]),
                "",
            ),
            required(&["status"], Text, ""),
        ])),
        "",
    ),
    required(
        &["usage"],
        Object(&[
            required(&["input_tokens"], COUNT, ""),
            required(&["output_tokens"], COUNT, ""),
            required(&["total_tokens"], COUNT, ""),
        ]),
        "",
    ),
]);

/// `/v1/messages`
pub(crate) const MESSAGE: Kind = Object(&[
    required(&["id"], Text, ""),
    required(&["type"], Word(&["message"]), ""),
    required(&["role"], Word(&["assistant"]), ""),
    required(&["model"], Text, ""),
    required(
        &["content"],
        List(&Object(&[required(
            &["type"],
            Word(&["text", "tool_use", "thinking"]),
            "",
        )])),
        "",
    ),
    required(
        &["stop_reason"],
        Word(&["end_turn", "max_tokens", "stop_sequence", "tool_use"]),
        "",
    ),
    required(&["stop_sequence"], Either(&[Text, Null]), ""),
    required(
        &["usage"],
        Object(&[
            required(&["input_tokens"], COUNT, "without cached ones"),
            required(&["cache_read_input_tokens"], COUNT, ""),
            required(&["output_tokens"], COUNT, ""),
        ]),
        "",
    ),
]);

/// `/v1/messages/count_tokens` and the like.
pub(crate) const INPUT_TOKENS: Kind = Object(&[required(&["input_tokens"], COUNT, "")]);

const NATIVE_EMBEDDINGS: Kind = List(&Object(&[
    required(&["index"], COUNT, ""),
    required(
        &["embedding"],
        List(&Either(&[Text, List(&Number)])),
        "vectors: one, or one per token",
    ),
]));

/// `/v1/embeddings`; the older form for requests with `content`.
pub(crate) const EMBEDDINGS: Kind = Either(&[
    Object(&[
        required(&["object"], Word(&["list"]), ""),
        required(&["model"], Text, ""),
        required(
            &["data"],
            List(&Object(&[
                required(&["index"], COUNT, ""),
                required(&["object"], Word(&["embedding"]), ""),
                required(
                    &["embedding"],
                    Either(&[Text, List(&Number)]),
                    "numbers, or their bytes in base64",
                ),
            ])),
            "",
        ),
        required(&["usage"], Map, ""),
    ]),
    NATIVE_EMBEDDINGS,
]);

/// `/embedding`, `/embeddings`
pub(crate) const EMBEDDING: Kind = NATIVE_EMBEDDINGS;

/// `/tokenize`
pub(crate) const TOKENS: Kind = Object(&[required(
    &["tokens"],
    List(&Either(&[
        COUNT,
        Object(&[
            required(&["id"], COUNT, ""),
            required(&["piece"], Either(&[Text, List(&COUNT)]), "text, or bytes"),
        ]),
    ])),
    "",
)]);

/// `/detokenize`
pub(crate) const CONTENT: Kind = Object(&[
    required(&["content"], Text, ""),
    required(&["prompt"], Text, "the same, for vLLM's clients"),
]);
/// `/tokenizer_info`
pub(crate) const TOKENIZER: Kind = Object(&[
    required(&["bos_token"], Either(&[Text, Null]), ""),
    required(&["eos_token"], Either(&[Text, Null]), ""),
    required(&["chat_template"], Text, ""),
]);
/// `/apply-template`
pub(crate) const RENDERED: Kind = Object(&[required(&["prompt"], Text, "")]);

/// `/slots/:id`
pub(crate) const SLOT_REPORT: Kind = Object(&[required(&["id_slot"], COUNT, "")]);

/// `/slots`
pub(crate) const SLOTS: Kind = List(&Object(&[
    required(&["id"], COUNT, ""),
    required(&["id_task"], INTEGER, "-1 before the first"),
    required(&["n_ctx"], COUNT, ""),
    required(&["is_processing"], Bool, ""),
    required(
        &["state"],
        Kind::Integer(0, 3),
        "0 idle, 1 prompt under way, 2 prompt done, 3 generating",
    ),
]));

/// `/status`
pub(crate) const STATUS: Kind = Object(&[
    required(&["version"], Text, ""),
    required(&["state"], Text, ""),
    required(&["requests"], Map, ""),
    required(&["tokens"], Map, ""),
    required(&["slots"], List(&Map), ""),
]);

/// `/capacity`
pub(crate) const CAPACITY: Kind = Object(&[
    required(
        &["state"],
        Word(&["loading", "ready", "draining", "failed"]),
        "",
    ),
    required(&["draining"], Bool, ""),
    required(&["slots"], COUNT, "requests that can run at the same time"),
    required(&["slots_free"], COUNT, "0 unless the state is ready"),
    required(&["queue_depth"], COUNT, "requests that wait for a slot"),
    required(
        &["queue_bound"],
        COUNT,
        "beyond this many, requests get status 429",
    ),
    required(
        &["utilization"],
        Number,
        "what runs and waits as a share of the slots",
    ),
    required(
        &["tokens_per_second"],
        Either(&[Null, Number]),
        "answer tokens per second of work, lately",
    ),
    required(&["requests_per_second"], Number, "lately"),
    required(
        &["weight"],
        Kind::Integer(1, 100),
        "percent, as told to an agent check",
    ),
]);

/// `/health`
pub(crate) const HEALTH: Kind = Object(&[required(&["status"], Word(&["ok"]), "")]);

/// `/livez`
pub(crate) const LIVE: Kind = Object(&[required(&["status"], Word(&["alive"]), "")]);

/// `/readyz`
pub(crate) const READY: Kind = Object(&[
    required(&["status"], Word(&["ready"]), ""),
    required(&["is_sleeping"], Bool, "the next request starts an engine"),
]);

/// `/drain`
pub(crate) const DRAIN: Kind = Object(&[
    required(&["status"], Word(&["draining"]), ""),
    required(&["running"], COUNT, "answers that are not complete"),
    required(&["processing"], COUNT, "jobs that the engine works on"),
    required(&["waiting"], COUNT, "jobs that wait for a slot"),
]);

/// `/reload`
pub(crate) const RELOAD: Kind = Object(&[
    required(&["status"], Word(&["ok"]), ""),
    required(&["outcome"], Text, "one line for the operator"),
    required(&["engine_replaced"], Bool, ""),
    required(&["warnings"], List(&Text), "what needs a restart"),
]);

/// `/models`
pub(crate) const MODELS: Kind = Object(&[
    required(&["object"], Word(&["list"]), ""),
    required(&["data"], List(&MODEL), ""),
]);

/// `/models/NAME`
pub(crate) const MODEL: Kind = Object(&[
    required(&["id"], Text, ""),
    required(&["object"], Word(&["model"]), ""),
    required(&["created"], COUNT, "seconds since 1970"),
    required(&["owned_by"], Text, ""),
]);

/// `/props`
pub(crate) const PROPS: Kind = Object(&[
    required(&["default_generation_settings"], Map, ""),
    required(&["total_slots"], COUNT, ""),
    required(&["model_path"], Text, ""),
    required(&["chat_template"], Text, ""),
    required(&["build_info"], Text, ""),
]);

/// `/lora-adapters`
pub(crate) const ADAPTERS: Kind = List(&Map);
/// Done.
pub(crate) const SUCCESS: Kind = Object(&[required(&["success"], Bool, "")]);

/// `/api/version`
pub(crate) const OLLAMA_VERSION: Kind = Object(&[required(&["version"], Text, "")]);
/// `/api/tags`
pub(crate) const OLLAMA_TAGS: Kind = Object(&[required(
    &["models"],
    List(&Object(&[
        required(&["name"], Text, ""),
        required(&["model"], Text, ""),
        required(&["size"], COUNT, ""),
    ])),
    "",
)]);
/// `/api/show`
pub(crate) const OLLAMA_SHOW: Kind = Object(&[
    required(&["details"], Map, ""),
    required(&["model_info"], Map, ""),
    required(&["template"], Text, ""),
]);
/// `/api/embed`
pub(crate) const OLLAMA_EMBED: Kind = Object(&[
    required(&["model"], Text, ""),
    required(&["embeddings"], List(&List(&Number)), ""),
    required(&["prompt_eval_count"], COUNT, ""),
]);
/// `/api/chat`, `/api/generate`; streams are lines of these.
pub(crate) const OLLAMA_ANSWER: Kind = Object(&[
    required(&["model"], Text, ""),
    required(&["created_at"], Text, ""),
    required(&["done"], Bool, ""),
    field(&["message"], Map, "`/api/chat`"),
    field(&["response"], Text, "`/api/generate`"),
]);
