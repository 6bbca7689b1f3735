"""Train the tokenizer of the example model "eet-tiny": byte-level BPE, 4096 entries.

    python examples/tiny_tokenizer.py DIRECTORY

reads DIRECTORY/corpus.txt, which ``tiny_corpus.py`` writes, and writes beside it tokenizer.json and
tokenizer_config.json, which ``transformers.AutoTokenizer`` loads, and tokens.npy: the corpus as one
uint16 stream, with ``<|endoftext|>`` (id 0) after each document.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 4096
MAX_LENGTH = 512


def read_documents(path: Path) -> list[str]:
    """Return the documents of a corpus file."""
    documents = path.read_text(encoding="utf-8").split(f"\n{END_OF_TEXT}\n")
    return [document.strip() for document in documents]


def train(documents: list[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer whose id 0 is the end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """Encode the documents into one stream, an end-of-text token after each."""
    end: int = tokenizer.token_to_id(END_OF_TEXT) or 0  # the first special token has id 0
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(documents):
        ids += [*encoding.ids, end]
    return np.asarray(ids, dtype=np.uint16)


def main() -> None:
    """Train the tokenizer and write its files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory

    documents = read_documents(directory / "corpus.txt")
    tokenizer = train(documents)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
    stream = token_stream(tokenizer, documents)
    np.save(directory / "tokens.npy", stream)
    size = tokenizer.get_vocab_size()
    print(f"{len(documents)} documents, {len(stream):,} tokens, vocabulary {size}")


if __name__ == "__main__":
    main()
