"""Logits of Hugging Face Transformers' own BitNet layers, on three tiny random models, as test vectors.

    python hf_logits.py ../../engine/model/tests/data

writes, for each model below, `NAME.gguf` (loadable by the whole program) and `NAME.json`:

    {"sequences": [{"tokens": [ids], "argmax": [best id after each token],
                    "positions": [p, ...], "logits": [[n_vocab numbers after token p], ...]}]}

| name           | GGUF architecture | Transformers                                                      |
|----------------|-------------------|-------------------------------------------------------------------|
| hf_bitnet      | bitnet-b1.58      | BitNetForCausalLM, relu2, sub-norms, GQA 4/2, tied F16 embedding  |
| hf_bitnet_silu | bitnet            | BitNetForCausalLM with hidden_act silu, MHA 4/4, tied             |
| hf_llama       | llama             | LlamaForCausalLM, silu, GQA 2/1, F32 `output.weight` of its own   |

Linears are replaced by Transformers' `replace_with_bitnet_linear`: AutoBitLinear (W = code * weight_scale, as 2B-4T) in the
BitNet models, plain BitLinear on packed weights (W = code / weight_scale, as Falcon3 and Llama3-8B-1.58) in the Llama model.
Both quantize each token's input to int8 themselves. Everything runs in float32; embeddings and heads hold values that f16 can hold.

An int8 rounding that falls the other way moves the logits by 1e-3 and more, and a value near n + 1/2 may fall either way in two correct
float32 implementations. So the tokens are chosen one at a time, in such a way that no activation at any position comes
within MARGIN of such a tie, and that the best logit leads clearly. What is left are float32 summation orders: about 1e-6. A key-value cache in
f16 moves many activations over ties and the logits by up to 2 %: compare with an f32 cache.

The export is checked by `numpy_forward.py`, which knows only the file, before anything is written.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the layers are decorated with torch.compile; eager is the reference

import argparse
import json
import pathlib
import tempfile

import numpy as np
import torch
from transformers import BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights, replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

import gguf_file
import numpy_forward
from gguf_file import F16, F32, I2_S, F32List, I32List

MARGIN = 4e-4  # of one int8 step, to the nearest tie
LEAD = 0.02  # of the largest logit, best over second
N_VOCAB = 288
N_SPECIAL = 8

MODELS = {
    "hf_bitnet": dict(seed=1, arch="bitnet-b1.58", act="relu2", d=128, ff=384, layers=3, heads=4, kv=2, theta=5e5, eps=1e-5),
    "hf_bitnet_silu": dict(seed=2, arch="bitnet", act="silu", d=128, ff=256, layers=2, heads=4, kv=4, theta=1e4, eps=1e-5),
    "hf_llama": dict(seed=3, arch="llama", act="silu", d=128, ff=256, layers=2, heads=2, kv=1, theta=1000042.0, eps=1e-6),
}

LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {
    "input_layernorm": "attn_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for name, spec in MODELS.items():
        model, codes = random_model(spec)
        vectors = {"sequences": [sequence(model, spec, n, seed) for seed, n in enumerate([24, 24, 70])]}
        with tempfile.TemporaryDirectory() as scratch:
            draft = pathlib.Path(scratch) / "draft.gguf"
            export(model, codes, spec, draft)
            difference = numpy_forward.largest_difference(draft, vectors)
            assert difference < 1e-4, f"{name}: the exported file gives other logits: {difference}"
            rounded = numpy_forward.largest_difference(draft, vectors, np.float16)
            (out / f"{name}.gguf").write_bytes(draft.read_bytes())
        (out / f"{name}.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n")
        print(f"{name}: NumPy differs by {difference:.1e}, with an f16 cache by {rounded:.1e}")


@torch.no_grad()
def random_model(spec):
    """The model in eval mode, and {linear's module name: (codes int8 [rows, cols], scale)}."""
    torch.manual_seed(spec["seed"])
    rng = np.random.default_rng(spec["seed"])
    llama = spec["arch"] == "llama"
    config = (LlamaConfig if llama else BitNetConfig)(
        vocab_size=N_VOCAB,
        hidden_size=spec["d"],
        intermediate_size=spec["ff"],
        num_hidden_layers=spec["layers"],
        num_attention_heads=spec["heads"],
        num_key_value_heads=spec["kv"],
        hidden_act=spec["act"],
        rms_norm_eps=spec["eps"],
        rope_parameters={"rope_type": "default", "rope_theta": spec["theta"]},
        max_position_embeddings=256,
        tie_word_embeddings=not llama,
        bos_token_id=N_VOCAB - N_SPECIAL,
        eos_token_id=N_VOCAB - N_SPECIAL + 1,
        attn_implementation="eager",
    )
    model = (LlamaForCausalLM if llama else BitNetForCausalLM)(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.copy_(torch.from_numpy(rng.uniform(0.4, 1.6, parameter.shape).astype(np.float32)))
        elif "embed_tokens" in name or "lm_head" in name:
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape).astype(np.float16).astype(np.float32)))
    if llama:
        quantization = BitNetQuantConfig(linear_class="bitlinear")
    else:
        quantization = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="offline")
    replace_with_bitnet_linear(model, modules_to_not_convert=["lm_head"], quantization_config=quantization)
    codes = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, (AutoBitLinear, BitLinear)):
            codes[name] = fill(model, name, module, rng)
    model.float().eval()
    return model, codes


def fill(model, name, module, rng):
    """Gives a replaced linear random ternary weights, 42 % of them zero; returns (codes, scale)."""
    codes = rng.choice(np.array([-1, 0, 1], np.int8), size=(module.out_features, module.in_features), p=[0.29, 0.42, 0.29])
    scale = np.float32(rng.uniform(0.8, 1.6) / np.sqrt(module.in_features))
    if isinstance(module, AutoBitLinear):
        fresh = AutoBitLinear(module.in_features, module.out_features, bias=False, dtype=torch.float32)
        fresh.weight.copy_(torch.from_numpy(codes.astype(np.float32)))
        fresh.weight_scale.copy_(torch.tensor([scale]))
    else:
        fresh = BitLinear(module.in_features, module.out_features, bias=False, dtype=torch.float32)
        inverse = np.float32(1) / scale
        fresh.weight.copy_(pack_weights(torch.from_numpy(codes.astype(np.float32))))
        fresh.weight_scale.copy_(torch.tensor([inverse]))
        scale = np.float32(1) / inverse
    model.set_submodule(name, fresh)
    return codes, scale


@torch.no_grad()
def sequence(model, spec, n_tokens, seed):
    """Chooses n_tokens tokens one by one, away from ties, and records what the model makes of them."""
    rng = np.random.default_rng([spec["seed"], seed])
    tokens = []
    for _ in range(n_tokens):
        candidates = rng.permutation(N_VOCAB)[:96]
        prefixes = torch.tensor([[*tokens, int(c)] for c in candidates])
        logits, margins = run(model, prefixes)
        best, second = logits[:, -1].topk(2).values.T
        clear = (best - second) / logits[:, -1].abs().amax(-1) > LEAD
        chosen = int((margins * clear).argmax())
        assert margins[chosen] > MARGIN, f"no candidate keeps clear of the ties at position {len(tokens)}"
        tokens.append(int(candidates[chosen]))
    logits, _ = run(model, torch.tensor([tokens]))
    positions = sorted({p for p in (0, 1, 2, 15, 16, 23, 31, 32, 63, 64, n_tokens - 1) if p < n_tokens})
    return {
        "tokens": tokens,
        "argmax": logits[0].argmax(-1).tolist(),
        "positions": positions,
        "logits": [[float(f"{x:.7g}") for x in logits[0, p].tolist()] for p in positions],
    }


def run(model, tokens):
    """Logits [batch, n, n_vocab] and, per batch row, how near the last token's activations come to a rounding tie."""
    nearest = torch.full((tokens.shape[0],), 0.5)

    def watch(_module, args):
        x = args[0][:, -1].float()
        steps = x * (127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5))
        torch.minimum(nearest, (steps.abs().frac() - 0.5).abs().amin(-1), out=nearest)

    hooks = [m.register_forward_pre_hook(watch) for m in model.modules() if isinstance(m, (AutoBitLinear, BitLinear))]
    logits = model(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits, nearest


def export(model, codes, spec, path):
    """Writes the model as bitnet.cpp's converters would: same keys, names and order as the official 2B-4T file."""
    arch, state = spec["arch"], {**dict(model.named_parameters()), **dict(model.named_buffers())}
    array = lambda name: state[name].detach().numpy()
    tensors = [("token_embd.weight", F16, array("model.embed_tokens.weight"))]
    if arch == "llama":
        tensors.append(("output.weight", F32, array("lm_head.weight")))
    for i in range(spec["layers"]):
        layer = f"model.layers.{i}."
        for theirs, ours in NORMS.items():
            if f"{layer}{theirs}.weight" in state:
                tensors.append((f"blk.{i}.{ours}.weight", F32, array(f"{layer}{theirs}.weight")))
        for theirs, ours in LINEARS.items():
            q, scale = codes[layer + theirs]
            if arch == "llama" and ours in ("attn_q", "attn_k"):
                q = interleave(q, spec["heads"] if ours == "attn_q" else spec["kv"])
            tensors.append((f"blk.{i}.{ours}.weight", I2_S, (q, scale)))
    tensors.append(("output_norm.weight", F32, array("model.norm.weight")))
    gguf_file.write(path, keys(spec), tensors)


def interleave(rows, n_head):
    """Reorders each head's rows from RoPE pairs (i, i + head_dim/2) to pairs (2i, 2i + 1)."""
    return rows.reshape(n_head, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


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
        f"{arch}.rope.dimension_count": spec["d"] // spec["heads"],
        f"{arch}.attention.head_count": spec["heads"],
        f"{arch}.attention.head_count_kv": spec["kv"],
        "tokenizer.ggml.add_bos_token": True,
        f"{arch}.attention.layer_norm_rms_epsilon": spec["eps"],
        f"{arch}.rope.freq_base": spec["theta"],
        "general.file_type": 40,
        **vocabulary(),
        "general.quantization_version": 2,
    }


def vocabulary():
    """All 256 bytes, a few merges, eight special tokens: enough to put any text in and get any text out."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    words = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r", "o n", "Ġ s", "r e", "a t", "Ġ w", "Ġ o", "e n", "n d", "Ġ b", "i t"]
    merges = words + ["o u", "Ġ c", "Ġ f", "in g", "o r", "Ġt o", "e s", "Ġo f"]
    tokens += [pair.replace(" ", "") for pair in merges]
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    specials += [f"<|reserved_special_token_{i}|>" for i in range(3)]
    n_plain = len(tokens)
    assert n_plain + len(specials) == N_VOCAB and len(specials) == N_SPECIAL
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens + specials,
        "tokenizer.ggml.scores": F32List([0.0] * N_VOCAB),
        "tokenizer.ggml.token_type": I32List([1] * n_plain + [3] * len(specials)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": n_plain,
        "tokenizer.ggml.eos_token_id": n_plain + 1,
        "tokenizer.ggml.eot_token_id": n_plain + 2,
        "tokenizer.ggml.padding_token_id": n_plain + 1,
        "tokenizer.chat_template": "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: "
        "{{ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}",
    }


if __name__ == "__main__":
    main()
