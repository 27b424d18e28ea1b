"""Requests to the server: bytes through JSON and the tables of fields.

    python tests/fuzz/fuzz_request.py replay DIR...       every kept input
    python tests/fuzz/fuzz_request.py mutate N DIR...     N random changes of them, always the same
    python tests/fuzz/fuzz_request.py atheris [-options of libFuzzer] DIR...   (pip install atheris)

The only exception that may come out is RequestError, with a text that can be sent; what is
accepted lies within its bounds.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Loaded by path: the module needs nothing of the package, and so neither does a fuzzing machine.
SCHEMA = Path(__file__).parents[2] / "pywina" / "server" / "schema.py"
if not SCHEMA.exists():
    SCHEMA = Path(__file__).with_name("schema.py")


def load_schema() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schema", SCHEMA)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if sys.argv[1:2] == ["atheris"]:
    import atheris

    sys.path.insert(0, str(SCHEMA.parent))
    with atheris.instrument_imports(include=["schema"]):
        schema = importlib.import_module("schema")
else:
    schema = load_schema()
TABLES = ((schema.CHAT, "messages"), (schema.TEXT, "prompt"), (schema.SPARSITY, "sparsity"))
TOP = 2**63 - 1


def check_plain(root: object) -> None:
    """What was accepted can be sent on: bounded depth, finite numbers, whole characters."""
    stack = [(root, 1)]
    while stack:
        item, depth = stack.pop()
        assert depth <= schema.MAX_DEPTH + 1
        if isinstance(item, str):
            item.encode("utf-8")
        elif isinstance(item, float):
            assert math.isfinite(item)
        elif isinstance(item, int):
            assert abs(item) <= TOP
        elif isinstance(item, dict):
            stack += [(inner, depth + 1) for pair in item.items() for inner in pair]
        elif isinstance(item, list):
            stack += [(inner, depth + 1) for inner in item]


def check_fields(found: dict[str, Any]) -> None:
    """Bounds that the engine relies on."""
    for name, low, high in (("temperature", 0, 100), ("top_p", 0, 1), ("top_k", 0, 1 << 20),
                            ("max_tokens", 1, 1 << 20), ("seed", 0, TOP), ("n", 1, 1)):  # fmt: skip
        assert low <= found.get(name, low) <= high and not isinstance(found.get(name), bool)
    assert 0 <= found.get("sparsity", 0) < 1
    assert all(isinstance(text, str) and text for text in found.get("stop", []))
    assert all(isinstance(m["content"], str) for m in found.get("messages", []))
    assert all(isinstance(k, int) and abs(v) <= 100 for k, v in found.get("logit_bias", {}).items())


def run_one(data: bytes) -> int:
    """The number of tables that accept the body; 0 for most bytes."""
    accepted = 0
    for table, required in TABLES:
        try:
            body = schema.parse(data)  # anew each time: messages are rewritten in place
            check_plain(body)
            found = schema.fields(body, table, required)
            check_fields(found)
            check_plain(found)
            accepted += 1
        except schema.RequestError as error:
            check_error(error)
    try:
        for item in schema.embedding_inputs(schema.parse(data), 64):
            assert item and isinstance(item, (str, list))
            accepted += 1
    except schema.RequestError as error:
        check_error(error)
    return accepted


def check_error(error: Any) -> None:
    sent = json.dumps({"message": str(error), "param": error.param, "code": error.code})
    assert sent.encode("utf-8") and 400 <= error.status < 500 and str(error)


def inputs(folders: list[str]) -> Iterator[bytes]:
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                yield path.read_bytes()


PIECES = [b"null", b"true", b"-1", b"1e400", b"-0.0", b"9223372036854775808", b"NaN", b'"\\ud800"',
          b"[" * 70, b"{}", b"[]", b'""', b"\xff", b"\\u0000", b'{"a":', b"1" * 5000, b",", b'"',
          b"0.9999999999999999999", b"1e-400"]  # fmt: skip


def change_value(rng: random.Random, value: Any) -> Any:
    """One place of a parsed body gets another value."""
    odd = [None, True, -1, 0, 1, 1.5, TOP, TOP + 1, "", "x" * 1025, [], {}, [[]], "a\0b", "\ud800",
           1e308, 2**20 + 1]  # fmt: skip
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        names = [*schema.CHAT, *schema.TEXT, "input", "dimensions"]
        if rng.random() < 0.2:
            return value | {rng.choice(names): rng.choice(odd)}
        return value | {key: change_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return value[:i] + [change_value(rng, value[i])] * rng.randrange(3) + value[i + 1 :]
    return rng.choice(odd)


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = rng.choice(seeds)
    try:
        if rng.random() < 0.6:
            body = json.loads(data)
            for _ in range(rng.randrange(1, 4)):
                body = change_value(rng, body)
            return json.dumps(body).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        pass
    raw = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(raw) + 1)
        raw[at : at + rng.randrange(4)] = rng.choice([*PIECES, bytes([rng.randrange(256)])])
    return bytes(raw)


def main() -> None:
    mode, *rest = sys.argv[1:]
    if mode == "atheris":
        atheris.Setup([sys.argv[0], *rest], run_one)
        atheris.Fuzz()
        return
    if mode == "replay":
        results = [run_one(data) for data in inputs(rest)]
    else:
        rng, seeds = random.Random(1), list(inputs(rest[1:]))
        results = [run_one(mutate(rng, seeds)) for _ in range(int(rest[0]))]
    assert results and any(results) and not all(results)
    print(f"fuzz_request: {len(results)} inputs, {sum(map(bool, results))} accepted")


if __name__ == "__main__":
    main()
