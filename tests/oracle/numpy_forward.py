"""A second opinion: reads a tiny BitNet GGUF and computes its logits with NumPy, float32, exact integer dot products.

    python numpy_forward.py ../../engine/model/tests/data/hf_bitnet.gguf [--kv f16]

compares them with the vectors beside the file (`hf_bitnet.json`) and prints the largest relative difference. It knows the
file, not the Transformers model it came from: it catches mistakes of the export (row order, packing, scale, keys).
`--kv f16` rounds keys and values to f16 first and so shows how much of a difference an f16 cache makes.
"""

import argparse
import json
import pathlib

import numpy as np

import gguf_file


def logits(path, tokens, kv=np.float32):
    """[len(tokens), n_vocab] float32: the logits after each token, every sequence starting at position 0."""
    values, t = gguf_file.read(path)
    arch = values["general.architecture"]
    get = lambda key: values[f"{arch}.{key}"]
    n_head, n_head_kv = get("attention.head_count"), get("attention.head_count_kv")
    eps = np.float32(get("attention.layer_norm_rms_epsilon"))
    x = t["token_embd.weight"][tokens]
    n_pos, head_dim = len(tokens), get("rope.dimension_count")
    act = relu2 if arch == "bitnet-b1.58" else silu
    rope = rope_interleaved if arch == "llama" else rope_neox
    angles = angle_table(n_pos, head_dim, get("rope.freq_base"))
    causal = np.triu(np.full((n_pos, n_pos), -np.inf, np.float32), 1)
    for i in range(get("block_count")):
        w = lambda name: t[f"blk.{i}.{name}.weight"]
        sub_norm = lambda v, name: rms_norm(v, w(name), eps) if f"blk.{i}.{name}.weight" in t else v
        h = rms_norm(x, w("attn_norm"), eps)
        q = rope(linear(h, w("attn_q")).reshape(n_pos, n_head, head_dim), angles)
        k = rope(linear(h, w("attn_k")).reshape(n_pos, n_head_kv, head_dim), angles)
        v = linear(h, w("attn_v")).reshape(n_pos, n_head_kv, head_dim)
        k, v = (np.repeat(a.astype(kv).astype(np.float32), n_head // n_head_kv, axis=1) for a in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(np.float32(head_dim)) + causal
        a = np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(n_pos, n_head * head_dim)
        x = x + linear(sub_norm(a, "attn_sub_norm"), w("attn_output"))
        h = rms_norm(x, w("ffn_norm"), eps)
        u = act(linear(h, w("ffn_gate"))) * linear(h, w("ffn_up"))
        x = x + linear(sub_norm(u, "ffn_sub_norm"), w("ffn_down"))
    return rms_norm(x, t["output_norm.weight"], eps) @ t.get("output.weight", t["token_embd.weight"]).T


def linear(x, weight):
    """x: [n, cols]; weight: (codes [rows, cols], scale). int8 activations per row, integer sums, then one scaling."""
    codes, scale = weight
    s = np.float32(127) / np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
    q = np.clip(np.rint(x * s), -128, 127).astype(np.int32)
    return (q @ codes.T.astype(np.int32)).astype(np.float32) / s * scale


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True, dtype=np.float32) + eps) * weight


def relu2(x):
    return np.maximum(x, 0) ** 2


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def angle_table(n_pos, head_dim, base):
    inverse = np.float32(1) / np.float32(base) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    return (np.arange(n_pos, dtype=np.float32)[:, None] * inverse)[:, None, :]


def rope_neox(x, angles):
    """Pairs (i, i + head_dim/2)."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def rope_interleaved(x, angles):
    """Pairs (2i, 2i + 1)."""
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = a * np.cos(angles) - b * np.sin(angles)
    out[..., 1::2] = b * np.cos(angles) + a * np.sin(angles)
    return out


def largest_difference(path, vectors, kv=np.float32):
    """max |ours - theirs| / max |theirs| over all recorded rows; asserts the same best token at every position."""
    worst = 0.0
    for sequence in vectors["sequences"]:
        ours = logits(path, sequence["tokens"], kv)
        if kv == np.float32:
            assert ours.argmax(-1).tolist() == sequence["argmax"]
        for position, row in zip(sequence["positions"], sequence["logits"], strict=True):
            theirs = np.array(row, np.float32)
            worst = max(worst, float(np.abs(ours[position] - theirs).max() / np.abs(theirs).max()))
    return worst


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--kv", choices=["f32", "f16"], default="f32")
    args = parser.parse_args()
    vectors = json.loads(args.gguf.with_suffix(".json").read_text())
    kv = {"f32": np.float32, "f16": np.float16}[args.kv]
    print(f"{args.gguf.name}: largest relative difference {largest_difference(args.gguf, vectors, kv):.1e}")
