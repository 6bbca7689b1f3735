"""A decode step layer by layer, and in one persistent kernel."""

from __future__ import annotations

from drawing import Drawing

LEFT, RIGHT = 116, 752
PRODUCTS = (("qkv", 60), ("out", 44), ("up", 128), ("down", 70))


def draw() -> Drawing:
    d = Drawing(
        "step",
        "Layer by layer, every kernel ends before the next begins, and memory rests in between. In "
        "the persistent kernel a producer warp streams tiles of the next weights into a ring while "
        "blocks exchange activations, so memory never rests.",
        760,
        400,
    )
    d.text(8, 18, "layer by layer: a kernel for each product", kind="strong", anchor="start")
    apart(d, 34)
    d.line((8, 128), (752, 128), kind="dotted")
    d.text(
        8, 152, "persistent: one kernel for all layers and the head", kind="strong", anchor="start"
    )
    stream(d, 168)
    block(d)
    return d


def apart(d: Drawing, y: float) -> None:
    label(d, y, "memory")
    label(d, y + 40, "products")
    x = LEFT + 10
    for name, width in PRODUCTS:
        width *= 0.82
        d.box(x, y, width, 26, name, kind="weights", text_kind="label", radius=0)
        d.box(x, y + 40, width, 26, name, kind="kernel", text_kind="label", radius=0)
        d.text(x + width + 17, y + 18, "rests", kind="small")
        x += width + 34
        if name == "qkv":
            d.box(x, y, 40, 26, "k, v", kind="cache", text_kind="label", radius=0)
            d.box(x, y + 40, 40, 26, "attend", kind="kernel", text_kind="label", radius=0)
            d.text(x + 57, y + 18, "rests", kind="small")
            x += 74
    d.text(x + 4, y + 18, "…", anchor="start")
    d.text(x + 4, y + 58, "…", anchor="start")


def stream(d: Drawing, y: float) -> None:
    label(d, y, "memory")
    label(d, y + 40, "products")
    x, names = float(LEFT), ("qkv", "k, v", "out", "up", "down", "qkv", "k, v", "out", "up")
    widths = dict(PRODUCTS) | {"k, v": 40}
    for name in names:
        width = min(widths[name], RIGHT - x)
        kind = "cache" if name == "k, v" else "weights"
        d.box(x, y, width, 26, name, kind=kind, text_kind="label", radius=0)
        begin = x + 22
        if begin < RIGHT - 20:
            inside = min(width - 8, RIGHT - begin)
            text = "attend" if name == "k, v" else name
            d.box(begin, y + 40, inside, 26, text, kind="kernel", text_kind="label", radius=0)
        x += width
    d.text(
        RIGHT, y + 84, "products follow the stream; at each edge blocks exchange activations",
        kind="small", anchor="end",
    )  # fmt: skip


def block(d: Drawing) -> None:
    y = 272
    d.box(8, y, 744, 120, kind="frame", radius=6)
    d.text(20, y + 20, "a block, one on each multiprocessor", kind="strong", anchor="start")
    d.box(20, y + 36, 110, 44, "producer warp\nloads tiles", kind="kernel", text_kind="label")
    for i in range(7):
        kind = "weights" if i < 5 else "free"
        d.box(160 + i * 26, y + 36, 24, 44, kind=kind, radius=2)
    d.text(251, y + 98, "ring of 16 KiB tiles in shared memory", kind="small")
    d.box(
        374, y + 36, 120, 44, "8 consumer warps\nmultiply, attend", kind="kernel", text_kind="label"
    )
    d.box(524, y + 36, 92, 44, "2 finishers\nadd the sums", kind="kernel", text_kind="label")
    d.box(646, y + 36, 94, 44, "exchange\nmemory", kind="work", text_kind="label")
    for left, right in ((130, 158), (344, 372), (494, 522), (616, 644)):
        d.arrow((left, y + 58), (right, y + 58))
    d.arrow((693, y + 80), (693, y + 104), (434, y + 104), (434, y + 82))
    d.text(566, y + 99, "of all blocks, without fences", kind="small")


def label(d: Drawing, y: float, text: str) -> None:
    d.text(LEFT - 12, y + 18, text, anchor="end")
