"""The baseline's weights, laid out as a form wants them, and the choice of the fastest form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import pure_jax
from measure import Program, fastest
from pure_jax import Form, Weights

from eet_jax import DecoderConfig
from eet_jax.params import Params

TRIED_LAYERS = 4
"""In which forms are compared"""


class Baseline:
    """Makes weights from parameters when a form first asks for them, and keeps them."""

    def __init__(self, config: DecoderConfig, params: Params) -> None:
        self.config = config
        self._params = params
        self._made: dict[str, Weights] = {}

    def weights(self, form: Form) -> Weights:
        """Of all layers."""
        if form.kernels not in self._made:
            self._made[form.kernels] = pure_jax.make_weights(self.config, self._params, form)
        return self._made[form.kernels]

    def shortened(self) -> Baseline:
        """The same decoder with its first layers alone, to try forms out."""
        count = min(TRIED_LAYERS, self.config.num_layers)
        layers = jax.tree.map(lambda leaf: leaf[:count], self._params["layers"])
        return Baseline(self.config.replace(num_layers=count), self._params | {"layers": layers})


def fastest_form(
    baseline: Baseline,
    forms: Sequence[Form],
    make: Callable[[Baseline, Form], Program],
    steps: int,
) -> tuple[Form, dict[str, float | str]]:
    """The form whose program is fastest, and of each its microseconds per step, or a refusal.

    Args:
        make: from a few layers and a form to a program of ``steps`` steps.
    """
    short = baseline.shortened()
    form, tried = fastest(forms, functools.partial(make, short))
    return form, {
        name: us if isinstance(us, str) else round(us / steps, 2) for name, us in tried.items()
    }
