"""Writes the seeds of the fuzz targets to corpus/: small inputs that reach far. Run it again after a format has changed.

    python3 fuzz/seeds.py        (numpy is needed)
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests/oracle"))
import gguf_file  # noqa: E402

N_EMBD, N_FF, N_HEAD, N_BYTES, TEXTS = 128, 128, 2, 4, 6
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "ab", "Ġ", "Ċ", "Ã", "<|eot_id|>"]
SPM = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(N_BYTES)] + ["▁", "a", "b", "▁a"]


def main():
    for name, arch in [("bitnet-b1.58", "bitnet-b1.58"), ("bitnet", "bitnet"), ("llama", "llama")]:
        model("gguf", name, arch)
    texts()
    requests()
    templates()
    grammars()
    frames()


def save(target, name, data):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def model(target, name, arch):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    ternary = lambda rows, cols: (random.integers(-1, 2, (rows, cols)).astype(np.int8), 0.5)  # noqa: E731
    ones = np.ones(N_EMBD, np.float32)
    spm = arch == "bitnet"
    tokens = SPM if spm else TOKENS
    tensors = [("token_embd.weight", gguf_file.F16, np.zeros((len(tokens), N_EMBD)))]
    norms = ["attn_norm", "ffn_norm"] + (["attn_sub_norm", "ffn_sub_norm"] if arch.startswith("bitnet") else [])
    tensors += [(f"blk.0.{norm}.weight", gguf_file.F32, ones) for norm in norms]
    linears = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    tensors += [(f"blk.0.{linear}.weight", gguf_file.I2_S, ternary(N_EMBD, N_EMBD)) for linear in linears]
    tensors.append(("output_norm.weight", gguf_file.F32, ones))
    tokenizer = {
        "tokenizer.ggml.model": "llama" if spm else "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": gguf_file.I32List(
            [2, 3, 3] + ([6] * N_BYTES if spm else []) + [1] * (len(tokens) - 3 - (N_BYTES if spm else 0))
        ),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }
    if spm:
        tokenizer["tokenizer.ggml.scores"] = gguf_file.F32List([float(-i) for i in range(len(tokens))])
    else:
        tokenizer |= {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.merges": ["a b"]}
    values = {
        "general.architecture": arch,
        f"{arch}.vocab_size": len(tokens),
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": N_EMBD,
        f"{arch}.block_count": 1,
        f"{arch}.feed_forward_length": N_FF,
        f"{arch}.rope.dimension_count": N_EMBD // N_HEAD,
        f"{arch}.attention.head_count": N_HEAD,
        f"{arch}.attention.head_count_kv": N_HEAD,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        "general.file_type": 40,
        **tokenizer,
    }
    gguf_file.write(folder / name, values, tensors)


def texts():
    lines = [
        "Hello, world! It's 12345 o'clock.",
        "Grüße, 世界 \u00a0 \r\n\t x\u0301 \U0001f600\u200d\U0001f525",
        "<|begin_of_text|>User: hi<|eot_id|>Assistant:</s><s>",
        "   def f(x):\n        return x ** 2  # ½ ΑΒΓ ДЕЖ\n\n\n",
    ]
    for kind in range(TEXTS):
        for flags in (0, 0xC0):
            # The target takes the byte modulo the number of tokenizers, and the two highest bits as flags.
            choice = next(c for c in range(flags, flags + 64) if c % TEXTS == kind)
            save("tokenizer", f"{kind}-{flags:02x}", bytes([choice]) + "".join(lines).encode())


def requests():
    user = [{"role": "user", "content": "hi"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    schema = {"type": "object", "properties": {"a": {"enum": [1, "b", None]}}, "required": ["a"]}
    sampling = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9, "seed": 7, "repeat_penalty": 1.1, "n_predict": 4,
        "logit_bias": [[5, -1.0], ["a", False]], "stop": ["x", "yz"], "samplers": ["top_k", "temperature"], "n_probs": 2, "mirostat": 2,
        "dry_multiplier": 0.8, "dry_sequence_breakers": ["\n"], "xtc_probability": 0.1, "id_slot": 0, "t_max_predict_ms": 5, "n_keep": -1,
        "return_tokens": True, "timings_per_token": True, "response_fields": ["content", "timings/predicted_n"], "stream": True,
    }
    bodies = [
        [{"prompt": "hi", **sampling}, {"prompt": [1, "a", [2, "b"]], "grammar": "root ::= [a-z]+ | \"x\"{2,3}"}],
        [{"prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2, "n": 2, "echo": True, "stream": True, "stream_options": {"include_usage": True}}],
        [{"messages": user, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False},
         {"messages": user, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}, "logprobs": True, "top_logprobs": 2}],
        [{"messages": user, "chat_template_kwargs": {"a": 1}}],
        [{"input": "hi", "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}, "stream": True},
         {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}, {"type": "function_call_output", "call_id": "c", "output": "1"}]}],
        [{"messages": user, "system": [{"type": "text", "text": "s"}], "max_tokens": 5, "tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "any"}}],
        [{"messages": user}],
        [{"input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 2}],
        [{"content": "x", "embd_normalize": 2, "pooling": "mean"}],
        [{"messages": user + [{"role": "assistant", "content": "so"}]}],
        [{"content": "a<s>b", "add_special": True, "parse_special": True, "with_pieces": True}],
        [{"tokens": [1, 2, 300]}],
        [{"model": "m", "messages": user, "options": {"num_predict": 3, "stop": ["a"]}, "format": schema}],
        [{"model": "m", "prompt": "x", "raw": True, "stream": False, "format": "json"}],
        [{"filename": "a.bin"}],
        [[{"id": 0, "scale": 1.0}]],
    ]
    for route, several in enumerate(bodies):
        for number, body in enumerate(several):
            save("request", f"{route:02}-{number}", bytes([route]) + json.dumps(body).encode())
    raw = "POST /completion HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\nX-Request-Id: a\r\n\r\n5\r\n{\"pro\r\n9\r\nmpt\":\"x\"}\r\n0\r\n\r\n"
    save("request", "raw", bytes([len(bodies)]) + raw.encode() + b"GET /slots?fail_on_no_slot=1 HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n")


def templates():
    save("template", "loop", "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}")
    save("template", "tools", "{%- if tools %}{%- for t in tools %}{{ t | tojson(indent=2) }}{%- endfor %}{%- endif -%}{% set ns = namespace(n=0) %}{%- for m in messages[::-1] -%}"
         "{%- set ns.n = ns.n + loop.index0 -%}{%- if m.tool_calls is defined -%}{{ m.tool_calls[0].function.arguments }}{%- elif m.content is string -%}"
         "{{ m.content.split('a')[-1].upper() ~ m.content[:3] }}{%- else -%}{{ raise_exception('x') if ns.n > 99 }}{%- endif -%}{%- endfor -%}")
    save("template", "macro", "{% macro f(x, y=2) %}{% generation %}{{ x ~ y }}{% endgeneration %}{% endmacro %}{{ f(1) }}{{ strftime_now('%d %b %Y') }}{{ range(5) | map('string') | join(',') }}")


def grammars():
    for name, text in {
        "list": 'root ::= item ("," ws item)* # end\nitem ::= [a-z0-9_]+ | "\\"" [^"\\\\]* "\\""\nws ::= [ \\t\\n]?\0a, "b"',
        "counts": 'root ::= "a"{2,5} ([b-d] | "\\u00e9"){3} x? y*\nx ::= ("x" | x2)\nx2 ::= .\ny ::= "y"\0aabcdx',
        "json": 'root ::= v\nv ::= o | a | s | n\no ::= "{" (s ":" v ("," s ":" v)*)? "}"\na ::= "[" (v ("," v)*)? "]"\ns ::= "\\"" ([^"\\\\] | "\\\\" ["n])* "\\""\nn ::= "-"? [0-9]+ ("." [0-9]+)?',
    }.items():
        save("gbnf", name, text)
    for name, schema in {
        "object": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number"}, "minItems": 1}, "b": {"const": "x"}}, "required": ["a"], "additionalProperties": False},
        "refs": {"$defs": {"n": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}}, "$ref": "#/$defs/n"},
        "text": {"oneOf": [{"type": "string", "pattern": "^[a-c]{2,4}$"}, {"type": "string", "format": "date", "maxLength": 12}, {"type": "integer", "minimum": -3, "maximum": 700}]},
    }.items():
        save("schema", name, json.dumps(schema) + '\0{"a": [1]}')


def frames():
    frame = lambda message: struct.pack("<I", len(raw := json.dumps(message).encode())) + raw  # noqa: E731
    submit = {"id": 1, "tokens": [1, 2], "max_tokens": 3, "eog_tokens": [2], "cache_prompt": True, "slot": None, "sampling": {"seed": 1}, "carried": {}}
    save("frames", "to-engine", b"".join(map(frame, [{"submit": submit}, {"cancel": {"id": 1}}])))
    token = {"id": 1, "token": 5, "probs": None, "mirostat_mu": None, "ms": 1.5, "cpu_ms": None}
    save("frames", "from-engine", b"".join(map(frame, [{"ready": {"load_ms": 1.5}}, "settled", {"token": token}, {"heartbeat": {"steps": 3}}, {"done": {"id": 1, "finish": "eos"}}])))


main()
