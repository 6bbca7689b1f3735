"""The floors, and which door leads to which."""

from __future__ import annotations

from drawing import Drawing

LEFT, WIDTH, HEIGHT, STEP = 190, 560, 40, 47


def draw() -> Drawing:
    d = Drawing(
        "floors",
        "From top to bottom: commands, LLM, generation, Flax modules, the functional core, state "
        "and memory, xla_ops, then below XLA's FFI the handlers and kernels in C++ and CUDA.",
        760,
        556,
    )
    floors = (
        ("eet_jax/cli", "commands", "plain"),
        ("llm, text", "tokenizer, decoder and generation together", "plain"),
        ("generation, requests", "the jit-compiled decode loop; what is asked, checked", "plain"),
        ("linen, nnx, forward", "Flax modules: hold parameters, call the core", "weights"),
        ("decoder", "prefill and decode_step on plain pytrees", "kernel"),
        ("state, plan, pool", "keys and values, and the memory they lie in", "cache"),
        ("prepare, params, checkpoint", "weights, and the layout that kernels read", "weights"),
        ("xla_ops", "one file per op: function, primitive, plain JAX reference", "kernel"),
    )
    for i, (code, words, kind) in enumerate(floors):
        floor(d, 8 + i * STEP, code, words, kind)
    seam = 8 + len(floors) * STEP + 12
    d.line((LEFT, seam), (LEFT + WIDTH, seam), kind="seam")
    d.text(LEFT - 12, seam + 4, "XLA FFI", kind="strong", anchor="end")
    below = (
        ("csrc/ops/*_ffi.cc", "handlers: XLA's buffers to typed arguments", "kernel"),
        ("csrc/ops/*.h", "formulas, shapes, math that both platforms share", "kernel"),
    )
    top = seam + 19
    for i, (code, words, kind) in enumerate(below):
        floor(d, top + i * STEP, code, words, kind)
    last = top + len(below) * STEP
    part = (WIDTH - 16) / 3
    for i, (code, words, kind) in enumerate(
        (
            ("*_cpu.cc", "SSE2, AVX2, AVX-512", "kernel"),
            ("*_cuda.cu, *_sm90.cu", "sm_80 and up, Hopper", "kernel"),
            ("csrc/pool/", "slab, leases", "cache"),
        )
    ):
        x = LEFT + i * (part + 8)
        d.box(x, last, part, HEIGHT, kind=kind)
        d.text(x + part / 2, last + 17, code, kind="code")
        d.text(x + part / 2, last + 32, words, kind="label")
    doors = (
        (1, "1. text in, text out", "LLM"),
        (3, "2. Flax", "Decoder, generate"),
        (4, "loops of your own", "prefill, decode_step"),
        (7, "3. ops", "attention, rms_norm, …"),
    )
    for i, words, code in doors:
        y = 8 + i * STEP + HEIGHT / 2
        d.text(LEFT - 46, y - 3, words, kind="strong", anchor="end")
        d.text(LEFT - 46, y + 13, code, kind="small", anchor="end")
        d.arrow((LEFT - 38, y), (LEFT - 3, y))
    return d


def floor(d: Drawing, y: float, code: str, words: str, kind: str) -> None:
    d.box(LEFT, y, WIDTH, HEIGHT, kind=kind)
    d.text(LEFT + 14, y + 25, code, kind="code", anchor="start")
    d.text(LEFT + WIDTH - 14, y + 25, words, anchor="end")
