"""The `pywina` program."""

from .main import main

__all__ = ["main"]
