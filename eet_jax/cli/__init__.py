"""The command line: one file for each command."""

from eet_jax.cli.entry import app as app
from eet_jax.cli.entry import main as main
