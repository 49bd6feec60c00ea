"""Reads bitnet-demo.gguf by itself, runs it in numpy, measures it and writes RESULTS.md.

It shares no code with the model, the trainer or the exporter: file reader, I2_S decoding, graph and KV cache are
written again from the format. Sums of ternary codes times int8 activations stay below 2^24, so float32 holds them
exactly; the rest is float32. Shapes: T new tokens, D = embedding length.
"""

import argparse
import json
import random
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

import corpus
import facts
import stories
import world

HERE = Path(__file__).parent
MODEL, RESULTS, RUN = HERE / "bitnet-demo.gguf", HERE / "RESULTS.md", HERE / "run.json"
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING_VALUE, ARRAY_VALUE = 8, 9
F32, F16, I2_S = 0, 1, 36
CONTROL_TOKEN = 3
LLAMA_BPE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
             r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
MAX_NEW_TOKENS = 300
EVALUATION_SEED = 4242
HELD_OUT_DOCUMENTS, UNKNOWN_COUNT, STORY_COUNT, TRAINED_COUNT = 150, 100, 30, 120

SAMPLE_QUESTIONS = ["Who are you?", "What is BitNet?", "Why is it called 1.58 bits?", "Why is BitNet fast on CPUs?", "Which port do you use?", "How do I load a bigger model?",
                    "What is 4 + 5?", "What does a duck say?", "Who won the world cup in 1998?"]
SAMPLE_STORIES = ["Tell me a story about a fox.", "Tell me a story about an owl and a red kite.", "Write a short story about a robot named Max."]
SAMPLE_PROMPT = "Once upon a time"
FREE_UNKNOWN = ["How tall is the Eiffel Tower?", "Why is the sky blue at noon but red in the evening?", "Who painted the ceiling of the Sistine Chapel?", "Which animal runs the fastest?",
                "How is cement mixed?", "Can you book a flight for me?", "What is the meaning of life?", "Which team is the best in baseball?", "How do airplanes fly?",
                "Suggest a present for my aunt.", "Multiply 17 by 23.", "Name the author of Moby Dick.", "Why do cats purr?", "How do magnets stick together?", "What is my name?"]


class Reader:
    """Walks through the bytes of a GGUF file."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        (result,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return result

    def string(self):
        length = self.take("<Q")
        self.at += length
        return self.data[self.at - length:self.at].decode("utf-8")

    def value(self, kind):
        if kind == STRING_VALUE:
            return self.string()
        if kind == ARRAY_VALUE:
            element, count = self.take("<I"), self.take("<Q")
            return [self.value(element) for _ in range(count)]
        return self.take(SCALARS[kind])


def decode_i2_s(data, rows, columns):
    """-> (codes -1/0/+1 float32 [rows, columns], scale)."""
    count = rows * columns
    blocks = np.frombuffer(data, np.uint8, count // 4).reshape(-1, 32)
    parts = [(blocks >> shift) & 3 for shift in (6, 4, 2, 0)]
    codes = np.concatenate(parts, axis=1).reshape(rows, columns)
    assert codes.max() <= 2
    return codes.astype(np.float32) - 1, np.frombuffer(data, "<f4", 1, count // 4)[0]


def read_gguf(path):
    """-> (metadata, tensors). A ternary tensor is a (codes, scale) pair, the others are float32 arrays."""
    reader = Reader(path.read_bytes())
    assert reader.data[:4] == b"GGUF"
    reader.at = 4
    assert reader.take("<I") == 3
    tensor_count, pair_count = reader.take("<Q"), reader.take("<Q")
    meta = {}
    for _ in range(pair_count):
        key = reader.string()
        meta[key] = reader.value(reader.take("<I"))
    infos = []
    for _ in range(tensor_count):
        name, dims = reader.string(), reader.take("<I")
        shape = tuple(reversed([reader.take("<Q") for _ in range(dims)]))
        infos.append((name, shape, reader.take("<I"), reader.take("<Q")))
    start, expected, tensors = (reader.at + 31) // 32 * 32, 0, {}
    for name, shape, kind, offset in infos:
        assert offset == expected
        count = int(np.prod(shape))
        size = {F32: 4 * count, F16: 2 * count, I2_S: count // 4 + 32}[kind]
        data = reader.data[start + offset:start + offset + size]
        tensors[name] = decode_i2_s(data, *shape) if kind == I2_S else np.frombuffer(data, "<f4" if kind == F32 else "<f2").astype(np.float32).reshape(shape)
        expected += (size + 31) // 32 * 32
    assert start + expected == len(reader.data)
    return meta, tensors


def tokenizer_of(meta):
    words, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    vocab = {word: i for i, word in enumerate(words) if kinds[i] != CONTROL_TOKEN}
    bpe = Tokenizer(models.BPE(vocab, [tuple(pair.split(" ")) for pair in meta["tokenizer.ggml.merges"]], ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_BPE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(word, special=True) for word, kind in zip(words, kinds) if kind == CONTROL_TOKEN])
    assert all(bpe.token_to_id(word) == i for i, word in enumerate(words))
    return bpe


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * weight


def quantised(x):
    """x: [T, K] -> (integers as float32, scale [T, 1])."""
    scale = np.float32(127) / np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
    return np.rint(x * scale), scale


def ternary_product(activations, matrix):
    (integers, scale), (codes, weight_scale) = activations, matrix
    return integers @ codes.T / scale * weight_scale


class Model:
    """The graph with one growing KV cache."""

    def __init__(self, path):
        meta, self.tensors = read_gguf(path)
        arch = meta["general.architecture"]
        self.meta, self.bpe = meta, tokenizer_of(meta)
        self.layers, self.heads, self.kv_heads = (meta[f"{arch}.{key}"] for key in ("block_count", "attention.head_count", "attention.head_count_kv"))
        self.head_dim, self.eps = meta[f"{arch}.rope.dimension_count"], meta[f"{arch}.attention.layer_norm_rms_epsilon"]
        half = np.arange(self.head_dim // 2, dtype=np.float64)
        angle = np.outer(np.arange(meta[f"{arch}.context_length"]), meta[f"{arch}.rope.freq_base"] ** (-2.0 * half / self.head_dim))
        self.cos, self.sin = np.cos(angle).astype(np.float32)[:, None], np.sin(angle).astype(np.float32)[:, None]
        self.stops = {meta["tokenizer.ggml.eos_token_id"], meta["tokenizer.ggml.eot_token_id"]}
        self.reset()

    def reset(self):
        self.cache = [None] * self.layers
        self.position = 0

    def rope(self, x):
        """x: [T, heads, head_dim]; pairs (i, i + head_dim/2)."""
        cos, sin = (table[self.position:self.position + len(x)] for table in (self.cos, self.sin))
        left, right = np.split(x, 2, axis=-1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    def attention(self, layer, x):
        weight = lambda name: self.tensors[f"blk.{layer}.{name}.weight"]
        inputs = quantised(rms_norm(x, weight("attn_norm"), self.eps))
        q, k, v = (ternary_product(inputs, weight(name)).reshape(len(x), -1, self.head_dim) for name in ("attn_q", "attn_k", "attn_v"))
        q, k = self.rope(q), self.rope(k)
        if self.cache[layer]:
            k, v = (np.concatenate([old, new]) for old, new in zip(self.cache[layer], (k, v)))
        self.cache[layer] = k, v
        k, v = (np.repeat(y, self.heads // self.kv_heads, axis=1) for y in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(np.float32(self.head_dim))
        future = np.arange(len(k))[None] > self.position + np.arange(len(x))[:, None]
        scores = np.where(future, -np.inf, scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hts,shd->thd", scores, v).reshape(len(x), -1)
        return ternary_product(quantised(rms_norm(mixed, weight("attn_sub_norm"), self.eps)), weight("attn_output"))

    def feed_forward(self, layer, x):
        weight = lambda name: self.tensors[f"blk.{layer}.{name}.weight"]
        inputs = quantised(rms_norm(x, weight("ffn_norm"), self.eps))
        gate, up = ternary_product(inputs, weight("ffn_gate")), ternary_product(inputs, weight("ffn_up"))
        hidden = np.maximum(gate, 0) ** 2 * up
        return ternary_product(quantised(rms_norm(hidden, weight("ffn_sub_norm"), self.eps)), weight("ffn_down"))

    def forward(self, tokens):
        """Appends tokens to the context -> logits [T, vocab]."""
        x = self.tensors["token_embd.weight"][tokens]
        for layer in range(self.layers):
            x = x + self.attention(layer, x)
            x = x + self.feed_forward(layer, x)
        self.position += len(tokens)
        return rms_norm(x, self.tensors["output_norm.weight"], self.eps) @ self.tensors["token_embd.weight"].T

    def generate(self, prompt, temperature=0.0, seed=0, limit=MAX_NEW_TOKENS):
        """-> (text, whether it stopped by itself). The prompt contains its special tokens."""
        self.reset()
        rng, tokens = np.random.default_rng(seed), []
        logits = self.forward(self.bpe.encode(prompt).ids)[-1]
        while len(tokens) < limit:
            if temperature == 0.0:
                token = int(logits.argmax())
            else:
                chances = np.exp((logits - logits.max()).astype(np.float64) / temperature)
                token = int(rng.choice(len(chances), p=chances / chances.sum()))
            if token in self.stops:
                return self.bpe.decode(tokens), True
            tokens.append(token)
            logits = self.forward([token])[-1]
        return self.bpe.decode(tokens), False

    def answer(self, question, **options):
        return self.generate(chat_prompt(question), **options)[0]


def chat_prompt(question):
    return f"{corpus.BOS}User: {question}{corpus.EOT}Assistant: "


def is_right(fact, answer):
    return all(any(part.lower() in answer.lower() for part in need.split("|")) for need in fact.must)


def accuracy(model, asked):
    """asked: (fact, question) pairs -> (share right, wrong triples)."""
    wrong = []
    for fact, question in asked:
        answer = model.answer(question, limit=80)
        if not is_right(fact, answer):
            wrong.append((fact.key, question, answer))
    return 1 - len(wrong) / len(asked), wrong


def held_out_loss(model):
    """Weighted loss per token over new documents, each alone in its context."""
    total = weight_sum = 0.0
    for document in corpus.documents(EVALUATION_SEED, HELD_OUT_DOCUMENTS):
        ids, weights = [], []
        for text, weight in document:
            piece = model.bpe.encode(text).ids
            ids += piece
            weights += [weight] * len(piece)
        model.reset()
        logits = model.forward(ids[:-1]).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids) - 1), ids[1:]]
        total += (losses * weights[1:]).sum()
        weight_sum += sum(weights[1:])
    return total / weight_sum


def story_measures(model, rng):
    """Asks for stories -> counts of what went well."""
    counts = Counter()
    for i in range(STORY_COUNT):
        hero, friend = rng.sample(stories.ANIMALS, 2)
        thing = f"{rng.choice(stories.COLOURS)} {rng.choice(stories.THINGS)}"
        kind = ("animal", "two animals", "thing")[i % 3]
        wanted = {"animal": [hero], "two animals": [hero, friend], "thing": [thing]}[kind]
        request = f"Tell me a story about {' and '.join(world.article(x) for x in wanted)}."
        text, ended = model.generate(chat_prompt(request))
        counts[kind] += 1
        counts[kind, "present"] += all(x in text for x in wanted)
        counts["ended"] += ended
        counts["names"] += len({name for name in stories.FEMALE_NAMES + stories.MALE_NAMES if name in text}) == 2
    return counts


def measure(model):
    rng = random.Random(EVALUATION_SEED)
    groups = {"BitNet": facts.BITNET, "this program": facts.PROGRAM, "itself": facts.SELF, "small talk": world.SMALL_TALK, "days, animals, words, capitals": world.KNOWLEDGE, "sums to 20": world.SUMS}
    new = {name: accuracy(model, [(f, q) for f in group for q in corpus.split_phrasings(f)[1]]) + (sum(len(corpus.split_phrasings(f)[1]) for f in group),) for name, group in groups.items()}
    seen = [(fact, rng.choice(corpus.TRAINED[fact.key])) for fact in rng.sample(corpus.ALL_FACTS, TRAINED_COUNT)]
    unknown = [model.answer(world.unknown_question(rng), limit=60) for _ in range(UNKNOWN_COUNT)]
    free = [(question, model.answer(question, limit=60)) for question in FREE_UNKNOWN]
    return {"new": new, "seen": accuracy(model, seen)[0], "unknown": sum("do not know" in a for a in unknown) / UNKNOWN_COUNT, "free": free, "stories": story_measures(model, rng), "loss": held_out_loss(model)}


def samples(model):
    """(title, text) of every sample shown in RESULTS.md."""
    for question in SAMPLE_QUESTIONS:
        yield question, model.answer(question)
    for request in SAMPLE_STORIES:
        yield f"{request} (temperature 0)", model.answer(request)
    for seed in (1, 2):
        yield f"{SAMPLE_STORIES[0]} (temperature 0.8, seed {seed})", model.answer(SAMPLE_STORIES[0], temperature=0.8, seed=seed)
    yield f"{SAMPLE_PROMPT} (plain completion, temperature 0)", SAMPLE_PROMPT + model.generate(corpus.BOS + SAMPLE_PROMPT)[0]
    yield f"{SAMPLE_PROMPT} (plain completion, temperature 0.8, seed 3)", SAMPLE_PROMPT + model.generate(corpus.BOS + SAMPLE_PROMPT, temperature=0.8, seed=3)[0]


def percent(share):
    return f"{100 * share:.1f} %"


def report(model, run, found):
    sizes = [np.size(t[0]) if isinstance(t, tuple) else t.size for t in model.tensors.values()]
    ternary = sum(np.size(t[0]) for t in model.tensors.values() if isinstance(t, tuple))
    told = found["stories"]
    kinds = ("animal", "two animals", "thing")
    lines = [
        "# Results of the demo model", "", "Written by `reference.py`, which reads the exported file and runs it in numpy. All numbers are measured.", "",
        "| What | Value |", "|---|---|",
        f"| parameters | {sum(sizes):,}, of which {ternary:,} ternary |", f"| file | {MODEL.stat().st_size:,} bytes |",
        f"| training tokens | {run['tokens']:,} in {run['step']:,} steps |", f"| wall time of training | {run['seconds'] / 60:.0f} minutes on 2 CPU cores shared with other work |",
        f"| training loss, mean of the last steps | {run['train_loss']:.4f} |", f"| held-out loss in the trainer | {run['held_out_loss']:.4f} |", f"| held-out loss of the exported file ({HELD_OUT_DOCUMENTS} other documents) | {found['loss']:.4f} |", "",
        "Losses are weighted means per token: answers count 1, prompts 0.1, plain text 0.7. Held-out documents come from other seeds of the same generator, so they are new stories and new mixtures, not a new kind of text.", "",
        "## Answers to phrasings it was not trained on (temperature 0)", "", "| About | questions | right |", "|---|---|---|",
        *[f"| {name} | {count} | {percent(share)} |" for name, (share, _, count) in found["new"].items()], "",
        f"An answer is right when it contains the strings that `must` names in `facts.py` and `world.py`. On {TRAINED_COUNT} phrasings it was trained on: {percent(found['seen'])}.", "",
        f"New questions from the generator of unanswerable ones, declined: {percent(found['unknown'])} of {UNKNOWN_COUNT}.", "", "Questions of a kind it never saw, all answers:", "",
        *[f"- {question} → {answer}" for question, answer in found["free"]], "",
        "## Stories asked for (temperature 0)", "", f"Of {STORY_COUNT}, {told['ended']} ended by themselves within {MAX_NEW_TOKENS} tokens and {told['names']} had exactly two names, as they should. What was asked for appeared:", "",
        *[f"- {kind}: {told[kind, 'present']} of {told[kind]}" for kind in kinds], "",
        "## Samples, verbatim", "", *[line for title, text in samples(model) for line in (f"**{title}**", "", f"> {text}", "")],
        "## Wrong answers above (first 40)", "", *[f"- [{key}] {question} → {answer}" for _, wrong, _ in found["new"].values() for key, question, answer in wrong][:40], "",
        "## What it is not good at", "",
        "- It knows what its generator says and nothing else. Everything outside is declined at best and answered with an unrelated sentence at worst (see the list above).",
        "- It matches the words of a question; it does not reason. Sums beyond 10 + 10 and differences beyond 10 are not in its training.",
        "- Its stories follow the thirty plots of `stories.py`. Their parts are mixed anew, the plots are not.",
        "- It understands English only, and texts longer than about a thousand tokens are beyond what it saw.", "",
    ]
    RESULTS.write_text("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ask", help="answer one question and stop")
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    model = Model(MODEL)
    if args.ask:
        print(model.answer(args.ask, temperature=args.temperature))
        return
    began = time.monotonic()
    report(model, json.loads(RUN.read_text()), measure(model))
    print(f"{RESULTS.name} written after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
