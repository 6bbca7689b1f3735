"""Text in, text out."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import jax
from jax.sharding import Mesh
from tokenizers import Tokenizer

from eet_jax import checkpoint, models, requests
from eet_jax.checkpoint.files import inside, read_json
from eet_jax.config import DecoderConfig
from eet_jax.generation import Run
from eet_jax.pool import BufferPool
from eet_jax.prepare import Prepared, prepare
from eet_jax.tensor_parallel import shard
from eet_jax.text import TextRow


class LLM:
    """A decoder with its tokenizer.

    Args:
        model: a Hugging Face directory with `tokenizer.json`, or "eet-tiny", the small model inside
            the package.
        dtype: of weights and computation; the checkpoint's own if None.
        pool: where generation leases its memory, the default pool if None; on a mesh a list, of a
            pool for each device.
        mesh: of one axis, over whose devices the weights are split as by ``eet_jax.shard``; one
            device if None. The whole weights are in host memory meanwhile.
        progress: called with the bytes of the weights that have been read, and all of them.

    Raises:
        FileNotFoundError: if the directory or one of its files is missing.
        ValueError: for checkpoints that are not supported, and as ``eet_jax.shard``.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: Any = None,
        pool: BufferPool | Sequence[BufferPool] | None = None,
        mesh: Mesh | None = None,
        progress: checkpoint.Progress | None = None,
    ) -> None:
        self.directory = models.resolve(model)
        self.tokenizer = _tokenizer(self.directory / "tokenizer.json")
        self.config, self.weights = _load(self.directory, dtype, mesh, progress)
        self.eos_token_id = _eos(self.directory)
        self._pool = pool

    @overload
    def generate(self, prompts: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompts: Sequence[str], **options: Any) -> list[str]: ...
    def generate(self, prompts: str | Sequence[str], **options: Any) -> str | list[str]:
        """Continues one text or several.

        Args:
            prompts: a string, or a list of them, which are generated together.
            options: ``max_new_tokens`` (64), ``stop`` (strings, which are cut off), and as for
                ``eet_jax.generate``: temperature, top_k, top_p, min_p, repetition_penalty,
                eos_token_id (the model's own if not given), rng.

        Returns:
            The continuation without the prompt, or a list of them.

        Raises:
            ValueError, TypeError: as ``eet_jax.generate``.
        """
        rows = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = self._complete(self._encode(rows), **options)
        return texts[0] if isinstance(prompts, str) else texts

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Continues one text, piece by piece.

        Args:
            prompt, options: as for ``generate``, checked before the first piece is asked for.

        Raises:
            ValueError, TypeError: as ``generate``.
        """
        (row,), run = self._run(self._encode([prompt]), **options)
        return _pieces(row, run)

    def chat(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        """Answers a conversation through the model's chat template.

        Args:
            messages: dicts with role and content.
            options: as for ``generate``.

        Raises:
            ImportError: without transformers and jinja2, with the command that installs them.
            ValueError: if the model has no chat template.
        """
        return self._complete([self.chat_tokens(messages)], **options)[0]

    def stream_chat(self, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
        """Answers a conversation, piece by piece; arguments and errors as ``chat``."""
        (row,), run = self._run([self.chat_tokens(messages)], **options)
        return _pieces(row, run)

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> str:
        """The text that the chat template makes of ``messages``; errors as ``chat``."""
        text: str = self._chat_tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return text

    def chat_tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of ``chat_prompt``, the special ones being those of the template."""
        text = self.chat_prompt(messages)
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    @functools.cached_property
    def _chat_tokenizer(self) -> Any:
        return chat_tokenizer(self.directory)

    def _encode(self, prompts: list[str]) -> list[list[int]]:
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise TypeError(f"prompts must be strings, got {prompt!r}")
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise ValueError(f"prompts must be text, got bytes that are not: {prompt!r}")
        return [self.tokenizer.encode(prompt).ids for prompt in prompts]

    def _complete(self, ids: list[list[int]], **options: Any) -> list[str]:
        rows, run = self._run(ids, **options)
        for _ in run.arrivals():
            pass
        return [row.finish() for row in rows]

    def _run(
        self,
        ids: list[list[int]],
        *,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] | None = None,
        temperature: Any = 0.0,
        top_k: Any = 0,
        top_p: Any = 1.0,
        min_p: Any = 0.0,
        repetition_penalty: Any = 1.0,
        eos_token_id: int | Sequence[int] | None = None,
        rng: Any = 0,
        **unknown: Any,
    ) -> tuple[list[TextRow], Run]:
        if unknown:
            raise TypeError(
                f"{', '.join(unknown)}: no option of LLM.generate; eet_jax.generate has more"
            )
        request = requests.make(
            self.config,
            ids,
            None,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.eos_token_id if eos_token_id is None else eos_token_id,
            stop=None,
            state=None,
        )
        sampling = requests.sampling(
            len(ids),
            rng,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        stops = _stops(stop)
        rows = [TextRow(self.tokenizer, row, stops) for row in ids]
        run = Run(
            self.config,
            self.weights,
            request,
            sampling,
            pool=self._pool,
            watch=lambda row, token: rows[row].push(token),
        )
        return rows, run


def _load(
    directory: Path, dtype: Any, mesh: Mesh | None, progress: checkpoint.Progress | None
) -> tuple[DecoderConfig, Prepared]:
    if mesh is None:
        config, params = checkpoint.load(directory, dtype=dtype, progress=progress)
        return config, prepare(config, params, donate=True)
    with jax.default_device(jax.devices("cpu")[0]):  # no device of the mesh need hold all of it
        config, params = checkpoint.load(directory, dtype=dtype, progress=progress)
        return config, shard(config, params, mesh)


def chat_tokenizer(directory: Path) -> Any:
    """The transformers tokenizer of a directory, which applies its chat template.

    Raises:
        ImportError: without transformers and jinja2, with the command that installs them.
        ValueError: if the directory has no chat template.
    """
    try:
        import jinja2  # noqa: F401
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError("chat needs: pip install 'eet-jax[chat]'") from error
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    if not tokenizer.chat_template:
        raise ValueError(f"{directory} has no chat template")
    return tokenizer


def _pieces(row: TextRow, run: Run) -> Iterator[str]:
    for _ in run.arrivals():
        if piece := row.take():
            yield piece
    row.finish()
    if piece := row.take():
        yield piece


def _stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) for text in stops):
        raise TypeError(f"stop must be a string or a list of strings, got {stop!r}")
    if any(not text for text in stops):
        raise ValueError("stop strings must not be empty")
    return stops


def _tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; transformers writes it with a tokenizer")
    inside(path)
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # of no class of its own
        raise ValueError(f"{path}: not a tokenizer: {error}") from error
    tokenizer.no_truncation()  # what training left in the file is not meant for prompts
    tokenizer.no_padding()
    return tokenizer


def _eos(directory: Path) -> list[int]:
    """End-of-sequence ids of `generation_config.json`, else of `config.json`."""
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        value = read_json(path).get("eos_token_id") if path.exists() else None
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if any(type(token) is not int for token in ids):
            raise ValueError(f"{path}: eos_token_id must be an integer or several, got {value!r}")
        return ids
    return []
