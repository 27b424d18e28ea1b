"""Writes tests/golden/llama.json: the shapes of what llama-cpp-python gives back.

    pip install llama-cpp-python
    python tools/make_llama_golden.py smollm2-135m.gguf

A shape is a value without what differs from run to run or from model to model: keys, types,
nesting, the order of chunks, roles and finish reasons. tests/python/test_llama.py makes the same
calls with pywina's class and compares.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "llama.json"

#: values that programs compare with
_LITERAL = {"object", "finish_reason", "role", "index", "type"}
#: dictionaries whose keys are data
_MAPS = {"top_logprobs", "metadata"}

PROMPT = "The capital of France is"
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6}


def shape(value: Any, key: str = "") -> Any:
    """What two programs must have in common. key: what value stands under."""
    if key in _LITERAL and isinstance(value, (str, int, type(None))):
        return value
    if key == "id":
        return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UUID", value)
    if isinstance(value, dict):
        if key in _MAPS and "logprob" not in value:
            return {"*": sorted({shape(inner) for inner in value.values()})}
        return {name: shape(inner, name) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        # Runs of one shape count once: answers differ in their lengths.
        return [json.loads(k) for k, _ in groupby(json.dumps(shape(v, key)) for v in value)]
    if hasattr(value, "tolist"):
        return "float" if isinstance(value.tolist(), float) else type(value).__name__
    return type(value).__name__


def calls(llm: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and calls; each is made with a model that has ``logits_all`` and ``embedding``."""

    def text(**options: Any) -> Callable[[], Any]:
        if options.get("stream"):
            return lambda: list(llm(PROMPT, **GREEDY | options))
        return lambda: llm(PROMPT, **GREEDY | options)

    def chat(**options: Any) -> Callable[[], Any]:
        make = lambda: llm.create_chat_completion(MESSAGES, **GREEDY | options)  # noqa: E731
        return (lambda: list(make())) if options.get("stream") else make

    tokens = llm.tokenize(PROMPT.encode())
    yield "completion", text()
    yield "completion, create_completion", lambda: llm.create_completion(PROMPT, **GREEDY)
    yield "completion, tokens", lambda: llm(tokens, **GREEDY)
    yield "completion, stop", text(stop=["."])
    yield "completion, stop as text", text(stop=".")
    yield "completion, no stop", text(stop=None)
    yield "completion, logprobs", text(logprobs=2)
    yield "completion, logprobs 0", text(logprobs=0)
    yield "completion, echo", text(echo=True)
    yield "completion, echo and logprobs", text(echo=True, logprobs=2)
    yield "completion, model", text(model="mine")
    yield "completion, seed and penalties", text(
        temperature=0.8, seed=1, top_k=20, top_p=0.9, min_p=0.1, typical_p=0.9,
        frequency_penalty=0.1, presence_penalty=0.1, repeat_penalty=1.1,
    )  # fmt: skip
    yield "completion, logit_bias", text(logit_bias={7042: -100})
    yield "stream", text(stream=True)
    yield "stream, stop", text(stream=True, stop=["."])
    yield "stream, stop at once", text(stream=True, stop=[" Paris"])
    yield "stream, logprobs", text(stream=True, logprobs=2)
    yield "stream, logprobs and stop", text(stream=True, logprobs=2, stop=["."])
    yield "stream, one token", text(stream=True, max_tokens=1)
    yield "chat", chat()
    yield "chat, whole answer", chat(max_tokens=60)
    yield "chat, stop", chat(stop=["France"])
    yield "chat, logprobs", chat(logprobs=True, top_logprobs=2)
    yield "chat, stream", chat(stream=True)
    yield "chat, stream, whole answer", chat(stream=True, max_tokens=60)
    yield "chat, stream, stop", chat(stream=True, stop=["France"])
    yield "chat, stream, logprobs", chat(stream=True, logprobs=True, top_logprobs=2)
    yield "tokenize", lambda: llm.tokenize(b"Hello world")
    yield "tokenize, special", lambda: llm.tokenize(b"<|im_end|>", add_bos=False, special=True)
    yield "detokenize", lambda: llm.detokenize(tokens)
    yield "embedding", lambda: llm.create_embedding("Hello world")
    yield "embedding, several", lambda: llm.create_embedding(["Hello", "world"], model="mine")
    yield "embed", lambda: llm.embed("Hello world")
    yield "embed, several", lambda: llm.embed(["Hello", "world"])
    yield "embed, count", lambda: llm.embed("Hello world", return_count=True)
    for name in ("n_ctx", "n_embd", "n_vocab", "token_bos", "token_eos", "token_nl"):
        yield name, getattr(llm, name)
    yield "pooling_type", llm.pooling_type
    for name in (
        "metadata",
        "model_path",
        "n_batch",
        "verbose",
        "last_n_tokens_size",
        "chat_format",
    ):
        yield name, lambda name=name: getattr(llm, name)  # type: ignore[misc]

    def steps() -> Any:
        llm.reset()
        llm.eval(tokens)
        token = llm.sample(temp=0.0)
        return [llm.n_tokens, token, list(llm.eval_tokens), list(llm.scores.shape)[1:],
                [len(row) for row in llm.eval_logits][-1:], list(llm.input_ids)[:1]]  # fmt: skip

    yield "steps", steps
    yield "generate", lambda: [t for t, _ in zip(llm.generate(tokens, temp=0.0), range(3))]  # noqa: B905


def failures(llm: Any, make: Callable[..., Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls that fail, for the built-in exceptions that programs catch."""
    yield "no file", lambda: make(model_path="nowhere.gguf")
    yield "a prompt that does not fit", lambda: llm([504] * 600, **GREEDY)
    yield "no embeddings", lambda: make().embed("Hello")


def error_of(call: Callable[[], Any]) -> list[str]:
    """The built-in classes of what a call raises."""
    try:
        call()
    except Exception as error:
        return [c.__name__ for c in type(error).__mro__ if c.__module__ == "builtins"]
    return []


def main() -> None:
    import llama_cpp

    def make(**options: Any) -> Any:
        return llama_cpp.Llama(
            **{"model_path": sys.argv[1], "n_ctx": 512, "n_threads": 1, "verbose": False} | options
        )

    llm = make(logits_all=True, embedding=True)
    found = {
        "llama_cpp": llama_cpp.__version__,
        "shapes": {name: shape(call(), name) for name, call in calls(llm)},
        "errors": {name: error_of(call) for name, call in failures(llm, make)},
    }
    shapes = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found["shapes"].items()
    )
    rest = json.dumps(found | {"shapes": 0}, indent=1)
    OUTPUT.write_text(rest.replace('"shapes": 0', f'"shapes": {{\n{shapes}\n }}') + "\n")


if __name__ == "__main__":
    main()
