"""Hugging Face directories of tiny random models, saved by Transformers itself, and the logits Transformers makes of them.

    python hf_convert.py ../../engine/model/tests/data/convert

writes NAME/ (config.json, model.safetensors, tokenizer.json, ...) and NAME.json (sequences and logits as in hf_logits.py):

| name          | what                                                                                               |
|---------------|----------------------------------------------------------------------------------------------------|
| masters       | BitNetForCausalLM, bf16 master weights, `quantization_mode` online: absmean at every forward pass    |
| packed        | the same kind of model as packed U8 with bf16 weight_scale, AutoBitLinear: W = code * weight_scale   |
| packed_llama  | LlamaForCausalLM, packed U8, plain BitLinear: W = code / weight_scale; a head of its own             |

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

import hf_logits
import tokenizer_vectors

MODELS = {
    "masters": dict(seed=11, arch="bitnet-b1.58", act="relu2", d=128, ff=128, layers=1, heads=4, kv=2, theta=5e5, eps=1e-5),
    "packed": dict(seed=12, arch="bitnet-b1.58", act="relu2", d=128, ff=256, layers=1, heads=4, kv=2, theta=5e5, eps=1e-5),
    "packed_llama": dict(seed=13, arch="llama", act="silu", d=128, ff=256, layers=1, heads=2, kv=1, theta=1000042.0, eps=1e-6),
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
    vocabularies(out)


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
        if isinstance(module, AutoBitLinear) and key.endswith(".weight") and name == "packed":
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


def write_tokenizer(values, directory):
    """The vocabulary of hf_logits.py as tokenizer.json and tokenizer_config.json."""
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
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
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
