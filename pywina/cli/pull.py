"""pywina pull and list (and fetch, their old name): models in the caches of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArgumentError
from ..hub.catalog import CATALOG
from ..hub.fetch import cached, fetch, is_hub_id
from ..hub.pretrained import cached_models, fetch_repository


def add_arguments(parser: argparse.ArgumentParser, *, names_help: str) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help=names_help)
    parser.add_argument(
        "-hf", "-hfr", "--hf-repo", metavar="OWNER/REPO[:QUANT]",
        help="a repository on the Hugging Face hub; QUANT such as Q4_K_M",
    )  # fmt: skip
    parser.add_argument("-hff", "--hf-file", metavar="FILE", help="which file of it")


def _pull(args: argparse.Namespace) -> Iterator[Path]:
    if args.hf_file is not None and args.hf_repo is None:
        raise ArgumentError("--hf-file needs -hf OWNER/REPO")
    for name in args.names:
        yield fetch_repository(name) if name not in CATALOG and is_hub_id(name) else fetch(name)
    if args.hf_repo is not None:
        yield fetch_repository(args.hf_repo, args.hf_file)


def main(args: argparse.Namespace) -> int:
    """Prints the path of each file."""
    if not args.names and args.hf_repo is None:
        raise ArgumentError("nothing to pull: give a name of `pywina list`, or -hf OWNER/REPO")
    for path in _pull(args):
        print(path)
    return 0


def main_fetch(args: argparse.Namespace) -> int:
    """Lists the known models where nothing is named."""
    return main(args) if args.names or args.hf_repo is not None else main_list(args)


def main_list(_args: argparse.Namespace) -> int:
    for model in CATALOG.values():
        notes = [f"{model.n_bytes / 1e6:.0f} MB", model.title]
        if cached(model):
            notes.append("fetched")
        print(f"{model.name}: {', '.join(notes)}")
    for repo_id, path in cached_models():
        print(f"{repo_id}: {path.stat().st_size / 1e6:.0f} MB, {path.name}, fetched")
    return 0
