"""Rows, tables and plots of what tools/bench_peers.py measured.

A file holds the raw samples of one model; everything here is computed from them. Within a round
the programs took turns, llama.cpp before and after each run of ours, and a run of ours is compared
with the mean of those two: load that comes and goes hits both. What is reported is the median of
the ratios of all rounds, with their quartiles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

OURS, PEER = "wina", "peer"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        low, median, high = np.percentile(list(values), [25, 50, 75])
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """One test of one program. ratio: to the peer; None in the peer's own rows and without one.
    bytes_per_token: weights and keys and values; None for prompts. share: of the bandwidth that
    the same number of threads read in the same round."""

    program: str
    test: str
    n_threads: int
    sparsity: float
    tok_s: Spread
    ratio: Spread | None
    n_samples: int
    kept_fraction: float | None
    bytes_per_token: float | None
    gb_s: float | None
    share: float | None
    logits_hash: str


def neighbours(samples: Sequence[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """The peer's samples of the same test next to one of ours, at most one on each side."""
    test, found = samples[index]["test"], []
    for step in (-1, 1):
        i = index + step
        while 0 <= i < len(samples) and samples[i]["test"] == test:
            if samples[i]["program"] == PEER:
                found.append(samples[i])
                break
            i += step
    return found


def round_ratios(samples: Sequence[dict[str, Any]]) -> dict[tuple[str, float], list[float]]:
    """Ratios of one round's runs of ours to the peer's beside them, by test and sparsity."""
    ratios: dict[tuple[str, float], list[float]] = {}
    for i, sample in enumerate(samples):
        beside = neighbours(samples, i)
        if sample["program"] == OURS and beside:
            peer = sum(s["tok_s"] for s in beside) / len(beside)
            ratios.setdefault((sample["test"], sample["sparsity"]), []).append(
                sample["tok_s"] / peer
            )
    return ratios


def _read_bytes(result: dict[str, Any], sample: dict[str, Any]) -> float | None:
    """Bytes that a decoded token of a sample reads; a tied output matrix counts once."""
    if not sample["test"].startswith("tg"):
        return None
    weights = sample.get("bytes_per_token") or result["model"]["tensor_bytes_per_token"]
    settings = result["settings"]
    past = settings["depth"] + (settings["gen"] + 1) / 2  # mean length of the context
    return weights + past * result["model"]["kv_bytes_per_token"]


def counted(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The quiet rounds, and all rounds of a number of threads that has no quiet one. Where programs
    outnumber processors, one that waits by spinning loses far more than one that sleeps: ratios of
    such rounds say nothing about either."""
    taken = []
    for n_threads in result["settings"]["threads"]:
        rounds = [block for block in result["rounds"] if block["n_threads"] == n_threads]
        limit = result["settings"]["quiet"]
        taken += [block for block in rounds if block["others_load"] <= limit] or rounds
    return taken


def rows(result: dict[str, Any]) -> list[Row]:
    """Rows of one file, the peer's before ours, by threads, test and sparsity."""
    grouped: dict[tuple[int, str, float, str], list[tuple[dict[str, Any], float]]] = {}
    ratios: dict[tuple[int, str, float], list[float]] = {}
    for block in counted(result):
        n_threads = block["n_threads"]
        bandwidth = block["bandwidth"][str(n_threads)]
        for sample in block["samples"]:
            key = (n_threads, sample["test"], sample["sparsity"], sample["program"])
            grouped.setdefault(key, []).append((sample, bandwidth))
        for (test, sparsity), values in round_ratios(block["samples"]).items():
            ratios.setdefault((n_threads, test, sparsity), []).extend(values)
    made = []
    for (n_threads, test, sparsity, program), found in sorted(grouped.items()):
        samples = [sample for sample, _ in found]
        hashes = {sample["logits_hash"] for sample in samples}
        n_bytes = _read_bytes(result, samples[0])
        key = (n_threads, test, sparsity)
        speeds = [(s["tok_s"], bandwidth) for s, bandwidth in found]
        made.append(
            Row(
                program,
                test,
                n_threads,
                sparsity,
                Spread.of(speed for speed, _ in speeds),
                Spread.of(ratios[key]) if program == OURS and key in ratios else None,
                len(samples),
                samples[0].get("kept_fraction"),
                n_bytes,
                n_bytes and Spread.of(speed * n_bytes / 1e9 for speed, _ in speeds).median,
                n_bytes and Spread.of(speed * n_bytes / 1e9 / bw for speed, bw in speeds).median,
                hashes.pop() if len(hashes) == 1 else "varies",
            )
        )
    return made


def row_json(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows as they are stored beside the samples, for other readers of the file."""
    return [asdict(row) for row in rows(result)]


def load(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Results of files, and of the files of folders. Raises ValueError for other files."""
    results = []
    for path in paths:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            result = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(result, dict) or "rounds" not in result:
                raise ValueError(f"{file} was not written by bench_peers.py")
            results.append(result)
    return results


# ---- markdown ------------------------------------------------------------------------------------


def _table(header: Sequence[str], lines: Iterable[Sequence[str]], n_text: int = 1) -> str:
    """A markdown table; all columns but the first n_text are numbers, set to the right."""
    rule = ["---"] * n_text + ["---:"] * (len(header) - n_text)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def title(result: dict[str, Any]) -> str:
    """The model, and what stood in its context."""
    depth = result["settings"]["depth"]
    return result["name"] + (f" after {depth} tokens" if depth else "")


def ratio_table(results: Sequence[dict[str, Any]]) -> str:
    """One line per model and number of threads: the peer's speeds and our ratios to them."""
    sparsities = sorted({s for result in results for s in result["settings"]["sparsities"]})
    lines = []
    for result in results:
        found = {(r.program, r.n_threads, r.test[:2], r.sparsity): r for r in rows(result)}
        for n_threads in result["settings"]["threads"]:
            cells = [title(result), str(n_threads)]
            for test in ("tg", "pp"):
                peer = found.get((PEER, n_threads, test, 0.0))
                cells.append(_number(peer.tok_s.median) if peer else "-")
                for sparsity in sparsities if test == "tg" else [0.0]:
                    ours = found.get((OURS, n_threads, test, sparsity))
                    cells.append(_ratio(ours.ratio) if ours else "-")
            lines.append(cells)
    skipped = ["dense" if s == 0 else f"{100 * s:g}%" for s in sparsities]
    header = ["model", "threads", "peer tok/s", *skipped, "peer prompt tok/s", "prompt"]
    return _table(header, lines)


def detail_table(results: Sequence[dict[str, Any]]) -> str:
    """Every row of every model."""
    names = {OURS: "wina", PEER: "peer"}
    lines = [
        [
            title(result),
            f"{names[row.program]} {row.test}",
            str(row.n_threads),
            f"{100 * row.sparsity:g}%" if row.program == OURS else "-",
            f"{_number(row.tok_s.median)} ({_number(row.tok_s.low)}-{_number(row.tok_s.high)})",
            "-" if row.kept_fraction is None else f"{row.kept_fraction:.3f}",
            "-" if row.bytes_per_token is None else f"{row.bytes_per_token / 1e6:.1f}",
            "-" if row.gb_s is None else f"{row.gb_s:.1f}",
            _percent(row.share),
            row.logits_hash,
        ]
        for result in results
        for row in rows(result)
    ]
    header = ["model", "test", "threads", "sparsity", "tok/s", "kept", "MB per token", "GB/s"]
    return _table([*header, "of bandwidth", "logits hash"], lines, 2)


def _seconds(result: dict[str, Any], program: str, cache: str, key: str) -> str:
    found = [x[key] for x in result["loads"] if (x["program"], x["cache"]) == (program, cache)]
    return f"{Spread.of(found).median:.2f}" if found else "-"


def load_table(results: Sequence[dict[str, Any]]) -> str:
    """Seconds to load and to have the first token's logits, and peak memory, of both."""
    lines = []
    for result in results:
        for program, name in ((OURS, "wina"), (PEER, "peer")):
            peaks = [x["peak_bytes"] for x in result["loads"] if x["program"] == program]
            if not peaks:
                continue
            peak = max(peaks) - result["programs"][program]["interpreter_bytes"]
            cells = [
                _seconds(result, program, cache, key)
                for cache in ("cold", "warm")
                for key in ("load_s", "first_token_s")
            ]
            ratio = peak / result["model"]["tensor_bytes"]
            lines.append([title(result), name, *cells, f"{peak / 1e6:.0f}", f"{ratio:.2f}"])
    header = ["model", "", "cold load s", "to 1st token", "warm load s", "to 1st token"]
    return _table([*header, "peak MB", "of the tensors"], lines, 2)


def bandwidth_of(result: dict[str, Any], n_threads: int) -> Spread:
    """GB/s that n_threads read, over the rounds that count."""
    return Spread.of(b["bandwidth"][str(n_threads)] for b in counted(result))


def _about(result: dict[str, Any]) -> str:
    machine, programs = result["machine"], result["programs"]
    read = ", ".join(
        f"{bandwidth_of(result, n).median:.1f} GB/s with {n} thread{'s' if n > 1 else ''}"
        for n in sorted(int(n) for n in result["rounds"][0]["bandwidth"])
    )
    settings = result["settings"]
    others = Spread.of(block["others_load"] for block in counted(result))
    noisy = sum(block["others_load"] > settings["quiet"] for block in counted(result))
    warning = f", **{noisy} of them not quiet**" if noisy else ""
    cosine = result["agreement"]
    agreement = "" if cosine is None else f"; cosine of both's dense logits {cosine['cosine']:.5f}"
    return (
        f"* {title(result)}: {result['date']}, {len(counted(result))} rounds{warning}, other "
        f"programs took {_percent(others.median)} of the processors ({_percent(others.low)}-"
        f"{_percent(others.high)}); reads {read}{agreement}. "
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['isa'])}), "
        f"{programs[OURS]['version']} {result['revision']} ({programs[OURS]['system']})"
        + (f", {programs[PEER]['version']}" if PEER in programs else "")
        + f". `{result['command']}`"
    )


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """All tables, with what they were measured on."""
    return "\n\n".join(
        [
            "Ratios to the peer (llama.cpp, dense), median (quartiles):",
            ratio_table(results),
            "All rows, median (quartiles):",
            detail_table(results),
            "Loads and memory:",
            load_table(results),
            "Measured on:",
            "\n".join(_about(result) for result in results),
        ]
    )
