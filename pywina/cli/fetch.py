"""pywina fetch: known models into the cache."""

from __future__ import annotations

import argparse

from ..hub.catalog import CATALOG
from ..hub.fetch import cached, fetch


def main(args: argparse.Namespace) -> int:
    for name in args.names:
        print(fetch(name))
    if not args.names:
        for model in CATALOG.values():
            notes = [f"{model.n_bytes / 1e6:.0f} MB", model.title]
            if cached(model):
                notes.append("fetched")
            if not model.runnable:
                notes.append("cannot be run yet")
            print(f"{model.name}: {', '.join(notes)}")
    return 0
