"""Hidden states of Hugging Face Transformers' Qwen3 and Gemma 3 with BitNet linears, on tiny random models, as test vectors.

    python hf_embeddings.py ../../engine/model/tests/data

writes `hf_qwen3.gguf`, `hf_gemma3.gguf` and beside each a `.json`:

    {"sequences": [{"tokens": [ids], "positions": [p, ...], "hidden": [[n_embd numbers behind the last norm at p], ...]}]}

The layers, norms, attention and activations are Transformers' own; each linear is replaced by `NormedBitLinear` below, which is
what Microsoft's embedding models have in its place: an RMS norm of its own, then an int8 quantisation of each token, then
a ternary matrix with one scale. Transformers' own AutoBitLinear does the last two.

The files are what Microsoft's converter for these models is described to write: F16 embedding and norms, the norms of
Gemma 3 stored as w + 1 (but not the linears' own), linears I2_S, `attention.key_length` and `value_length`, `pooling_type` 3, no
`output.weight`, no key for a sliding window: all layers of Gemma 3 see the whole text, and turn with one base.

Tokens are chosen away from rounding ties as `hf_logits.py` explains.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the layers are decorated with torch.compile; eager is the reference

import argparse
import json
import pathlib

import numpy as np
import torch
from transformers import Gemma3TextConfig, Gemma3TextModel, Qwen3Config, Qwen3Model
from transformers.integrations.bitnet import AutoBitLinear

import gguf_file
from gguf_file import F16, I2_S
from hf_logits import LINEARS, MARGIN, N_SPECIAL, N_VOCAB, vocabulary

MODELS = {
    "hf_qwen3": dict(seed=11, arch="qwen3", d=128, ff=256, layers=2, heads=4, kv=2, head_dim=64, theta=1e6, eps=1e-6),
    "hf_gemma3": dict(seed=12, arch="gemma3", d=128, ff=256, layers=2, heads=2, kv=1, head_dim=128, theta=1e4, eps=1e-6),
}
NORMS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
FFN_NORMS = {
    "qwen3": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


class NormedBitLinear(torch.nn.Module):
    """x -> W quantised(rms_norm(x)); W = codes * scale."""

    def __init__(self, codes, scale, norm, eps):
        super().__init__()
        rows, cols = codes.shape
        self.linear = AutoBitLinear(cols, rows, bias=False, dtype=torch.float32)
        self.linear.weight.data.copy_(torch.from_numpy(codes.astype(np.float32)))
        self.linear.weight_scale.data.copy_(torch.tensor([scale]))
        self.norm = torch.nn.Parameter(torch.from_numpy(norm))
        self.eps = eps

    def forward(self, x):
        return self.linear(x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.norm)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for name, spec in MODELS.items():
        model, linears = random_model(spec)
        vectors = {"sequences": [sequence(model, spec, n, seed) for seed, n in enumerate([20, 50])]}
        export(model, linears, spec, out / f"{name}.gguf")
        (out / f"{name}.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n")
        print(name)


@torch.no_grad()
def random_model(spec):
    """The model in eval mode, and {linear's module name: (codes int8 [rows, cols], scale, norm [cols])}."""
    torch.manual_seed(spec["seed"])
    rng = np.random.default_rng(spec["seed"])
    common = dict(
        vocab_size=N_VOCAB,
        hidden_size=spec["d"],
        intermediate_size=spec["ff"],
        num_hidden_layers=spec["layers"],
        num_attention_heads=spec["heads"],
        num_key_value_heads=spec["kv"],
        head_dim=spec["head_dim"],
        rms_norm_eps=spec["eps"],
        max_position_embeddings=256,
        bos_token_id=N_VOCAB - N_SPECIAL,
        eos_token_id=N_VOCAB - N_SPECIAL + 1,
        attn_implementation="eager",
        layer_types=["full_attention"] * spec["layers"],
    )
    rope = {"rope_type": "default", "rope_theta": spec["theta"]}
    if spec["arch"] == "qwen3":
        model = Qwen3Model(Qwen3Config(rope_parameters=rope, **common))
    else:
        rope = {"full_attention": rope, "sliding_attention": rope}
        model = Gemma3TextModel(Gemma3TextConfig(rope_parameters=rope, query_pre_attn_scalar=spec["head_dim"], **common))
    halves = lambda low, high, shape: rng.uniform(low, high, shape).astype(np.float16).astype(np.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            # Gemma 3 multiplies by 1 + w; both w and 1 + w are made to be values that f16 holds.
            whole = halves(0.4, 1.6, parameter.shape)
            parameter.copy_(torch.from_numpy(whole - 1 if spec["arch"] == "gemma3" else whole))
        elif "embed_tokens" in name:
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float16).astype(np.float32)))
    linears = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            shape = (module.out_features, module.in_features)
            codes = rng.choice(np.array([-1, 0, 1], np.int8), size=shape, p=[0.29, 0.42, 0.29])
            scale = np.float32(rng.uniform(0.8, 1.6) / np.sqrt(module.in_features))
            norm = halves(0.4, 1.6, module.in_features)
            linears[name] = codes, scale, norm
            model.set_submodule(name, NormedBitLinear(codes, scale, norm, spec["eps"]))
    model.float().eval()
    return model, linears


@torch.no_grad()
def sequence(model, spec, n_tokens, seed):
    """Chooses n_tokens tokens one by one, away from ties, and records what the model makes of them."""
    rng = np.random.default_rng([spec["seed"], seed])
    tokens = []
    for _ in range(n_tokens):
        candidates = rng.permutation(N_VOCAB)[:96]
        _, margins = run(model, torch.tensor([[*tokens, int(c)] for c in candidates]))
        chosen = int(margins.argmax())
        assert margins[chosen] > MARGIN, f"no candidate keeps clear of the ties at position {len(tokens)}"
        tokens.append(int(candidates[chosen]))
    hidden, _ = run(model, torch.tensor([tokens]))
    positions = sorted({p for p in (0, 1, 7, 16, 31, n_tokens - 1) if p < n_tokens})
    return {
        "tokens": tokens,
        "positions": positions,
        "hidden": [[float(f"{x:.7g}") for x in hidden[0, p].tolist()] for p in positions],
    }


def run(model, tokens):
    """Hidden states [batch, n, d] and, per batch row, how near the last token's activations come to a rounding tie."""
    nearest = torch.full((tokens.shape[0],), 0.5)

    def watch(_module, args):
        x = args[0][:, -1].float()
        steps = x * (127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5))
        torch.minimum(nearest, (steps.abs().frac() - 0.5).abs().amin(-1), out=nearest)

    hooks = [m.register_forward_pre_hook(watch) for m in model.modules() if isinstance(m, AutoBitLinear)]
    hidden = model(tokens, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    return hidden, nearest


def export(model, linears, spec, path):
    arch, state = spec["arch"], dict(model.named_parameters())
    norm = lambda name: state[f"{name}.weight"].detach().numpy() + np.float32(arch == "gemma3")
    tensors = [("token_embd.weight", F16, state["embed_tokens.weight"].detach().numpy())]
    for i in range(spec["layers"]):
        layer = f"layers.{i}."
        for theirs, ours in {**NORMS, **FFN_NORMS[arch]}.items():
            tensors.append((f"blk.{i}.{ours}.weight", F16, norm(layer + theirs)))
        for theirs, ours in LINEARS.items():
            codes, scale, norm_in = linears[layer + theirs]
            tensors.append((f"blk.{i}.{ours}.weight", I2_S, (codes, scale)))
            tensors.append((f"blk.{i}.{ours}_norm_in.weight", F16, norm_in))
    tensors.append(("output_norm.weight", F16, norm("norm")))
    gguf_file.write(path, keys(spec), tensors)


def keys(spec):
    arch = spec["arch"]
    return {
        "general.architecture": arch,
        "general.name": f"tiny random {arch}",
        f"{arch}.vocab_size": N_VOCAB,
        f"{arch}.context_length": 256,
        f"{arch}.embedding_length": spec["d"],
        f"{arch}.block_count": spec["layers"],
        f"{arch}.feed_forward_length": spec["ff"],
        f"{arch}.rope.dimension_count": spec["head_dim"],
        f"{arch}.attention.key_length": spec["head_dim"],
        f"{arch}.attention.value_length": spec["head_dim"],
        f"{arch}.attention.head_count": spec["heads"],
        f"{arch}.attention.head_count_kv": spec["kv"],
        f"{arch}.attention.layer_norm_rms_epsilon": spec["eps"],
        f"{arch}.rope.freq_base": spec["theta"],
        f"{arch}.pooling_type": 3,
        "general.file_type": 40,
        **vocabulary(),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": True,
        "general.quantization_version": 2,
    }


if __name__ == "__main__":
    main()
