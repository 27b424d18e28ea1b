"""Where models come from: names of known models (catalog) and the local cache (fetch)."""
