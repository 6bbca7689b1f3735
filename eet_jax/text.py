"""Tokens of one row to text, as they arrive."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextRow:
    """The text of one row: bytes that are no full character yet, and the beginning of what may
    become a stop string, are held back.

    Args:
        tokenizer: of the model.
        prompt: tokens before, on which spaces at the seam depend.
        stops: strings that end the row; they are cut off.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=prompt, skip_special_tokens=True)
        self._stops = stops
        self._taken = 0
        self._ended = False
        self.text = ""

    def push(self, token: int) -> bool:
        """Adds a token; returns whether it completed a stop string."""
        piece = self._stream.step(self._tokenizer, token)
        if not piece or self._ended:
            return self._ended
        self.text += piece
        found = [self.text.find(stop, self._search_from(stop, piece)) for stop in self._stops]
        found = [at for at in found if at >= 0]
        if found:
            self.text = self.text[: min(found)]
            self._ended = True
        return self._ended

    def _search_from(self, stop: str, piece: str) -> int:
        return max(0, len(self.text) - len(piece) - len(stop) + 1)

    def take(self) -> str:
        """The text that has become certain since the last call."""
        end = len(self.text) - (0 if self._ended else self._held())
        piece, self._taken = self.text[self._taken : end], max(end, self._taken)
        return piece

    def finish(self) -> str:
        """Nothing more will come: all text is certain. Returns the whole of it."""
        self._ended = True
        return self.text

    def _held(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
