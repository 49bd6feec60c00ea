"""Hugging Face directories of tiny random models, saved by Transformers itself, and the logits Transformers makes of them.

    python hf_convert.py ../../engine/model/tests/data/convert

writes NAME/ (config.json, model.safetensors, tokenizer.json, ...) and NAME.json (sequences and logits as in hf_logits.py):

| name          | what                                                                                               |
|---------------|----------------------------------------------------------------------------------------------------|
| masters       | BitNetForCausalLM, bf16 master weights, `quantization_mode` online: absmean at every forward pass    |
| packed        | the same kind of model as packed U8 with bf16 weight_scale, AutoBitLinear: W = code * weight_scale   |
| packed_llama  | LlamaForCausalLM, packed U8, plain BitLinear: W = code / weight_scale; a head of its own             |
| wide          | as packed, SiLU, and no row a multiple of 128 weights, as bitnet_b1_58-3B's are not                  |
| embed_qwen3   | Qwen3Model with norms inside its linears, bf16 master weights: BitNet embedding 0.6B                 |
| embed_gemma3  | Gemma3TextModel, the same: BitNet embedding 270M                                                     |

(the last two with hidden states in place of logits, as in hf_embeddings.py)

and, for the tokenizers alone, `bpe/tokenizer.json` and `spm/tokenizer.model` of the vocabularies that tokenizer_vectors.py has vectors of.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import argparse
import json
import pathlib
import shutil

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.integrations.bitnet import AutoBitLinear, pack_weights
from transformers.utils.quantization_config import BitNetQuantConfig

import hf_embeddings
import hf_logits
import tokenizer_vectors

MODELS = {
    "masters": dict(seed=11, arch="bitnet-b1.58", act="relu2", d=128, ff=128, layers=1, heads=4, kv=2, theta=5e5, eps=1e-5),
    "packed": dict(seed=12, arch="bitnet-b1.58", act="relu2", d=128, ff=256, layers=1, heads=4, kv=2, theta=5e5, eps=1e-5),
    "packed_llama": dict(seed=13, arch="llama", act="silu", d=128, ff=256, layers=1, heads=2, kv=1, theta=1000042.0, eps=1e-6),
    "wide": dict(seed=14, arch="bitnet", act="silu", d=288, ff=352, layers=1, heads=9, kv=3, theta=1e4, eps=1e-5),
}
EMBEDDING_MODELS = {
    "embed_qwen3": {**hf_embeddings.MODELS["hf_qwen3"], "seed": 15, "layers": 1},
    "embed_gemma3": {**hf_embeddings.MODELS["hf_gemma3"], "seed": 16, "layers": 1},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for name, spec in MODELS.items():
        directory = out / name
        shutil.rmtree(directory, ignore_errors=True)
        model = make(spec, name)
        save(model, spec, name, directory)
        vectors = {"sequences": [hf_logits.sequence(model, spec, 24, 0)]}
        (out / f"{name}.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n")
        print(f"{name}: {sum(f.stat().st_size for f in directory.iterdir())} bytes")
    for name, spec in EMBEDDING_MODELS.items():
        directory = out / name
        shutil.rmtree(directory, ignore_errors=True)
        model, state = embedding_model(spec)
        save_embedding(model, state, spec, directory)
        vectors = {"sequences": [hf_embeddings.sequence(model, spec, 20, 0)]}
        (out / f"{name}.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n")
        print(name)
    vocabularies(out)


@torch.no_grad()
def embedding_model(spec):
    """The model in float32, and what its safetensors hold: values that bf16 holds, linears as masters whose absmean gives the codes."""
    model, linears = hf_embeddings.random_model(spec)
    rng = np.random.default_rng(spec["seed"])
    state = {}
    for name, (codes, _, norm) in linears.items():
        spread = rng.uniform(0.8, 1.6) / np.sqrt(codes.shape[1])
        masters = torch.from_numpy(rng.normal(scale=spread, size=codes.shape).astype(np.float32)).bfloat16()
        scale = masters.float().abs().mean().clamp(min=1e-5)
        codes = (masters.float() / scale).round().clamp(-1, 1).numpy().astype(np.int8)
        norm = torch.from_numpy(norm).bfloat16()
        model.set_submodule(name, hf_embeddings.NormedBitLinear(codes, np.float32(scale), norm.float().numpy(), spec["eps"]))
        state[f"{name}.weight"], state[f"{name}.norm.weight"] = masters, norm
    for name, parameter in model.named_parameters():
        if "_proj." not in name:
            parameter.copy_(parameter.bfloat16().float())
            state[name] = parameter.bfloat16()
    return model.float().eval(), state


def save_embedding(model, state, spec, directory):
    """As Microsoft's repositories are described: tensor names without `model.`, pooling beside them as Sentence Transformers has it."""
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    (directory / "1_Pooling").mkdir(parents=True)
    config.save_pretrained(directory)
    save_file({name: value.contiguous() for name, value in state.items()}, directory / "model.safetensors", metadata={"format": "pt"})
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (directory / "modules.json").write_text(json.dumps(modules, indent=1) + "\n")
    modes = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}
    pooling = {"word_embedding_dimension": spec["d"], **modes}
    (directory / "1_Pooling/config.json").write_text(json.dumps(pooling, indent=1) + "\n")
    write_tokenizer(hf_logits.vocabulary(), directory, ends=True)


@torch.no_grad()
def make(spec, name):
    """The model in float32, with values that bf16 holds, and its linears replaced by Transformers' own."""
    model, _ = hf_logits.random_model(spec)
    if name == "masters":
        rng = np.random.default_rng(spec["seed"])
        for path, module in list(model.named_modules()):
            if isinstance(module, AutoBitLinear):
                online = AutoBitLinear(module.in_features, module.out_features, bias=False, dtype=torch.float32, online_quant=True)
                spread = rng.uniform(0.8, 1.6) / np.sqrt(module.in_features)
                masters = rng.normal(scale=spread, size=online.weight.shape).astype(np.float32)
                online.weight.copy_(torch.from_numpy(masters))
                model.set_submodule(path, online)
        model.float().eval()
    scales = [buffer for name, buffer in model.named_buffers() if name.endswith("weight_scale")]
    for value in [*model.parameters(), *scales]:
        if value.is_floating_point():
            value.copy_(value.bfloat16().float())
    return model


@torch.no_grad()
def save(model, spec, name, directory):
    """As the published repositories: config.json by Transformers, weights bf16 and U8, tokenizer files."""
    llama = spec["arch"] == "llama"
    state = {}
    modules = dict(model.named_modules())
    for key, value in model.state_dict().items():
        module = modules[key.rsplit(".", 1)[0]]
        if isinstance(module, AutoBitLinear) and key.endswith(".weight") and name in ("packed", "wide"):
            value = pack_weights(value.clone())  # it adds 1 in place
        if not llama and key == "lm_head.weight":
            continue
        state[key] = value.bfloat16().contiguous() if value.is_floating_point() else value.contiguous()
    config = model.config
    if llama:
        config.quantization_config = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}
    else:
        mode = "online" if name == "masters" else "offline"
        quantization = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode=mode)
        config.quantization_config = quantization.to_dict()
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    values = hf_logits.vocabulary()
    write_tokenizer(values, directory)


def write_tokenizer(values, directory, ends=False):
    """The vocabulary of hf_logits.py as tokenizer.json and tokenizer_config.json; a text begins with a token, or ends with one."""
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    plain = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    merges = [tuple(pair.split(" ")) for pair in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=plain, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(tokenizer_vectors.LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = tokens[len(plain) :]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in specials])
    bos = specials[0]
    edge = specials[2] if ends else bos
    single = f"$A {edge}" if ends else f"{edge} $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(edge, tokenizer.token_to_id(edge))])
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": specials[1],
        "pad_token": specials[1],
        "chat_template": values["tokenizer.chat_template"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def vocabularies(out):
    """The tokenizers of tokenizer_vectors.py in Hugging Face's and SentencePiece's own files."""
    rules = tokenizer_vectors.PRE["llama-bpe"]
    tokenizer, _ = tokenizer_vectors.byte_level("llama-bpe", **rules)
    (out / "bpe").mkdir(parents=True, exist_ok=True)
    tokenizer.encode_special_tokens = False
    tokenizer.save(str(out / "bpe/tokenizer.json"), pretty=False)
    for name, prefix in (("spm", True), ("spm_no_prefix", False)):
        processor, _ = tokenizer_vectors.sentence_piece(prefix)
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "tokenizer.model").write_bytes(processor.serialized_model_proto())


if __name__ == "__main__":
    main()
