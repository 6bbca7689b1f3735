"""eet-jax chat."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eet_jax import models
from eet_jax.cli import options
from eet_jax.cli.errors import report
from eet_jax.cli.interrupt import interruptible_editing
from eet_jax.cli.loading import load
from eet_jax.cli.output import progress, stderr, write_pieces

if TYPE_CHECKING:
    from eet_jax.llm import LLM


def chat(
    model: options.Directory,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 512,
    temperature: options.Temperature = 0.7,
    top_k: options.TopK = 0,
    top_p: options.TopP = 0.9,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    dtype: options.Dtype = None,
) -> None:
    """Talk with a model through its chat template.

    Each line is a message. /reset forgets the conversation, /exit or the end of input ends it.
    """
    llm = _load(model, dtype)
    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "rng": seed,
        "stop": stop,
    }
    conversation = Conversation(llm, system, max_new_tokens, sampling)
    for line in _lines(model):
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
        elif line:
            _answer(conversation, line)


class Conversation:
    """Messages so far, and the next answer.

    Args:
        llm: with a chat template.
        system: the first message of every conversation, or None.
        max_new_tokens: of an answer.
        sampling: other options of ``LLM.generate``.
    """

    def __init__(
        self, llm: LLM, system: str | None, max_new_tokens: int, sampling: dict[str, Any]
    ) -> None:
        self._llm = llm
        self._start = [] if system is None else [_message("system", system)]
        self._max_new_tokens = max_new_tokens
        self._sampling = sampling
        self.reset()

    def reset(self) -> None:
        """Forgets all messages but the system's."""
        self.messages = list(self._start)

    def answer(self, text: str) -> Iterator[str]:
        """Streams the answer to ``text``; both are part of the conversation once it is complete.

        Raises:
            ValueError: if the conversation leaves no room for an answer.
        """
        messages = [*self.messages, _message("user", text)]
        longest = self._llm.config.max_seq_len
        room = longest - len(self._llm.chat_tokens(messages))
        if room < 1:
            raise ValueError(
                f"the conversation fills the model's {longest} tokens; /reset begins a new one"
            )
        limit = min(room, self._max_new_tokens)
        answer = ""
        for piece in self._llm.stream_chat(messages, max_new_tokens=limit, **self._sampling):
            answer += piece
            yield piece
        self.messages = [*messages, _message("assistant", answer)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _load(model: str, dtype: str | None) -> LLM:
    """The model; without a chat template it fails before the weights are read."""
    # transformers would report that PyTorch is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from eet_jax.llm import chat_tokenizer

    with progress("Reading the chat template"):
        chat_tokenizer(models.resolve(model))
    return load(model, dtype)


def _lines(model: str) -> Iterator[str]:
    """What is typed, or piped in."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401  (input() then edits lines and remembers them)

    stderr().print(f"Chatting with {model}: /reset forgets, /exit ends.", markup=False)
    prompt = "> " if sys.stdout.isatty() else ""
    while True:
        try:
            with interruptible_editing():
                line = input(prompt)
            yield line.strip()
        except EOFError:
            sys.stdout.write("\n")
            return


def _answer(conversation: Conversation, text: str) -> None:
    """Prints the answer; at a terminal the conversation outlives an error."""
    try:
        write_pieces(conversation.answer(text))
    except ValueError as error:
        if not sys.stdin.isatty():
            raise
        report(error)
