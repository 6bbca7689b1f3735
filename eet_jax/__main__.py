"""``python -m eet_jax``: the command line, where its script is not on PATH."""

from eet_jax.cli import main

if __name__ == "__main__":
    main()
