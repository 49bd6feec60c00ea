"""Trains and loads the demo model's own byte-level BPE tokenizer.

Pre-tokenisation is that of Llama 3 (`llama-bpe` in GGUF). The three special tokens stand at the end of
the vocabulary. Training reads documents of the corpus, never the held-out ones.
"""

from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import corpus

PATH = Path(__file__).parent / "tokenizer.json"
VOCAB_SIZE = 2048
TRAINING_DOCUMENTS = 40_000
TRAINING_SEED = 900_001
LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def train():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE - len(corpus.SPECIALS), min_frequency=2,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    pieces = (text for document in corpus.documents(TRAINING_SEED, TRAINING_DOCUMENTS)
              for text, _ in document if text not in corpus.SPECIALS)
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_special_tokens(corpus.SPECIALS)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def load():
    return Tokenizer.from_file(str(PATH))


def encode_documents(tokenizer, documents):
    """-> one (ids int32, weights float32) pair of equal length per document."""
    special = {text: tokenizer.token_to_id(text) for text in corpus.SPECIALS}
    texts = sorted({text for document in documents for text, _ in document if text not in special})
    ids = dict(zip(texts, (e.ids for e in tokenizer.encode_batch(texts))))
    ids.update({text: [token] for text, token in special.items()})
    encoded = []
    for document in documents:
        tokens = [token for text, _ in document for token in ids[text]]
        weights = [weight for text, weight in document for _ in ids[text]]
        encoded.append((np.array(tokens, np.int32), np.array(weights, np.float32)))
    return encoded


if __name__ == "__main__":
    train().save(str(PATH))
