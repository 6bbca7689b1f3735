"""The baseline's weights, laid out as the form of a program wants them."""

from __future__ import annotations

import jax
import pure_jax
from pure_jax import Form, Weights

from eet_jax import DecoderConfig
from eet_jax.params import Params


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

    def first_layer(self) -> Baseline:
        """The same decoder with one layer, to try forms out."""
        layers = jax.tree.map(lambda leaf: leaf[:1], self._params["layers"])
        return Baseline(self.config.replace(num_layers=1), self._params | {"layers": layers})
