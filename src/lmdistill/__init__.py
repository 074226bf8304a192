"""lmdistill: distil a large language model into a small one, and prove what the student kept.

The loss engine (`lmdistill.objectives`, `lmdistill.signals`) depends on torch alone and can be used inside any
training loop. Everything else is reached through a recipe (`lmdistill.recipe`, `lmdistill.pipeline`) or the command
line (`lmdistill --help`).
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lmdistill")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
