"""Prompts of any length, processed in chunks that fit the activation budget."""

from __future__ import annotations

from drawing import Drawing

UNIT = 2.6


def draw() -> Drawing:
    d = Drawing(
        "chunks",
        "Three right-padded prompts are packed into one list of real tokens. It is cut into "
        "chunks; each goes through all layers in the same residual stream and workspace, which "
        "together fit the activation budget. Only the cache grows with the prompt.",
        760,
        340,
    )
    prompts = (100, 36, 72)
    d.text(8, 18, "tokens", kind="code strong", anchor="start")
    d.text(66, 18, "[batch, seq], right-padded", anchor="start")
    for i, length in enumerate(prompts):
        y = 28 + i * 22
        d.box(8, y, 100 * UNIT, 18, kind="free", radius=0)
        d.box(8, y, length * UNIT, 18, f"row {i}", kind="plain", radius=0, text_kind="label")
    d.text(300, 50, "packed: real tokens only, each with", anchor="start")
    d.text(300, 68, "its row and its position", anchor="start")
    x = 8.0
    for i, length in enumerate(prompts):
        d.box(x, 112, length * UNIT, 22, f"row {i}", kind="plain", radius=0, text_kind="label")
        x += length * UNIT
    d.arrow((140, 94), (140, 110))
    chunk = 64 * UNIT
    for i in range(4):
        left = 8 + i * chunk
        width = min(chunk, x - left)
        d.line((left, 138), (left, 144), (left + width, 144), (left + width, 138))
        d.text(left + width / 2, 158, f"chunk {i}" if width > 60 else "3", kind="small")
    stages(d)
    return d


def stages(d: Drawing) -> None:
    d.box(8, 190, 744, 142, kind="frame", radius=6)
    d.text(212, 212, "for each chunk, for each layer", kind="strong", anchor="start")
    d.box(20, 226, 150, 50, "residual\n[chunk, hidden]", kind="work")
    d.box(212, 226, 306, 50, kind="kernel")
    d.text(365, 246, "decoder_layer", kind="code")
    d.text(365, 264, "norm, QKV, rotary, append, attention, …", kind="label")
    d.box(560, 226, 180, 50, "k, v of the chunk's\ntokens", kind="cache")
    d.arrow((170, 244), (210, 244))
    d.arrow((212, 260), (172, 260))
    d.arrow((518, 251), (558, 251))
    d.box(212, 288, 306, 34, "workspace: all activations inside", kind="work")
    d.line((365, 276), (365, 288))
    d.text(20, 300, "residual + workspace ≤", anchor="start")
    d.text(20, 317, "activation_budget", kind="code", anchor="start")
    d.text(560, 300, "the only thing that", anchor="start")
    d.text(560, 317, "grows with the prompt", anchor="start")
    d.arrow((84, 162), (84, 224))
