"""Writes the trained model as one GGUF v3 file with I2_S weights, laid out like Microsoft's official file.

Layout: header, key-value pairs, tensor infos, padding, tensor data in the order of the infos. An I2_S tensor
is n/4 bytes of 2-bit codes in the 128 layout (weight j of a block sits in byte j % 32, shifted left by
6 - 2 * (j / 32); code = weight + 1), then one float32 scale and 28 zero bytes. The numbers of the training run go
to run.json beside it.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import torch

import corpus
import tokenizer as tokens
from model import NORM_EPS, BitNet, Config, ternary
from train import CHECKPOINT

OUTPUT = Path(__file__).parent / "bitnet-demo.gguf"
RUN = Path(__file__).parent / "run.json"
ARCHITECTURE = "bitnet-b1.58"
NAME = "bitnet-demo"
FILE_TYPE_I2_S = 40
QUANTIZATION_VERSION = 2
ALIGNMENT = 32
BLOCK, BLOCK_BYTES, TAIL_BYTES = 128, 32, 32
F32, F16, I2_S = 0, 1, 36  # tensor types
U32_VALUE, I32_VALUE, F32_VALUE, BOOL_VALUE, STRING_VALUE, ARRAY_VALUE = 4, 5, 6, 7, 8, 9
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3
RUN_KEYS = ("step", "tokens", "seconds", "train_loss", "held_out_loss")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def string(text):
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def value(kind, content):
    """One GGUF value without its type. An array's content is (element kind, list)."""
    if kind == ARRAY_VALUE:
        element, items = content
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, item) for item in items)
    if kind == STRING_VALUE:
        return string(content)
    return struct.pack({U32_VALUE: "<I", I32_VALUE: "<i", F32_VALUE: "<f", BOOL_VALUE: "<?"}[kind], content)


def vocabulary(bpe):
    """-> (tokens in order of their ids, merges as "left right")."""
    by_id = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [text for text, _ in by_id], [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def metadata(config, bpe):
    """The key-value pairs, in the official file's order and with the keys it lacks."""
    words, merges = vocabulary(bpe)
    kinds = [CONTROL_TOKEN if word in corpus.SPECIALS else NORMAL_TOKEN for word in words]
    special = {word: words.index(word) for word in corpus.SPECIALS}
    arch = ARCHITECTURE
    return [
        ("general.architecture", STRING_VALUE, arch),
        ("general.name", STRING_VALUE, NAME),
        (f"{arch}.vocab_size", U32_VALUE, config.vocab_size),
        (f"{arch}.context_length", U32_VALUE, config.context_length),
        (f"{arch}.embedding_length", U32_VALUE, config.n_embd),
        (f"{arch}.block_count", U32_VALUE, config.n_layer),
        (f"{arch}.feed_forward_length", U32_VALUE, config.n_ff),
        (f"{arch}.rope.dimension_count", U32_VALUE, config.head_dim),
        (f"{arch}.attention.head_count", U32_VALUE, config.n_head),
        (f"{arch}.attention.head_count_kv", U32_VALUE, config.n_head_kv),
        ("tokenizer.ggml.add_bos_token", BOOL_VALUE, True),
        (f"{arch}.attention.layer_norm_rms_epsilon", F32_VALUE, NORM_EPS),
        (f"{arch}.rope.freq_base", F32_VALUE, config.rope_theta),
        ("general.file_type", U32_VALUE, FILE_TYPE_I2_S),
        ("tokenizer.ggml.model", STRING_VALUE, "gpt2"),
        ("tokenizer.ggml.pre", STRING_VALUE, "llama-bpe"),
        ("tokenizer.ggml.tokens", ARRAY_VALUE, (STRING_VALUE, words)),
        ("tokenizer.ggml.scores", ARRAY_VALUE, (F32_VALUE, [0.0] * len(words))),
        ("tokenizer.ggml.token_type", ARRAY_VALUE, (I32_VALUE, kinds)),
        ("tokenizer.ggml.merges", ARRAY_VALUE, (STRING_VALUE, merges)),
        ("tokenizer.ggml.bos_token_id", U32_VALUE, special[corpus.BOS]),
        ("tokenizer.ggml.eos_token_id", U32_VALUE, special[corpus.END]),
        ("tokenizer.ggml.eot_token_id", U32_VALUE, special[corpus.EOT]),
        ("tokenizer.ggml.padding_token_id", U32_VALUE, special[corpus.END]),
        ("tokenizer.chat_template", STRING_VALUE, CHAT_TEMPLATE),
        ("general.quantization_version", U32_VALUE, QUANTIZATION_VERSION),
    ]


def pack_i2_s(weight):
    """weight: [M, K] float32, K % 128 == 0 -> the tensor's bytes."""
    codes, scale = ternary(weight)
    codes = (codes.numpy().astype(np.int8) + 1).astype(np.uint8).reshape(-1, BLOCK // BLOCK_BYTES, BLOCK_BYTES)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return packed.tobytes() + struct.pack("<f", scale.item()).ljust(TAIL_BYTES, b"\0")


def tensors(model):
    """(name, torch shape, type, bytes) of every tensor, in file order."""
    def f32(name, weight):
        return name, tuple(weight.shape), F32, weight.numpy().astype("<f4").tobytes()

    def i2_s(name, weight):
        assert weight.shape[1] % BLOCK == 0
        return name, tuple(weight.shape), I2_S, pack_i2_s(weight)

    state = {name: weight.detach() for name, weight in model.named_parameters()}
    embedding = state["token_embd"]
    yield "token_embd.weight", tuple(embedding.shape), F16, embedding.numpy().astype("<f2").tobytes()
    for layer in range(model.config.n_layer):
        for name, _ in model.blocks[layer].named_parameters():
            weight = state[f"blocks.{layer}.{name}"]
            yield (f32 if weight.ndim == 1 else i2_s)(f"blk.{layer}.{name}.weight", weight)
    yield f32("output_norm.weight", state["output_norm"])


def padding(length):
    return b"\0" * (-length % ALIGNMENT)


def gguf(pairs, listed):
    """The whole file as bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(pairs))
    for key, kind, content in pairs:
        head += string(key) + struct.pack("<I", kind) + value(kind, content)
    offset = 0
    for name, shape, kind, data in listed:
        head += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, offset)
        offset += len(data) + len(padding(len(data)))
    return head + padding(len(head)) + b"".join(data + padding(len(data)) for *_, data in listed)


def load_checkpoint(path=CHECKPOINT):
    """-> (model with master weights, run state)."""
    saved = torch.load(path, weights_only=False, map_location="cpu")
    model = BitNet(Config(**saved["config"]))
    model.load_state_dict(saved["model"])
    return model, saved["state"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    model, state = load_checkpoint()
    data = gguf(metadata(model.config, tokens.load()), list(tensors(model)))
    args.output.write_bytes(data)
    RUN.write_text(json.dumps({key: state[key] for key in RUN_KEYS}, indent=1) + "\n")
    print(f"{args.output.name}: {len(data):,} bytes, step {state['step']}")


if __name__ == "__main__":
    main()
