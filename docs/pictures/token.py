"""The way of a token, from text to text."""

from __future__ import annotations

from drawing import Drawing

HOST, DEVICE = 58, 170


def draw() -> Drawing:
    d = Drawing(
        "token",
        "The host encodes text and pads prompts. On the device, prefill packs tokens, works them "
        "off in chunks through all layers and gives logits. A loop of 1, 4 or 16 steps advances "
        "and decodes. Between loops the host looks at who is done and decodes text.",
        760,
        330,
    )
    d.text(8, 20, "host", kind="strong", anchor="start")
    d.text(8, 132, "device", kind="strong", anchor="start")
    d.line((8, 112), (752, 112), kind="dotted")
    d.box(8, HOST - 24, 110, 48, "“Emma Wood…”", kind="free")
    d.box(146, HOST - 24, 110, 48, "tokenizer", kind="plain")
    d.box(284, HOST - 24, 110, 48, "check, pad to\na bucket", kind="plain")
    d.box(494, HOST - 24, 120, 48, "who is done?\ntokens → text", kind="plain")
    d.box(642, HOST - 24, 110, 48, "“ was to be…”", kind="free")
    for x in (118, 256, 614):
        d.arrow((x, HOST), (x + 26, HOST))
    prefill(d)
    loop(d)
    d.arrow((339, HOST + 24), (339, 96), (70, 96), (70, DEVICE - 26))
    d.arrow((554, 148), (554, HOST + 26))
    return d


def prefill(d: Drawing) -> None:
    d.box(8, 144, 424, 178, kind="frame", radius=6)
    d.text(20, 314, "prefill, once: chunk by chunk, all layers each", kind="small", anchor="start")
    d.box(20, DEVICE - 14, 100, 46, "pack real\ntokens", kind="kernel")
    d.box(150, DEVICE - 14, 100, 46, "embed a chunk", kind="kernel")
    d.arrow((120, DEVICE + 9), (148, DEVICE + 9))
    d.box(280, DEVICE - 14, 140, 46, "residual stream\n[chunk, hidden]", kind="work")
    d.arrow((250, DEVICE + 9), (278, DEVICE + 9))
    d.box(280, 234, 140, 46, "decoder_layer\nfor each layer", kind="kernel")
    d.arrow((330, DEVICE + 32), (330, 232))
    d.arrow((370, 234), (370, DEVICE + 34))
    d.box(150, 234, 100, 46, "k, v pages", kind="cache")
    d.arrow((280, 250), (252, 250))
    d.arrow((250, 264), (278, 264))
    d.box(20, 234, 100, 46, "weights", kind="weights")
    d.line((70, 280), (70, 292), (350, 292), kind="line")
    d.arrow((350, 292), (350, 282))


def loop(d: Drawing) -> None:
    d.box(462, 144, 290, 178, kind="frame", radius=6)
    d.text(474, 314, "a loop of 1, 4 or 16 steps, compiled once", kind="small", anchor="start")
    d.arrow((420, DEVICE + 9), (500, DEVICE + 9))
    d.text(482, DEVICE + 1, "logits", kind="small")
    d.box(502, DEVICE - 14, 210, 46, kind="kernel")
    d.text(607, DEVICE + 4, "advance", kind="code")
    d.text(607, DEVICE + 21, "draw, record, embed", kind="label")
    d.box(502, 234, 210, 46, kind="kernel")
    d.text(607, 252, "decode_step", kind="code")
    d.text(607, 269, "or layer by layer, then the head", kind="label")
    d.arrow((650, DEVICE + 32), (650, 232))
    d.arrow((564, 234), (564, DEVICE + 34))
    d.text(690, 220, "tokens", kind="small")
    d.text(534, 220, "logits", kind="small")
