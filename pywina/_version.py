"""The version of the project; pyproject.toml and the Makefile read it from here."""

__version__ = "0.1.0"
