"""Hugging Face directories to configs and parameters, and back; one name table per family."""

from eet_jax.checkpoint.loading import Description as Description
from eet_jax.checkpoint.loading import Progress as Progress
from eet_jax.checkpoint.loading import describe as describe
from eet_jax.checkpoint.loading import load as load
from eet_jax.checkpoint.saving import save as save
