"""The models that benchmarks and tests speak of."""

from __future__ import annotations

from eet_jax import DecoderConfig, RotaryScaling

_LLAMA3 = RotaryScaling(
    kind="llama3",
    factor=32.0,
    original_max_seq_len=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)


EET_HIDDEN_SIZES = (1024, 2048, 4096, 12288)
EET_BATCH = 4
EET_PROMPTS = (128, 512, 896)
EET_TOTAL = 1024
"""The requests that EET and FasterTransformer published: tokens of prompt, and in all"""


def gpt2(
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_seq_len: int = 1024,
) -> DecoderConfig:
    """A decoder as GPT-2's; all else follows from these sizes."""
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_seq_len=max_seq_len,
        norm="layer",
        norm_eps=1e-5,
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        positions="learned",
        tie_word_embeddings=True,
    )


def _eet_layer(hidden: int) -> DecoderConfig:
    """Four of the layers that EET and FasterTransformer published; so few words weigh nothing."""
    heads = hidden // (64 if hidden <= 2048 else 128)
    return gpt2(vocab_size=128, hidden_size=hidden, num_layers=4, num_heads=heads)


def _gpt_layer(hidden: int) -> DecoderConfig:
    """One layer of a large GPT, for long prompts."""
    return gpt2(
        vocab_size=128,
        hidden_size=hidden,
        num_layers=1,
        num_heads=hidden // 128,
        max_seq_len=4096,
    )


MODELS: dict[str, DecoderConfig] = {
    "gpt2-124m": gpt2(vocab_size=50257, hidden_size=768, num_layers=12, num_heads=12),
    "gpt2-xl": gpt2(vocab_size=50257, hidden_size=1600, num_layers=48, num_heads=25),
    "qwen3-0.6b": DecoderConfig(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        max_seq_len=40960,
        rope_theta=1e6,
        qk_norm=True,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": DecoderConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        max_seq_len=131072,
        norm_eps=1e-5,
        rope_theta=5e5,
        rotary_scaling=_LLAMA3,
        tie_word_embeddings=True,
    ),
    "llama-3-8b": DecoderConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_seq_len=131072,
        norm_eps=1e-5,
        rope_theta=5e5,
    ),
    **{f"eet-layer-{hidden}": _eet_layer(hidden) for hidden in EET_HIDDEN_SIZES},
    **{f"gpt-layer-{hidden}": _gpt_layer(hidden) for hidden in (4096, 12288, 16384)},
}
