"""Where models come from: names of known models, their files, and the local cache."""

from .catalog import CATALOG, KnownModel
from .fetch import cache_dir, fetch, resolve

__all__ = ["CATALOG", "KnownModel", "cache_dir", "fetch", "resolve"]
