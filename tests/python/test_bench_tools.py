"""tools/: the benchmark's statistics, tables and workers, and the synthetic models it runs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pywina

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import bench_peers  # noqa: E402
import bench_plot  # noqa: E402
import bench_report  # noqa: E402
import bench_serve  # noqa: E402
import make_synthetic  # noqa: E402
from bench_report import OURS, PEER, Spread  # noqa: E402
from bench_worker import OthersLoad, Worker, resident_share  # noqa: E402

SHAPE = make_synthetic.SIZES["tiny"]


def _sample(program: str, tok_s: float, sparsity: float = 0.0, **more: Any) -> dict[str, Any]:
    sample = {"program": program, "test": "tg64", "sparsity": sparsity, "tok_s": tok_s}
    return sample | {"logits_hash": f"{program}{sparsity}"} | more


def _ours(tok_s: float, sparsity: float, n_bytes: float) -> dict[str, Any]:
    return _sample(OURS, tok_s, sparsity, kept_fraction=1 - sparsity, bytes_per_token=n_bytes)


def _result(speeds: list[float], **more: Any) -> dict[str, Any]:
    """One round for each speed of the machine; ours is 1.5 (dense) and 2 times (50%) the peer."""
    rounds = [
        {
            "n_threads": 2,
            "bandwidth": {"1": 10.0 * speed, "2": 20.0 * speed},
            "others_load": 0.25,
            "samples": [
                _sample(PEER, 10 * speed),
                _ours(15 * speed, 0.0, 1e9),
                _sample(PEER, 10 * speed),
                _ours(20 * speed, 0.5, 0.6e9),
                _sample(PEER, 10 * speed),
            ],
        }
        for speed in speeds
    ]
    return {
        "name": "model",
        "date": "2025-01-01 00:00 UTC",
        "command": "tools/bench_peers.py",
        "revision": "abc",
        "machine": {"cpu": "a processor", "cores": 2, "isa": ["avx2"]},
        "settings": {
            "threads": [2],
            "sparsities": [0.0, 0.5],
            "rounds": len(speeds),
            "quiet": 0.3,
            "gen": 64,
            "depth": 0,
        },
        "model": {
            "tensor_bytes": 1.1e9,
            "tensor_bytes_per_token": 1.1e9,
            "kv_bytes_per_token": 0,
        },
        "programs": {
            OURS: {"version": "libwina 0", "system": "avx2", "interpreter_bytes": 1e8},
            PEER: {"version": "llama-cpp-python 0", "interpreter_bytes": 2e8},
        },
        "agreement": {"cosine": 0.9999, "same_best": True},
        "loads": [
            {
                "program": program,
                "cache": cache,
                "load_s": seconds,
                "first_token_s": seconds + 1,
                "peak_bytes": 1.2e9,
            }
            for program in (OURS, PEER)
            for cache, seconds in (("cold", 4.0), ("cold", 6.0), ("warm", 2.0))
        ],
        "rounds": rounds,
    } | more


def _cells(table: str, line: int) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[2 + line].strip("|").split("|")]


# ---- statistics ----------------------------------------------------------------------------------


def test_spread() -> None:
    assert Spread.of([5, 1, 3, 2, 4]) == Spread(3, 2, 4)
    assert Spread.of([7]) == Spread(7, 7, 7)


def test_a_run_is_compared_with_the_peers_beside_it() -> None:
    samples = [
        _sample(PEER, 10),
        _ours(30, 0.0, 1),
        _sample(PEER, 20),
        _ours(60, 0.5, 1),
        _sample(PEER, 40),
        _sample(PEER, 1) | {"test": "pp128"},
        _ours(5, 0.0, 1) | {"test": "pp128"},
    ]
    assert bench_report.round_ratios(samples) == {
        ("tg64", 0.0): [pytest.approx(2.0)],
        ("tg64", 0.5): [pytest.approx(2.0)],
        ("pp128", 0.0): [pytest.approx(5.0)],  # not the tg64 of the other side
    }


def test_ratios_do_not_feel_a_machine_that_slows_down() -> None:
    rows = bench_report.rows(_result([1.0, 0.5, 0.25]))
    ours = {row.sparsity: row for row in rows if row.program == OURS}
    assert ours[0.0].ratio == Spread(*[pytest.approx(1.5)] * 3)
    assert ours[0.5].ratio == Spread(*[pytest.approx(2.0)] * 3)
    assert ours[0.5].tok_s == Spread(10, 7.5, 15)
    # 1 GB at 15/s of 20 GB/s, 0.6 GB at 20/s of 20 GB/s: the same in every round too.
    assert ours[0.0].share == pytest.approx(0.75)
    assert ours[0.5].share == pytest.approx(0.6)
    assert ours[0.5].kept_fraction == 0.5


def test_only_quiet_rounds_count() -> None:
    result = _result([1.0, 2.0, 4.0])
    result["rounds"][1]["others_load"] = 0.31
    result["rounds"][1]["samples"][1]["tok_s"] = 1e6
    dense = next(row for row in bench_report.rows(result) if row.program == OURS)
    assert dense.n_samples == 2
    assert dense.ratio == Spread(*[pytest.approx(1.5)] * 3)
    assert bench_report.bandwidth_of(result, 2).high < 80
    assert "not quiet" not in bench_report.markdown([result])
    for block in result["rounds"]:
        block["others_load"] = 0.5
    assert bench_report.rows(result)[1].n_samples == 3
    assert "**3 of them not quiet**" in bench_report.markdown([result])


def test_keys_and_values_of_a_deep_context_are_bytes_to_read() -> None:
    result = _result([1.0])
    result["settings"]["depth"] = 1000
    result["model"]["kv_bytes_per_token"] = 1e6
    rows = bench_report.rows(result)
    assert rows[0].program == PEER
    assert rows[0].bytes_per_token == pytest.approx(1.1e9 + 1032.5e6)
    assert rows[1].bytes_per_token == pytest.approx(1.0e9 + 1032.5e6)


def test_hashes_that_differ_between_rounds_show() -> None:
    result = _result([1.0, 1.0])
    result["rounds"][1]["samples"][1]["logits_hash"] = "other"
    hashes = [row.logits_hash for row in bench_report.rows(result)]
    assert hashes == [f"{PEER}0.0", "varies", f"{OURS}0.5"]


# ---- tables and plots ----------------------------------------------------------------------------


def test_tables() -> None:
    results = [_result([1.0, 0.5, 0.25])]
    ratio = bench_report.ratio_table(results)
    assert _cells(ratio, -2)[:5] == ["model", "threads", "peer tok/s", "dense", "50%"]
    want = ["model", "2", "5", "1.50 (1.50-1.50)", "2.00 (2.00-2.00)", "-", "-"]
    assert _cells(ratio, 0) == want
    detail = bench_report.detail_table(results)
    want = ["model", "wina tg64", "2", "50%", "10 (7.5-15)", "0.500", "600.0", "6.0", "60%"]
    assert _cells(detail, 2) == [*want, f"{OURS}0.5"]
    loads = bench_report.load_table(results)
    assert _cells(loads, 0) == ["model", "wina", "5.00", "6.00", "2.00", "3.00", "1100", "1.00"]
    assert _cells(loads, 1)[-2:] == ["1000", "0.91"]
    text = bench_report.markdown(results)
    assert "20.0 GB/s with 2 threads" not in text  # the median round ran at half of that
    assert "10.0 GB/s with 2 threads" in text
    assert "other programs took 25% of the processors" in text
    widths = {len(line.split("|")) for line in ratio.splitlines()}
    assert len(widths) == 1


def test_tables_without_a_peer() -> None:
    result = _result([1.0], agreement=None)
    for block in result["rounds"]:
        block["samples"] = [s for s in block["samples"] if s["program"] == OURS]
    result["loads"] = [x for x in result["loads"] if x["program"] == OURS]
    del result["programs"][PEER]
    assert _cells(bench_report.ratio_table([result]), 0) == ["model", "2", *["-"] * 5]
    assert "peer tg64" not in bench_report.markdown([result])


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json"):
        bench_report.load([tmp_path])


def test_plot(tmp_path: Path) -> None:
    results = [_result([1.0, 0.5]), _result([1.0], name="other")]
    bench_plot.plot(results, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    ours = [row for row in bench_report.rows(results[0]) if row.program == OURS]
    x, y = bench_plot.bounds(results[0], ours)
    assert (x[0], x[-1]) == (0, 50)
    assert (y[0], y[-1]) == (pytest.approx(15.0), pytest.approx(25.0))  # 15 GB/s, 1 and 0.6 GB
    assert (np.diff(y) > 0).all()
    with pytest.raises(ValueError, match="no results"):
        bench_plot.plot([], tmp_path / "none.png")


# ---- synthetic models ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", make_synthetic.TYPES)
def test_synthetic_models_run(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    n_weights = make_synthetic.write_synthetic(path, SHAPE, kind)
    assert not path.with_name("model.gguf.part").exists()
    with pywina.load(path, n_ctx=64) as model:
        assert model.info.n_params == n_weights
        assert (model.info.n_vocab, model.info.n_layer) == (SHAPE.vocab, SHAPE.layers)
        assert model.tensors["blk.1.ffn_down.weight"].type == kind
        tokens = model.tokenize("the rain in spain")
        assert model.detokenize(tokens) == "the rain in spain"
        logits = model.logits(tokens)
        assert np.isfinite(logits).all()
        assert logits.std() > 0.1
        model.generate(tokens, max_tokens=8, temperature=0, sparsity=0.5, ignore_eog=True)
        assert model.stats.n_decode == 7
        assert model.stats.kept_fraction == pytest.approx(0.5, abs=0.01)
        weights = model.read_tensor("blk.0.ffn_gate.weight")
        assert weights.std() == pytest.approx(SHAPE.embd**-0.5, rel=0.05)
        assert abs(weights.mean()) < 0.05 * weights.std()


def test_synthetic_models_are_reproducible(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_synthetic.write_synthetic(tmp_path / name, SHAPE, "Q4_0", seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_synthetic_sizes() -> None:
    counts = {
        name: sum(max(rows, 1) * cols for _, rows, cols, _ in make_synthetic.tensors(shape))
        for name, shape in make_synthetic.SIZES.items()
    }
    assert counts["8b"] == 8030261248  # Llama-3-8B
    assert counts["1b"] == pytest.approx(1.03e9, rel=0.005)


def test_impossible_shapes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        make_synthetic.write_synthetic(tmp_path / "a", replace(SHAPE, embd=128), "Q4_K")
    with pytest.raises(ValueError, match="too small"):
        make_synthetic.write_synthetic(tmp_path / "a", replace(SHAPE, vocab=100), "Q4_0")
    command = [sys.executable, TOOLS / "make_synthetic.py", "--ff", "48", tmp_path / "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "48 inputs are not a multiple of 32" in done.stderr
    assert not list(tmp_path.iterdir())


def test_names_of_synthetic_models() -> None:
    assert bench_peers.synthetic_shape("1b-Q4_K") == ("1b", "Q4_K")
    for name in ("smollm2-135m", "1b-Q9_0", "3b-Q4_0", "1b"):
        assert bench_peers.synthetic_shape(name) is None


# ---- the benchmark itself ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "synthetic.gguf"
    make_synthetic.write_synthetic(path, SHAPE, "Q8_0")
    return path


def _worker(path: Path, n_ctx: int = 64) -> Worker:
    script = str(TOOLS / "bench_wina.py")
    return Worker([sys.executable, script, "-m", str(path), "-t", "2", "-c", str(n_ctx)])


def test_worker_does_what_wina_bench_does(model_file: Path, wina_bin: Path) -> None:
    command = [wina_bin, "bench", "-m", model_file, "-p", "24", "-n", "8", "-t", "2", "--json"]
    options = ["-r", "1", "--depth", "20", "--sparsity", "0,0.5"]
    done = subprocess.run([*command, *options], capture_output=True, check=True)
    want = {(row["test"], row["sparsity"]): row for row in json.loads(done.stdout)}
    with _worker(model_file) as worker:
        assert worker.run("pp", 24)["logits_hash"] == want["pp24", 0]["logits_hash"]
        for _ in range(2):  # the context is cut back, not evaluated again
            for sparsity in (0.0, 0.5):
                got, row = worker.run("tg", 8, 20, sparsity), want["tg8", sparsity]
                assert got["logits_hash"] == row["logits_hash"]
                assert got["bytes_per_token"] == pytest.approx(row["bytes_per_token"])
                assert got["kept_fraction"] == pytest.approx(row["kept_fraction"])
        one_thread = worker.ask("threads", n=1)
        assert one_thread["peak_bytes"] > 0
        assert worker.run("tg", 8, 20, 0.5)["logits_hash"] == want["tg8", 0.5]["logits_hash"]


def test_a_worker_that_ends_is_an_error(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        _worker(tmp_path / "absent.gguf")
    with _worker(model_file, 16) as worker, pytest.raises(RuntimeError, match="exit code 1"):
        worker.run("tg", 32)


def test_load_of_other_programs(model_file: Path) -> None:
    with _worker(model_file, 300) as worker:
        start, before = time.monotonic(), worker.cpu_seconds()
        as_ours, as_another = OthersLoad([worker]), OthersLoad([])
        while worker.cpu_seconds() < before + 0.5:
            worker.run("tg", 300)
        ours, another = as_ours.share(), as_another.share()
        spent, clock = worker.cpu_seconds() - before, time.monotonic() - start
    assert 0 <= ours <= 1
    assert another - ours == pytest.approx(spent / clock / os.cpu_count(), abs=0.1)


def test_tokens_and_hash_are_in_range() -> None:
    ids = bench_serve.bench_tokens(500, 300)
    assert len(set(ids)) > 100
    assert 0 <= min(ids) <= max(ids) < 300
    assert bench_serve.logits_hash(np.zeros(0, np.float32)) == "cbf29ce484222325"


def test_resident_share(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert resident_share(path) == 1.0  # just written


def test_two_builds_side_by_side(model_file: Path, tmp_path: Path) -> None:
    library = os.environ.get("PYWINA_LIBRARY") or str(TOOLS.parent / "build" / "lib" / "libwina.so")
    command = [
        *(sys.executable, str(TOOLS / "bench_peers.py"), "--models", str(model_file)),
        *("--against", library, "--out", str(tmp_path), "--sparsity", "0,0.5"),
        *("--rounds", "2", "--prompt", "16", "--gen", "4", "--loads", "1", "--threads", "1"),
        *("--quiet", "1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (result,) = bench_report.load([tmp_path])
    assert result["name"] == "synthetic"
    assert [len(block["samples"]) for block in result["rounds"]] == [8, 8]
    rows = bench_report.rows(result)
    kinds = [(row.program, row.test, row.sparsity) for row in rows]
    assert kinds == [
        (PEER, "pp16", 0.0),
        (OURS, "pp16", 0.0),
        (PEER, "tg4", 0.0),
        (OURS, "tg4", 0.0),
        (OURS, "tg4", 0.5),
    ]
    assert rows[0].logits_hash == rows[1].logits_hash  # the same library, so the same bits
    assert rows[2].logits_hash == rows[3].logits_hash != rows[4].logits_hash
    assert rows[4].kept_fraction == pytest.approx(0.5, abs=0.01)
    assert rows[4].bytes_per_token < 0.75 * rows[3].bytes_per_token
    assert all(row.ratio is not None for row in rows if row.program == OURS)
    assert result["agreement"] == {"cosine": pytest.approx(1.0), "same_best": True}
    assert {(x["program"], x["cache"]) for x in result["loads"]} >= {(OURS, "warm"), (PEER, "warm")}
    assert "| synthetic | 1 |" in done.stdout
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert again.stdout == ""
    assert all(0 <= block["others_load"] <= 1 for block in result["rounds"])
