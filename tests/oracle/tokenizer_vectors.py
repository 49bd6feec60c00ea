"""Token ids by the reference tokenizers, for small vocabularies trained here, as test vectors.

    python tokenizer_vectors.py ../../engine/model/tests/data

writes `tokenizer_PRE.gguf` (a header with the tokenizer keys, no tensors) and `tokenizer_PRE.json`:

    {"cases": [{"text": "...", "add_special": false, "parse_special": false, "ids": [...]}, ...]}

- llama-bpe, falcon3, qwen2, gpt-2: byte-level BPE by Hugging Face `tokenizers`. The pre-tokenizer regexes are those of the models named;
  falcon3 is taken as llama-bpe under another name, as llama.cpp has it. ignore_merges where the model has it (llama-bpe, falcon3);
  every vocabulary holds a few whole words no merge leads to, so that the difference shows. No Unicode normalisation: GGUF has no key for it.
- spm, spm_no_prefix: a SentencePiece BPE model with byte fallback, add_space_prefix true and false.

parse_special false: control tokens in the text are ordinary text; user-defined ones are always found. add_special: the text with BOS in front.
SentencePiece itself never looks for special tokens in text; the cases with parse_special are cut there and the parts encoded one by one,
each with its own leading blank, as llama.cpp does.

Every vector is checked by a few lines of Python (`split` and `merge` below) that know only the GGUF file.
"""

import argparse
import io
import json
import pathlib

import regex
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import gguf_file
from gguf_file import F32List, I32List
from tokenizer_corpus import CONTROL, CORPUS, TEXTS, UNMERGED, USER_DEFINED

N_MERGED = 900  # bytes and merged tokens
N_PIECES = 700

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PRE = {
    "llama-bpe": dict(pattern=LLAMA3, ignore_merges=True, add_bos=True),
    "falcon3": dict(pattern=LLAMA3, ignore_merges=True, add_bos=True),
    "qwen2": dict(pattern=QWEN2, ignore_merges=False, add_bos=False),
    "gpt-2": dict(pattern=GPT2, ignore_merges=False, add_bos=False),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    for pre, rules in PRE.items():
        tokenizer, values = byte_level(pre, **rules)
        cases = byte_level_cases(tokenizer, rules["add_bos"])
        save(out / f"tokenizer_{pre}", values, cases)
        check_byte_level(out / f"tokenizer_{pre}.gguf", cases, **rules)
    for name, prefix in (("spm", True), ("spm_no_prefix", False)):
        processor, values = sentence_piece(prefix)
        cases = sentence_piece_cases(processor, prefix)
        save(out / f"tokenizer_{name}", values, cases)
        check_sentence_piece(out / f"tokenizer_{name}.gguf", cases, prefix)


def save(path, values, cases):
    gguf_file.write(f"{path}.gguf", values, [])
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    pathlib.Path(f"{path}.json").write_text(f'{{"cases":[\n{lines}\n]}}\n')
    print(f"{path.name}: {len(values['tokenizer.ggml.tokens'])} tokens, {len(cases)} cases")


# Byte-level BPE ---------------------------------------------------------------------------------------------------


def byte_level(pre, pattern, ignore_merges, add_bos):
    """Trains a vocabulary; returns the tokenizer and the GGUF values that say the same."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = splitter
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=N_MERGED, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator([CORPUS], trainer)
    learnt = json.loads(learner.to_str())["model"]
    vocab, merges = dict(learnt["vocab"]), [tuple(pair) for pair in learnt["merges"]]
    for word in UNMERGED:
        vocab.setdefault("".join(byte_symbols()[b] for b in word.encode()), len(vocab))

    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in USER_DEFINED])
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    types = I32List([1] * len(vocab) + [3] * len(CONTROL) + [4] * len(USER_DEFINED))
    bos = len(vocab)
    return tokenizer, {
        "general.architecture": "bitnet-b1.58",
        "general.name": f"tokenizer {pre}",
        "bitnet-b1.58.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": bos + 1,
        "tokenizer.ggml.eot_token_id": bos + 2,
        "tokenizer.ggml.add_bos_token": add_bos,
    }


def byte_level_cases(tokenizer, add_bos):
    cases = []
    for text in TEXTS:
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        if not any(word in text for word in USER_DEFINED):
            assert tokenizer.decode(plain, skip_special_tokens=False) == text
        tokenizer.encode_special_tokens = False
        parsed = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append(case(text, plain))
        if parsed != plain:
            cases.append(case(text, parsed, parse_special=True))
    bos = [tokenizer.token_to_id(CONTROL[0])] if add_bos else []
    return cases + [case(text, bos + tokenizer.encode(text).ids, add_special=True) for text in ("", "Hello, world!")]


def case(text, ids, add_special=False, parse_special=False):
    return {"text": text, "add_special": add_special, "parse_special": parse_special, "ids": ids}


def byte_symbols():
    """The printable stand-in of each of the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(others)) for b in range(256)]


def check_byte_level(path, cases, pattern, ignore_merges, add_bos):
    values, _ = gguf_file.read(path)
    ids = {token: i for i, token in enumerate(values["tokenizer.ggml.tokens"])}
    ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(values["tokenizer.ggml.merges"])}
    symbols = byte_symbols()

    def encode(text):
        for word in regex.findall(pattern, text):
            word = "".join(symbols[b] for b in word.encode())
            if ignore_merges and word in ids:
                yield ids[word]
            else:
                yield from (ids[s] for s in merge(list(word), lambda a, b: ranks.get((a, b))))

    for c in cases:
        expected = [values["tokenizer.ggml.bos_token_id"]] if c["add_special"] and add_bos else []
        for part in split(c["text"], values, c["parse_special"]):
            expected += [ids[part]] if part in CONTROL + USER_DEFINED and is_found(part, c) else list(encode(part))
        assert expected == c["ids"], (path.name, c, expected)


def is_found(part, c):
    return part in USER_DEFINED or c["parse_special"]


# SentencePiece ----------------------------------------------------------------------------------------------------


def sentence_piece(prefix):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=N_PIECES,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        split_digits=True,
        control_symbols=["<|eot_id|>"],
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    n = processor.get_piece_size()
    return processor, {
        "general.architecture": "bitnet",
        "general.name": "tokenizer spm",
        "bitnet.vocab_size": n,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(n)],
        "tokenizer.ggml.scores": F32List([processor.get_score(i) for i in range(n)]),
        "tokenizer.ggml.token_type": I32List([piece_type(processor, i) for i in range(n)]),
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def piece_type(processor, i):
    if processor.is_unknown(i):
        return 2
    if processor.is_control(i):
        return 3
    return 6 if processor.is_byte(i) else 1


def sentence_piece_cases(processor, prefix):
    eot, bos = processor.piece_to_id("<|eot_id|>"), processor.bos_id()
    cases = []
    for text in TEXTS:
        ids = processor.encode(text)
        cases.append(case(text, ids))
        if "<|eot_id|>" in text:
            parts = [processor.encode(part) for part in text.split("<|eot_id|>")]
            parsed = parts[0] + [i for part in parts[1:] for i in [eot, *part]]
            cases.append(case(text, parsed, parse_special=True))
    return cases + [case(text, [bos, *processor.encode(text)], add_special=True) for text in ("", "Hello, world!")]


def check_sentence_piece(path, cases, prefix):
    values, _ = gguf_file.read(path)
    types, scores = values["tokenizer.ggml.token_type"], values["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(values["tokenizer.ggml.tokens"])}
    found = {token: i for token, i in ids.items() if types[i] == 1}
    cost = lambda a, b: -scores[found[a + b]] if a + b in found else None

    def encode(text):
        for symbol in merge(list(((" " if prefix else "") + text).replace(" ", "\u2581")), cost) if text else []:
            yield from [found[symbol]] if symbol in found else (ids[f"<0x{b:02X}>"] for b in symbol.encode())

    for c in cases:
        expected = [values["tokenizer.ggml.bos_token_id"]] if c["add_special"] else []
        for part in split(c["text"], values, c["parse_special"]):
            expected += [ids[part]] if part == "<|eot_id|>" and c["parse_special"] else list(encode(part))
        assert expected == c["ids"], (path.name, c, expected)


# Both -------------------------------------------------------------------------------------------------------------


def split(text, values, parse_special):
    """Cuts out the user-defined tokens, and the control tokens if asked, longest first."""
    kinds = (3, 4) if parse_special else (4,)
    pairs = zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"])
    special = sorted((token for token, kind in pairs if kind in kinds), key=len, reverse=True)
    parts = regex.split("(" + "|".join(map(regex.escape, special)) + ")", text) if special else [text]
    return [part for part in parts if part]


def merge(symbols, cost):
    """Joins the neighbours of lowest cost, leftmost first, until no pair has one."""
    while True:
        costs = [(c, i) for i, pair in enumerate(zip(symbols, symbols[1:])) if (c := cost(*pair)) is not None]
        if not costs:
            return symbols
        _, i = min(costs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


if __name__ == "__main__":
    main()
