"""The emulated GPU notices mistakes in kernels: those of tests/emulated/mistakes.cu."""

from __future__ import annotations

import ctypes
import re
import shutil

import pytest
from emulated.build import build

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")

# In the order of mistakes.cu, and what is said of each.
MISTAKES = {
    "none": "^$",
    "no wait for boxes": "wrong numbers|a block ends with copies to it under way",
    "no wait for products": "wrong numbers",
    "no wait for copies": "wrong numbers",
    "too few arrivals": r"nobody can go on:\n.*thread 0 and on: a barrier .* at mistakes\.cu:\d+$",
    "too many arrivals": "too many arrivals",
    "other swizzle": "wrong numbers",
    "box outside": "8192 bytes at 16384 of shared memory, which has 17408",
    "write outside": "written behind its shared memory",
    "lanes part": "lanes of a warp are at .* and at",
    "thread missing": r"nobody can go on:\n.*a barrier of the block at mistakes\.cu:\d+",
}


@pytest.fixture(scope="module")
def said_of():
    library = ctypes.CDLL(str(build("mistakes")))
    library.emulated_mistake.restype = ctypes.c_char_p
    return lambda name: library.emulated_mistake(list(MISTAKES).index(name)).decode()


@pytest.mark.parametrize("name", MISTAKES)
def test_says_what_is_wrong(said_of, name):
    said = said_of(name)
    assert re.search(MISTAKES[name], said), said
