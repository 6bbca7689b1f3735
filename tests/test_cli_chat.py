"""eet-jax chat, beside LLM.chat: through a pipe, and at a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import types

import checkpoints
import commands
import pytest
from commands import fail, succeed

import eet_jax
from eet_jax import llm as llm_module
from eet_jax.cli.chat import Conversation

pytest.importorskip("transformers")
OPTIONS = {"max_new_tokens": 10, "temperature": 0.7, "top_p": 0.9, "rng": 0}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return commands.chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def llm(directory):
    return eet_jax.LLM(directory)


def chat(directory, *arguments, stdin):
    return succeed("chat", str(directory), "--max-new-tokens", "10", *arguments, stdin=stdin)


def conversation(llm, *texts, system=None, **options):
    """The answers to texts that follow each other."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    answers = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        answers.append(llm.chat(messages, **(OPTIONS | options)))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_streamed_answer_is_the_whole_answer(llm):
    messages = [{"role": "user", "content": "Good morning"}]
    pieces = list(llm.stream_chat(messages, max_new_tokens=30))
    assert len(pieces) > 2
    assert "".join(pieces) == llm.chat(messages, max_new_tokens=30)


def test_history_is_kept(directory, llm):
    first, second = conversation(llm, "Good morning", "Who are you?")
    assert conversation(llm, "Who are you?") != [second]
    stdin = "Good morning\n\nWho are you?\n"
    assert chat(directory, stdin=stdin) == f"{first}\n{second}\n"


def test_reset_and_exit(directory, llm):
    [first] = conversation(llm, "Good morning")
    stdin = "Good morning\n/reset\nGood morning\n/exit\nnot read\n"
    assert chat(directory, stdin=stdin) == f"{first}\n{first}\n"
    assert chat(directory, stdin="") == ""


def test_options(directory, llm):
    options = {"temperature": 1.2, "top_k": 9, "top_p": 0.8, "min_p": 0.01,
               "repetition_penalty": 1.3, "rng": 4, "stop": [" the"]}  # fmt: skip
    flags = ["--temperature", "1.2", "--top-k", "9", "--top-p", "0.8", "--min-p", "0.01",
             "--repetition-penalty", "1.3", "--seed", "4", "--stop", " the"]  # fmt: skip
    flags += ["--system", "You are a whale."]
    answers = conversation(llm, "Hello", "Why?", system="You are a whale.", **options)
    assert chat(directory, *flags, stdin="Hello\nWhy?\n") == "".join(f"{a}\n" for a in answers)
    assert answers != conversation(llm, "Hello", "Why?", **options)


def test_model_without_a_template(monkeypatch):
    """It is refused before the weights are read."""
    monkeypatch.setattr(llm_module, "LLM", None)
    line = fail("chat", "eet-tiny")
    assert line.endswith("has no chat template; `eet-jax generate` continues plain text")


def test_without_transformers(monkeypatch, directory):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert fail("chat", str(directory)) == "chat needs: pip install 'eet-jax[chat]'"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model that takes 40 tokens."""
    directory = commands.chat_model(tmp_path_factory.mktemp("chat") / "short")
    checkpoints.edit_config(directory, max_position_embeddings=40)
    return directory


def test_conversation_fills_the_context(short):
    """An answer ends where the context does; no later message has room."""
    llm = eet_jax.LLM(short)
    message = [{"role": "user", "content": "Hello"}]
    room = 40 - len(llm.chat_tokens(message))
    [answer] = conversation(llm, "Hello", max_new_tokens=room)
    result = commands.run("chat", str(short), stdin="Hello\nAnd then?\n")
    assert (result.status, result.stdout) == (1, f"{answer}\n\n"[: len(answer) + 1])
    assert result.stderr == (
        "error the conversation fills the model's 40 tokens; /reset begins a new one\n"
    )


def test_no_room_for_a_single_token():
    llm = types.SimpleNamespace(
        config=types.SimpleNamespace(max_seq_len=7),
        chat_tokens=lambda messages: [1] * 7,
        stream_chat=lambda messages, max_new_tokens: iter(["never"]),
    )
    with pytest.raises(ValueError, match="fills the model's 7 tokens"):
        list(Conversation(llm, None, 9, {}).answer("Hello"))


class Terminal:
    """A command at a terminal, of which the test is the user."""

    def __init__(self, *arguments):
        self._master, slave = pty.openpty()
        self._process = commands.start(*arguments, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def read_until(self, end):
        """What has appeared since the last call."""
        seen = ""
        while not seen.endswith(end):
            assert select.select([self._master], [], [], 120)[0], f"nothing follows {seen!r}"
            seen += os.read(self._master, 1).decode("latin").replace("\r", "")
        return seen

    def type(self, text):
        os.write(self._master, text.encode())

    def interrupt(self):
        """Presses Ctrl-C until the command ends, and returns its status.

        Python's line editor misses a signal between showing the prompt and waiting for a key.
        """
        for _ in range(120):
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout=1)
        raise AssertionError("Ctrl-C does not end the command")

    def status(self):
        return self._process.wait(timeout=120)


def test_at_a_terminal(short, monkeypatch):
    """The conversation outlives an error; end of input ends it."""
    monkeypatch.setenv("TERM", "dumb")
    llm = eet_jax.LLM(short)
    message = [{"role": "user", "content": "Hello"}]
    [answer] = conversation(llm, "Hello", max_new_tokens=40 - len(llm.chat_tokens(message)))
    with Terminal("chat", str(short)) as terminal:
        greeting = f"Chatting with {short}: /reset forgets, /exit ends.\n> "
        assert terminal.read_until("> ") == greeting
        terminal.type("Hello\n")
        assert terminal.read_until("\n> ") == f"Hello\n{answer}\n> "
        terminal.type("And then?\n")
        assert "error the conversation fills the model's 40" in terminal.read_until("\n> ")
        terminal.type("/reset\n")
        assert terminal.read_until("\n> ") == "/reset\n> "
        terminal.type("Hello\n")
        assert terminal.read_until("\n> ") == f"Hello\n{answer}\n> "
        terminal.type("\x04")
        assert terminal.status() == 0


def test_interrupt_at_the_prompt(short, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with Terminal("chat", str(short)) as terminal:
        terminal.read_until("> ")
        assert terminal.interrupt() == 130
