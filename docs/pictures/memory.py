"""The memory of a device: XLA's part, and the pool's slab with its leases."""

from __future__ import annotations

from drawing import Drawing


def draw() -> Drawing:
    d = Drawing(
        "memory",
        "Device memory has two parts. XLA's holds weights and logits. The pool reserves a range of "
        "addresses up to its capacity and backs it from the base upwards; in it lie the leases k, "
        "v, residual and workspace. A DecodeState holds them, and they return when it is gone.",
        760,
        306,
    )
    d.text(8, 18, "XLA's allocator", kind="strong", anchor="start")
    d.text(228, 18, "BufferPool: one slab", kind="strong", anchor="start")
    y, h = 84, 70
    d.box(8, y, 140, h, "weights\n(Prepared)", kind="weights")
    d.box(148, y, 52, h, "logits", kind="plain")
    for x, width, text, kind in (
        (228, 96, "k", "cache"),
        (324, 96, "v", "cache"),
        (420, 34, "free", "free"),
        (454, 50, "residual", "work"),
        (504, 76, "workspace", "work"),
    ):
        d.box(x, y, width, h, text, kind=kind, text_kind="label" if width < 60 else "")
    d.box(580, y, 172, h, "addresses without memory", kind="free", text_kind="label")
    measure(d, 228, 752, 42, "capacity: the hard limit")
    measure(d, 228, 580, 66, "backed by the device: grows, and never moves")
    d.box(228, 206, 352, 92, kind="frame", radius=6)
    d.text(240, 270, "DecodeState", kind="code", anchor="start")
    for x, name, kind, target in (
        (240, "k", "cache", 276),
        (296, "v", "cache", 372),
        (352, "residual", "work", 479),
        (424, "workspace", "work", 542),
    ):
        width = 44 if len(name) == 1 else 60 if name == "residual" else 76
        d.box(x, 218, width, 28, name, kind=kind, text_kind="label")
        d.arrow((x + width / 2, 218), (x + width / 2, 192), (target, 176), (target, y + h + 2))
    d.text(
        240, 288, "also page_table, lengths, status: a few KiB of XLA's", kind="small",
        anchor="start",
    )  # fmt: skip
    words = "A lease is a jax.Array.\nDonated, it keeps its\naddress; its bytes return\n"
    d.text(600, 222, words + "with the last owner.", kind="small", anchor="start")
    return d


def measure(d: Drawing, left: float, right: float, y: float, text: str) -> None:
    d.line((left, y - 5), (left, y + 5))
    d.line((right, y - 5), (right, y + 5))
    middle, half = (left + right) / 2, 3.1 * len(text)
    d.line((left, y), (middle - half, y))
    d.line((middle + half, y), (right, y))
    d.text(middle, y + 4, text, kind="small")
