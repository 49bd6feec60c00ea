//! The fields of every request. Sampling numbers with their ranges stand in `request::NUMBERS` and join the tables of
//! generations.

use super::Kind::{Any, Bool, Either, Filled, List, Map, Number, Object, Text, Word};
use super::{COUNT, Field, INTEGER, Kind, field, required};

/// All tables.
pub(crate) const ALL: &[&[Field]] = &[
    GENERATION,
    PROMPT,
    CHAT,
    RESPONSES,
    MESSAGES,
    EMBEDDINGS,
    TOKENIZE,
    DETOKENIZE,
    SLOT_FILE,
    RELOAD,
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    OLLAMA_SHOW,
    OLLAMA_EMBED,
];

const TOKEN: Kind = COUNT;
const AT_LEAST_MINUS_ONE: Kind = Kind::Integer(-1, i64::MAX);

/// What every generation understands beside its prompt or messages.
#[rustfmt::skip]
pub(crate) const GENERATION: &[Field] = &[
    field(&["model"], Any, "ignored: the server has one model"),
    field(&["stream"], Bool, "answer in pieces, as server-sent events"),
    field(&["stream_options"], Object(&[field(&["include_usage"], Bool, "a last chunk with the usage")]), ""),
    field(&["n_predict", "max_completion_tokens", "max_tokens"], AT_LEAST_MINUS_ONE, "most tokens of the answer; -1 is without limit"),
    field(&["stop"], Either(&[Text, List(&Text)]), "texts that end the answer and are not shown"),
    field(&["n_cmpl", "n"], Kind::Integer(1, i64::MAX), "answers per prompt, at most as many as there are slots"),
    field(&["seed"], INTEGER, "negative draws one; only the lower 32 bits count"),
    field(&["n_probs"], COUNT, "report this many alternatives per token"),
    field(&["logprobs"], Either(&[Bool, COUNT]), "chat: a switch; elsewhere the same as `n_probs`"),
    field(&["top_logprobs"], COUNT, "chat: alternatives per token; refused without `logprobs`"),
    field(&["post_sampling_probs"], Bool, "report probabilities after the samplers"),
    field(&["logit_bias"], Either(&[Map, List(&Any)]), "[[token or text, number or false], ..] or {\"token or text\": number or false}"),
    field(&["ignore_eos"], Bool, "never end by itself"),
    field(&["samplers"], Either(&[Text, List(&Any)]), "order of the chain: names, or a string of letters"),
    field(&["dry_sequence_breakers"], List(&Text), "texts no repetition reaches across"),
    field(&["grammar"], Text, "GBNF the answer follows, or Lark behind `%llguidance {}`; refused if it can't be followed, and beside `tools`"),
    field(&["grammar_lazy"], Bool, "free until a trigger comes up"),
    field(&["grammar_triggers"], List(&Any), "texts and tokens that set the grammar in motion"),
    field(&["tfs_z"], Number, "ignored: llama-server dropped tail-free sampling, too"),
    field(&["penalize_nl"], Any, "ignored: newlines are penalized like other tokens"),
    field(&["json_schema"], Either(&[Map, Bool, Text]), "JSON schema the answer follows; refused if it can't be followed, and beside `grammar`"),
    field(&["response_format"], Map, "{\"type\": \"text\"}, \"json_object\" or \"json_schema\"; other types are refused"),
    field(&["cache_prompt"], Bool, "reuse what is cached of the prompt's beginning"),
    field(&["id_slot"], AT_LEAST_MINUS_ONE, "slot to run in; -1 is any"),
    field(&["n_keep"], AT_LEAST_MINUS_ONE, "prompt tokens kept when the context is shifted; -1 is all"),
    field(&["t_max_predict_ms"], INTEGER, "end after this time, once there is a whole line"),
    field(&["return_tokens"], Bool, "list the answer's tokens"),
    field(&["return_progress"], Bool, "frames about the prompt's progress"),
    field(&["timings_per_token"], Bool, "timings in every frame"),
    field(&["response_fields"], List(&Text), "only these fields in the reply; `a/b` lifts b"),
    field(&["sse_ping_interval"], AT_LEAST_MINUS_ONE, "seconds of silence before a comment line; 0 is never"),
    field(&["verbose"], Bool, "add the native reply as `__verbose`"),
    field(&["echo"], Bool, "text completions: repeat the prompt; with `logprobs` say how likely its tokens are"),
    field(&["speculative.n_max"], INTEGER, "most tokens guessed ahead in one step, where the server guesses; 0 is none, more than the server's limit is that limit"),
    field(&["speculative.n_min"], INTEGER, "ignored: how many guesses pay is measured; tokens are the same with any number"),
    field(&["speculative.p_min"], Number, "ignored for the same reason"),
    field(&["functions"], List(&Any), "OpenAI's former name of `tools`; refused unless empty"),
    field(&["lora"], List(&Any), "refused unless empty"),
    field(&["image_data"], List(&Any), "refused unless empty"),
    field(&["suffix"], Text, "refused unless empty"),
    field(&["best_of"], Number, "refused above 1"),
    field(&["n_indent"], Number, "refused above 0"),
];

/// A text, tokens, or both mixed.
const ONE_PROMPT: Kind = Either(&[
    Text,
    List(&Either(&[Text, TOKEN])),
    Object(&[
        required(&["prompt_string"], Text, ""),
        field(&["multimodal_data"], List(&Any), "refused unless empty"),
    ]),
]);

/// `/completion`, `/v1/completions`
pub(crate) const PROMPT: &[Field] = &[required(
    &["prompt"],
    Either(&[ONE_PROMPT, List(&ONE_PROMPT)]),
    "text, tokens, both mixed, or several of these",
)];

const FUNCTION: Kind = Object(&[
    required(&["name"], Text, ""),
    field(&["description"], Text, "what it does, for the model"),
    field(&["parameters"], Map, "JSON schema of its arguments"),
    field(&["strict"], Bool, "ignored"),
]);

const TOOL_CHOICE: Field = field(
    &["tool_choice"],
    Either(&[Text, Map]),
    "`auto`, `none`, `required`, or {\"type\": \"function\", \"function\": {\"name\": ..}}",
);

/// A part of a message; what else it holds depends on its type.
const PART: Kind = Object(&[
    required(
        &["type"],
        Text,
        "`text`, `input_text`, `output_text` or `refusal`; images, audio and others are refused",
    ),
    field(&["text"], Text, ""),
]);

const MESSAGE: Kind = Object(&[
    required(
        &["role"],
        Text,
        "`system`, `developer`, `user`, `assistant`, `tool`, or what the template knows",
    ),
    field(
        &["content"],
        Either(&[Text, List(&PART)]),
        "needed unless `role` is `assistant` or `tool`",
    ),
    field(
        &["tool_calls"],
        List(&Object(&[
            field(&["id"], Any, ""),
            required(
                &["function"],
                Object(&[
                    required(&["name"], Text, ""),
                    field(&["arguments"], Any, "JSON text"),
                ]),
                "",
            ),
        ])),
        "calls in an assistant's message",
    ),
]);

/// `/v1/chat/completions`
pub(crate) const CHAT: &[Field] = &[
    required(
        &["messages"],
        Filled(&MESSAGE),
        "a last one of the assistant is continued",
    ),
    field(
        &["tools"],
        List(&Object(&[
            field(&["type"], Text, "`function`"),
            field(&["function"], FUNCTION, ""),
        ])),
        "functions the model may call",
    ),
    TOOL_CHOICE,
    field(
        &["parallel_tool_calls"],
        Bool,
        "more than one call in an answer; default true",
    ),
    field(
        &["add_generation_prompt"],
        Bool,
        "end the prompt where the answer begins; default true",
    ),
    field(
        &["continue_final_message"],
        Bool,
        "continue a last message of the assistant",
    ),
    field(&["chat_template_kwargs"], Map, "variables for the template"),
    field(
        &["reasoning_format"],
        Word(&["none", "auto", "deepseek", "deepseek-legacy"]),
        "`none` leaves thoughts in the text, the others give `reasoning_content`",
    ),
];

/// `/v1/responses`
pub(crate) const RESPONSES: &[Field] = &[
    required(
        &["input"],
        Either(&[Text, List(&Map)]),
        "a text, or items: messages, function calls and their outputs",
    ),
    field(&["instructions"], Text, "system message"),
    field(
        &["include"],
        List(&Text),
        "`message.output_text.logprobs`: probabilities of the answer's tokens; others are ignored",
    ),
    field(&["max_output_tokens"], COUNT, "most tokens of the answer"),
    field(
        &["previous_response_id"],
        Any,
        "refused: responses are not stored",
    ),
    field(&["prompt"], Any, "refused: prompts are not stored"),
    field(&["background"], Bool, "refused if true"),
    field(
        &["text"],
        Object(&[field(&["format"], Map, "as `response_format`, flat")]),
        "",
    ),
    field(
        &["tools"],
        List(&Map),
        "functions in the flat form; tools that OpenAI runs are left out",
    ),
    TOOL_CHOICE,
    field(
        &["parallel_tool_calls"],
        Bool,
        "more than one call in an answer; default true",
    ),
];

/// `/v1/messages`
pub(crate) const MESSAGES: &[Field] = &[
    required(
        &["messages"],
        Filled(&Object(&[
            required(&["role"], Text, ""),
            required(&["content"], Either(&[Text, List(&PART)]), ""),
        ])),
        "",
    ),
    field(&["system"], Either(&[Text, List(&PART)]), ""),
    field(&["max_tokens"], COUNT, "default 4096"),
    field(&["stop_sequences"], List(&Text), ""),
    field(
        &["tools"],
        List(&Object(&[
            field(&["name"], Text, ""),
            field(&["description"], Text, ""),
            field(&["input_schema"], Map, ""),
        ])),
        "",
    ),
    field(
        &["tool_choice"],
        Object(&[
            field(&["type"], Text, "`auto`, `any`, `tool` or `none`"),
            field(&["name"], Text, ""),
            field(&["disable_parallel_tool_use"], Bool, ""),
        ]),
        "",
    ),
];

/// `/v1/embeddings`, `/embedding`, `/embeddings`
pub(crate) const EMBEDDINGS: &[Field] = &[
    required(
        &["input", "content"],
        Either(&[ONE_PROMPT, List(&ONE_PROMPT)]),
        "text, tokens, both mixed, or several of these; `content` asks for llama-server's form",
    ),
    field(&["encoding_format"], Word(&["float", "base64"]), ""),
    field(
        &["pooling"],
        Word(&["none", "mean", "cls", "last"]),
        "`none` on `/embedding` only",
    ),
    field(
        &["embd_normalize"],
        Kind::Integer(-1, i32::MAX as i64),
        "-1 as it is, 0 largest number 32760, 1 taxicab, 2 Euclidean, above p-norm",
    ),
    field(&["dimensions"], Any, "ignored"),
];

/// `/tokenize`
pub(crate) const TOKENIZE: &[Field] = &[
    field(
        &["content", "prompt"],
        Either(&[Text, List(&Either(&[Text, TOKEN]))]),
        "a text, or texts and tokens mixed",
    ),
    field(
        &["add_special", "add_special_tokens"],
        Bool,
        "add the tokens a text begins with; default false, true for `prompt`",
    ),
    field(
        &["parse_special"],
        Bool,
        "read `<|name|>` as a token; default true",
    ),
    field(&["with_pieces"], Bool, "each token with its text"),
];

/// `/detokenize`
pub(crate) const DETOKENIZE: &[Field] = &[field(&["tokens"], List(&TOKEN), "")];

/// `/slots/:id`
pub(crate) const SLOT_FILE: &[Field] = &[field(
    &["filename"],
    Text,
    "a plain name; needed to save and restore",
)];

/// `/reload`
pub(crate) const RELOAD: &[Field] = &[field(
    &["gap"],
    Bool,
    "the old engine may end before the new one starts, where memory can't hold both; requests wait meanwhile",
)];

const OPTIONS: Field = field(
    &["options"],
    Map,
    "sampling: `temperature`, `num_predict`, `seed`, `stop`, ..",
);
const FORMAT: Field = field(
    &["format"],
    Either(&[Text, Map]),
    "`json`, or a JSON schema",
);
const THINK: Field = field(&["think"], Any, "split thoughts off");
const STREAM: Field = field(&["stream"], Bool, "JSON lines; default true");

/// `/api/chat`
pub(crate) const OLLAMA_CHAT: &[Field] = &[
    field(&["messages"], List(&Map), "none: load the model"),
    field(&["tools"], List(&Map), "functions the model may call"),
    OPTIONS,
    FORMAT,
    THINK,
    STREAM,
];

/// `/api/generate`
pub(crate) const OLLAMA_GENERATE: &[Field] = &[
    field(&["prompt"], Text, "empty: load the model"),
    field(&["system"], Text, "system message"),
    field(&["raw"], Bool, "no template"),
    field(&["suffix"], Text, "refused unless empty"),
    field(&["template"], Text, "refused unless empty"),
    field(&["images"], List(&Any), "refused unless empty"),
    OPTIONS,
    FORMAT,
    THINK,
    STREAM,
];

/// `/api/show`
pub(crate) const OLLAMA_SHOW: &[Field] = &[field(
    &["model", "name"],
    Text,
    "ignored: the server has one model",
)];

/// `/api/embed`
pub(crate) const OLLAMA_EMBED: &[Field] = &[
    required(&["input"], Either(&[Text, List(&Text)]), ""),
    field(
        &["truncate"],
        Bool,
        "cut what is longer than the context, in place of refusing it; default true",
    ),
];
