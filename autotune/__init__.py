"""autotune: finds the best speculative-decoding settings of a vLLM DFlash server."""

from importlib.metadata import version

__version__ = version("dflash-autotune")
