"""Text in, text out, on the model inside the package."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from tensor_parallel_cases import make_mesh

import eet_jax
from eet_jax import models
from eet_jax.text import TextRow

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def llm():
    return eet_jax.LLM("eet-tiny")


def test_reads_as_text(llm):
    text = llm.generate(PROMPT, max_new_tokens=60)
    words = text.split()
    assert len(words) > 20
    known = set(llm.generate("The man said", max_new_tokens=100).split()) & set(words)
    assert known
    assert text.isascii()


def test_batch_equals_alone(llm):
    prompts = [PROMPT, "The king", "She looked at the sea and"]
    texts = llm.generate(prompts, max_new_tokens=24)
    assert texts == [llm.generate(prompt, max_new_tokens=24) for prompt in prompts]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "rng": 3}])
def test_stream_equals_generate(llm, options):
    pieces = list(llm.stream(PROMPT, max_new_tokens=50, **options))
    assert len(pieces) > 3
    assert "".join(pieces) == llm.generate(PROMPT, max_new_tokens=50, **options)


def test_stream_is_checked_when_called(llm):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 0, got -1"):
        llm.stream(PROMPT, max_new_tokens=-1)
    with pytest.raises(ValueError, match="stop strings must not be empty"):
        llm.stream(PROMPT, stop="")
    with pytest.raises(TypeError, match="beams"):
        llm.stream(PROMPT, beams=2)


def test_stop_strings(llm):
    whole = llm.generate(PROMPT, max_new_tokens=50)
    stop = whole[20:26]
    text = llm.generate(PROMPT, max_new_tokens=50, stop=[stop, "never seen"])
    assert text == whole[: whole.index(stop)]
    assert "".join(llm.stream(PROMPT, max_new_tokens=50, stop=stop)) == text


def test_tokens_are_transformers_tokens(llm):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(models.resolve("eet-tiny")))
    for text in (PROMPT, "Ünïcode — and\nnew lines", ""):
        assert theirs(text)["input_ids"] == llm.tokenizer.encode(text).ids


def test_continuation_equals_transformers(llm):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = str(models.resolve("eet-tiny"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ours = eet_jax.LLM("eet-tiny", dtype="float32")
    ids = ours.tokenizer.encode(PROMPT).ids
    with torch.no_grad():
        want = theirs.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)
    got = ours.generate(PROMPT, max_new_tokens=40)
    assert got == ours.tokenizer.decode(want[0].tolist())[len(PROMPT) :]


@pytest.mark.parametrize("ends", [0, [0, np.int64(16)]], ids=["one", "several"])
def test_saved_model_ends_its_texts(llm, tmp_path, ends):
    decoder, params = eet_jax.from_pretrained(llm.directory)
    eet_jax.save_pretrained(tmp_path, decoder, params, eos_token_id=ends)
    shutil.copy(llm.directory / "tokenizer.json", tmp_path)
    assert eet_jax.LLM(tmp_path).eos_token_id == np.atleast_1d(ends).tolist()


def test_on_a_mesh():
    split = eet_jax.LLM("eet-tiny", dtype="float32", mesh=make_mesh(2))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(split.weights)} == {2}
    whole = eet_jax.LLM("eet-tiny", dtype="float32")
    assert split.generate(PROMPT, max_new_tokens=24) == whole.generate(PROMPT, max_new_tokens=24)
    with pytest.raises(ValueError, match="one axis"):
        eet_jax.LLM("eet-tiny", mesh=jax.make_mesh((1, 1), ("a", "b")))


def test_package_size():
    size = (models.resolve("eet-tiny") / "model.safetensors").stat().st_size
    assert size <= 10_000_000


def test_chat_needs_a_template(llm, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="has no chat template"):
        llm.chat([{"role": "user", "content": "Hello"}])
    directory = shutil.copytree(models.resolve("eet-tiny"), tmp_path / "chat")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}{{ m.content }} said {{ m.role }}. {% endfor %}"
    )
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    chatting = eet_jax.LLM(directory)
    prompt = chatting.chat_prompt([{"role": "user", "content": "Hello"}])
    assert prompt == "Hello said user. "
    answer = chatting.chat([{"role": "user", "content": "Hello"}], max_new_tokens=8)
    assert answer == chatting.generate(prompt, max_new_tokens=8)


def test_end_of_sequence_of_ones_own(llm):
    options = {"max_new_tokens": 12}
    text = llm.generate("It was a", **options)
    ids = llm.tokenizer.encode("It was a" + text).ids
    end = ids[len(llm.tokenizer.encode("It was a").ids) + 3]
    cut = llm.generate("It was a", **options, eos_token_id=end)
    assert text.startswith(cut)
    assert len(cut) < len(text)


def test_errors(llm, tmp_path):
    with pytest.raises(TypeError, match=r"num_beams: no option of LLM\.generate"):
        llm.generate("It was", num_beams=2)
    with pytest.raises(TypeError, match=r"dtype must be one of .*, got float64"):
        eet_jax.LLM("eet-tiny", dtype="float64")
    with pytest.raises(FileNotFoundError, match="a directory or one of eet-tiny, got 'nowhere'"):
        eet_jax.LLM("nowhere")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        eet_jax.LLM(tmp_path)


def test_malformed_files_beside_the_weights(tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(models.resolve("eet-tiny"), directory)
    cases = [
        ("generation_config.json", "[", "generation_config.json: not valid JSON"),
        ("generation_config.json", "[]", "generation_config.json: must hold a JSON object"),
        ("generation_config.json", '{"eos_token_id": ["2"]}', "eos_token_id must be an integer"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer: "),
    ]
    for name, text, match in cases:
        (directory / name).write_text(text)
        with pytest.raises(ValueError, match=match):
            eet_jax.LLM(directory)
        (directory / name).unlink()
        if (models.resolve("eet-tiny") / name).exists():
            shutil.copy(models.resolve("eet-tiny") / name, directory)


def test_held_back_text(llm):
    """Characters of several tokens and beginnings of stop strings appear only when complete."""
    text = "a ✓ snowman ☃ and <end> more"
    ids = llm.tokenizer.encode(text).ids
    row = TextRow(llm.tokenizer, [], ["<end>"])
    pieces = []
    for token in ids:
        stopped = row.push(token)
        pieces.append(row.take())
        if stopped:
            break
    assert "".join(pieces) == "a ✓ snowman ☃ and "
    assert not any("\ufffd" in piece or "<" in piece for piece in pieces)


def test_vocabulary_matches(llm):
    assert llm.tokenizer.get_vocab_size() <= llm.config.vocab_size
    assert np.asarray(llm.weights.embedding).shape[0] == llm.config.vocab_size
