"""The baseline's weights, laid out as a form wants them."""

from __future__ import annotations

import jax
import pure_jax
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
        """The weights of all layers."""
        if form.kernels not in self._made:
            self._made[form.kernels] = pure_jax.make_weights(self.config, self._params, form)
        return self._made[form.kernels]

    def shortened(self) -> Baseline:
        """The same decoder with its first layers alone, to try forms out."""
        if self.config.num_layers <= TRIED_LAYERS:
            return self
        layers = jax.tree.map(lambda leaf: leaf[:TRIED_LAYERS], self._params["layers"])
        config = self.config.replace(num_layers=TRIED_LAYERS)
        return Baseline(config, self._params | {"layers": layers})
