"""transformers and eet_jax agree on random checkpoints of every family."""

from __future__ import annotations

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eet_jax
from eet_jax.checkpoint import load

torch = pytest.importorskip("torch")

GREEDY_TOKENS = 64
TOLERANCE = 1e-4

VARIANTS = {
    "gpt2": ("gpt2", {}),
    "gpt2-exact-gelu": ("gpt2", {"activation_function": "gelu", "n_inner": 120}),
    "gpt2-head-80": ("gpt2", {"n_embd": 160, "n_head": 2}),
    "llama": ("llama", {}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-all-kv-heads": ("llama", {"num_key_value_heads": 4}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-64": ("llama", {"head_dim": 64}),
    "llama-head-96": ("llama", {"head_dim": 96}),
    "llama-head-128": ("llama", {"head_dim": 128}),
    "llama-head-256": ("llama", {"head_dim": 256}),
    "llama-3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3-head-80": ("qwen3", {"head_dim": 80}),
}


@pytest.fixture(params=VARIANTS, scope="module")
def pair(request, tmp_path_factory):
    """The transformers model, our config and our prepared weights."""
    family, overrides = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    model = checkpoints.make(family, directory, **overrides)
    config, params = load(directory)
    return model, config, params


def prompts(vocab_size: int, lengths=(5, 11, 1, 23)) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def padded(rows: list[list[int]], side: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and Hugging Face mask."""
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    mask = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        part = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, part], mask[i, part] = row, 1
    return tokens, mask


def their_logits(model, row: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0].float().numpy()


def their_tokens(model, row: list[int]):
    """Prompt and greedy tokens `[1, seq]`; the mask says that no token of the prompt is padding."""
    prompt = torch.tensor([row])
    with torch.no_grad():
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=GREEDY_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )


def test_full_forward(pair):
    model, config, params = pair
    rows = prompts(config.vocab_size)
    want = [their_logits(model, row) for row in rows]
    apply = jax.jit(eet_jax.Decoder(config).apply)
    for side in ("left", "right"):
        tokens, mask = padded(rows, side)
        logits = np.asarray(
            apply({"params": params}, jnp.asarray(tokens), attention_mask=jnp.asarray(mask))
        )
        for i in range(len(rows)):
            np.testing.assert_allclose(
                logits[i][mask[i] == 1], want[i], atol=TOLERANCE, rtol=TOLERANCE
            )


def test_prefill_and_decode(pair):
    check_prefill_and_decode(*pair, "native")


@pytest.mark.parametrize("pair", [*checkpoints.FAMILIES, "llama-3"], indirect=True)
def test_prefill_and_decode_by_references(pair):
    """They compile long; test_decoder_options.py has every option of them."""
    check_prefill_and_decode(*pair, "reference")


def check_prefill_and_decode(model, config, params, implementation):
    rows = prompts(config.vocab_size)
    tokens, mask = padded(rows, "right")
    weights = eet_jax.prepare(config, params)
    state = eet_jax.init_state(config, len(rows), 64)
    options = {"implementation": implementation}
    got, state = eet_jax.prefill(config, weights, tokens, mask.sum(1), state, **options)
    steps = np.random.default_rng(1).integers(0, config.vocab_size, (3, len(rows)))
    all_logits = [got]
    for step in steps:
        got, state = eet_jax.decode_step(config, weights, step, state, **options)
        all_logits.append(got)
    for i, row in enumerate(rows):
        want = their_logits(model, [*row, *steps[:, i].tolist()])[len(row) - 1 :]
        np.testing.assert_allclose(np.stack(all_logits)[:, i], want, atol=TOLERANCE, rtol=TOLERANCE)


def test_greedy_tokens(pair):
    model, config, params = pair
    rows = prompts(config.vocab_size)
    got = eet_jax.generate(
        eet_jax.Decoder(config), params, rows, max_new_tokens=GREEDY_TOKENS, logprobs=True
    )
    for i, row in enumerate(rows):
        want = their_tokens(model, row)
        assert got.tokens[i] == want[0, len(row) :].tolist()
        scores = torch.log_softmax(torch.tensor(their_logits(model, want[0].tolist())), -1)
        chosen = scores[len(row) - 1 : -1].gather(1, want[0, len(row) :, None])[:, 0]
        np.testing.assert_allclose(got.logprobs[i], chosen.numpy(), atol=1e-3)
    tokens, mask = padded(rows, "left")
    left = eet_jax.generate(
        config, params, tokens, attention_mask=mask, max_new_tokens=GREEDY_TOKENS
    )
    assert left.tokens == got.tokens


def test_chunked_prefill_is_exact(pair):
    _, config, params = pair
    rows = prompts(config.vocab_size, (40, 57, 3, 64))
    tokens, mask = padded(rows, "right")
    weights = eet_jax.prepare(config, params)
    results = []
    for budget in (None, smallest_budget(config, len(rows))):
        state = eet_jax.init_state(config, len(rows), 128, activation_budget=budget)
        assert (budget is None) == (state.residual.shape[0] > 64)
        logits, state = eet_jax.prefill(config, weights, tokens, mask.sum(1), state)
        results.append(np.asarray(logits))
    np.testing.assert_array_equal(results[0], results[1])

    state = eet_jax.init_state(config, len(rows), 128)
    first = np.minimum(mask.sum(1), 20)
    _, state = eet_jax.prefill(config, weights, tokens[:, :20], first, state)
    rest = np.zeros_like(tokens)
    for i, row in enumerate(rows):
        rest[i, : len(row) - first[i]] = row[first[i] :]
    logits, state = eet_jax.prefill(config, weights, rest, mask.sum(1) - first, state)
    longer = mask.sum(1) > 20
    np.testing.assert_array_equal(np.asarray(logits)[longer], results[0][longer])


def smallest_budget(config, batch: int) -> int:
    with pytest.raises(ValueError, match="activation_budget must be at least") as error:
        eet_jax.plan(config, batch, 128, 1)
    return int(str(error.value).split("at least ")[1].split(" ")[0])


def test_written_checkpoint_in_transformers(pair, tmp_path):
    model, config, params = pair
    eet_jax.save_pretrained(tmp_path, eet_jax.Decoder(config), params)
    theirs = checkpoints.load_model(tmp_path)
    row = prompts(config.vocab_size)[3]
    np.testing.assert_allclose(
        their_logits(theirs, row), their_logits(model, row), atol=1e-6, rtol=1e-6
    )
