"""pywina run: continue a prompt, or answer one message."""

from __future__ import annotations

import argparse
import json
import sys

from ..errors import ArgumentError
from ..generation import Stream
from ..model import Model
from .common import (
    announce,
    generate_options,
    load_model,
    note,
    pieces,
    print_stream,
    prompt_of,
    summary,
)


def _prompt(args: argparse.Namespace) -> str:
    given = prompt_of(args)
    if given is not None:
        return given
    if sys.stdin.isatty():
        raise ArgumentError("no prompt: give -p TEXT or -f FILE, or pipe the text in")
    return sys.stdin.read()


def _start(model: Model, prompt: str, args: argparse.Namespace) -> Stream:
    options = generate_options(args)
    if not args.chat:
        return model.stream(prompt, **options)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    messages.append({"role": "user", "content": prompt})
    return model.chat(messages, stream=True, **options)


def main(args: argparse.Namespace) -> int:
    if args.system is not None and not args.chat:
        raise ArgumentError("--system needs --chat: plain prompts have no messages")
    prompt = _prompt(args)
    if not prompt:
        raise ArgumentError("the prompt is empty; give at least one character")
    with load_model(args) as model, _start(model, prompt, args) as stream:
        announce(model)
        if not args.json:
            print_stream(stream)
            if stream.timings is not None:
                note(summary(stream.timings))
            return 0
        text = "".join(chunk.text for chunk in pieces(stream))
        timings = stream.timings
        assert timings is not None  # the stream was read to its end
        report = {
            "text": text,
            "tokens": stream.tokens,
            "prompt_tokens": timings.prompt_tokens,
            "kept_fraction": timings.kept_fraction,
            "finish_reason": stream.finish_reason,
            "timings": {
                "load_s": timings.load_s,
                "prefill_tok_s": timings.prefill_tok_s,
                "decode_tok_s": timings.decode_tok_s,
            },
        }
        print(json.dumps(report, ensure_ascii=False))
    return 0
