"""eet-jax generate, beside LLM.generate and transformers."""

from __future__ import annotations

import io
import json
import re
import sys

import checkpoints
import pytest
from commands import fail, succeed

import eet_jax
from eet_jax import cli, models

PROMPTS = ["The king", "It was a\ndark", "She looked at the sea and"]


@pytest.fixture(scope="module")
def llm():
    return eet_jax.LLM("eet-tiny")


@pytest.fixture(scope="module")
def written_by_transformers(tmp_path_factory):
    """A random GPT-2 with the tokenizer of eet-tiny."""
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("gpt2")
    checkpoints.make("gpt2", directory, vocab_size=4096)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(models.resolve("eet-tiny")))
    tokenizer.save_pretrained(directory)
    return directory


def test_without_arguments(llm):
    want = llm.generate("It was a", max_new_tokens=128, temperature=0.7, top_p=0.9)
    assert succeed("generate") == f"It was a{want}\n"


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--max-new-tokens", "5"], {"max_new_tokens": 5}),
        (["--temperature", "0"], {"temperature": 0.0}),
        (["--temperature", "1.5"], {"temperature": 1.5}),
        (["--top-k", "2"], {"top_k": 2}),
        (["--top-p", "0.3"], {"top_p": 0.3}),
        (["--min-p", "0.5"], {"min_p": 0.5}),
        (["--repetition-penalty", "1.8"], {"repetition_penalty": 1.8}),
        (["--seed", "7"], {"rng": 7}),
        (["--stop", " just", "--stop", "never seen"], {"stop": [" just", "never seen"]}),
    ],
)
def test_options(llm, flags, options):
    """Each reaches the generation: it changes what the defaults give."""
    defaults = {"max_new_tokens": 40, "temperature": 0.7, "top_p": 0.9}
    want = llm.generate("The king", **(defaults | options))
    got = succeed("generate", "The king", "--max-new-tokens", "40", *flags)
    assert got == f"The king{want}\n"
    if options:
        assert want != llm.generate("The king", **defaults)


def test_dtype(monkeypatch):
    """Texts tell too little: two dtypes may agree on a hundred tokens."""
    found = []
    stream = eet_jax.LLM.stream

    def noted(llm, *args, **options):
        found.append(llm.config.dtype)
        return stream(llm, *args, **options)

    monkeypatch.setattr(eet_jax.LLM, "stream", noted)
    dtypes = ["float32", "bfloat16"]
    for dtype in dtypes:
        want = eet_jax.LLM("eet-tiny", dtype=dtype).generate(
            "The king", max_new_tokens=20, temperature=0.7, top_p=0.9
        )
        got = succeed("generate", "The king", "--max-new-tokens", "20", "--dtype", dtype)
        assert got == f"The king{want}\n"
    assert found == dtypes


def test_several_prompts_are_a_batch(llm):
    flags = ["--max-new-tokens", "12", "--seed", "5"]
    texts = llm.generate(PROMPTS, max_new_tokens=12, temperature=0.7, top_p=0.9, rng=5)
    want = "\n\n".join(prompt + text for prompt, text in zip(PROMPTS, texts, strict=True))
    assert succeed("generate", *PROMPTS, *flags) == want + "\n"
    lines = succeed("generate", *PROMPTS, *flags, "--json").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": prompt, "text": text} for prompt, text in zip(PROMPTS, texts, strict=True)
    ]


def test_batches(llm):
    """At most so many rows at once, each batch with a seed of its own."""
    options = {"max_new_tokens": 12, "temperature": 0.7, "top_p": 0.9}
    want = llm.generate(PROMPTS[:2], rng=5, **options) + llm.generate(PROMPTS[2:], rng=6, **options)
    flags = ["--max-new-tokens", "12", "--seed", "5", "--batch", "2"]
    lines = succeed("generate", *PROMPTS, *flags, "--json").splitlines()
    assert [json.loads(line)["text"] for line in lines] == want
    text = "\n\n".join(prompt + text for prompt, text in zip(PROMPTS, want, strict=True))
    assert succeed("generate", *PROMPTS, *flags) == text + "\n"


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("lines.txt", "The king\r\n\n  It was\n", ["The king", "  It was"]),
        ("lines.jsonl", '"The king"\n\n{"prompt": "It\\nwas", "id": 3}', ["The king", "It\nwas"]),
        ("-", "The king\nIt was\n", ["The king", "It was"]),
    ],
)
def test_prompts_from_a_file(llm, tmp_path, name, content, prompts):
    path = name if name == "-" else str(tmp_path / name)
    if name != "-":
        (tmp_path / name).write_text(content, newline="")
    flags = ["--max-new-tokens", "8", "--temperature", "0", "--json"]
    lines = succeed("generate", "--prompts", path, *flags, stdin=content).splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["prompt"] for line in found] == prompts
    assert [line["text"] for line in found] == llm.generate(prompts, max_new_tokens=8)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.txt", None, "No such file or directory"),
        ("empty.txt", b"\n \n", "holds no prompts, one is expected per line"),
        ("latin.txt", b"caf\xe9\n", "prompts must be UTF-8, got byte 0xe9 at 3"),
        ("bad.jsonl", b'"fine"\n{"text": 3}\n', 'or an object with "prompt", got {"text": 3}'),
        (
            "bad.jsonl",
            b'"fine"\n\n{"prompt": 3}\n',
            'or an object with "prompt", got {"prompt": 3}',
        ),
        ("bad.jsonl", b"plain\n", "not valid JSON"),
    ],
)
def test_files_without_prompts(tmp_path, name, content, problem):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    line = fail("generate", "--prompts", str(path))
    assert line.startswith(str(path))
    assert problem in line


def test_streaming(monkeypatch, llm):
    """By default, one prompt's text is written in pieces, and flushed."""

    class Pieces(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed += 1

    def pieces(*flags):
        stream = Pieces()
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit):
            cli.main(["generate", "The king", "--max-new-tokens", "40", *flags])
        return stream

    streamed = pieces()
    assert streamed.flushed > 4
    assert pieces("--stream").flushed == streamed.flushed
    whole = pieces("--no-stream")
    assert whole.flushed == 2  # after the batch, and at the end
    assert whole.getvalue() == streamed.getvalue()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["A", "B", "--stream"], "streams the text of one prompt, not 2 prompts"),
        (["A", "--json", "--stream"], "streams the text of one prompt, not JSON"),
        (["A", "--prompts", "-"], "give either prompts or a file of them"),
        (["A", "--temperature", "-1"], "'--temperature'"),
        (["A", "--top-p", "1.1"], "'--top-p'"),
        (["A", "--max-new-tokens", "many"], "'--max-new-tokens'"),
    ],
)
def test_wrong_options(arguments, line):
    error = fail("generate", *arguments, status=2)
    assert line in error
    assert error.endswith("; see `eet-jax generate --help`")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([""], "prompt 0 must not be empty"),
        (["A", "--model", "nowhere"], "must be a directory or one of eet-tiny, got 'nowhere'"),
        (["A", "--dtype", "int8"], "dtype must be one of .*, got int8"),
        (
            ["A", "--max-new-tokens", "512"],
            "must fit 512 tokens .*; shorten the prompt, or ask for fewer new tokens",
        ),
    ],
)
def test_errors(arguments, line):
    assert re.search(line, fail("generate", *arguments))


def test_directory_without_a_tokenizer(tmp_path):
    checkpoints.small_checkpoint(tmp_path)
    line = fail("generate", "A", "--model", str(tmp_path))
    assert line.endswith("tokenizer.json is missing; transformers writes it with a tokenizer")


def test_directory_written_by_transformers(written_by_transformers):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = str(written_by_transformers)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    prompts = ["The king", "It was"]
    lines = succeed(
        "generate", *prompts, "--model", directory, "--max-new-tokens", "12", "--temperature", "0",
        "--json",
    ).splitlines()  # fmt: skip
    for prompt, line in zip(prompts, lines, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        want = tokenizer.decode(out[0], clean_up_tokenization_spaces=False)
        assert prompt + json.loads(line)["text"] == want
