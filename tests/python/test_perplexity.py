"""Perplexity of the real models against a float32 implementation and llama.cpp, same windows.

tests/golden/perplexity.json has the losses of all three over the first windows of wikitext2's test
file (tools/make_golden.py, which goes on where it was stopped: 40 windows are 20,480 tokens). What
it says of our own is what is computed: the first windows are evaluated again here, and results
depend on neither the machine nor the number of threads.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "perplexity.json").read_text())
#: windows that all three must have: 20,480 tokens
LEAST = 40
PATHS = {"smollm2": "smollm2_path", "qwen": "qwen_path", "gemma3": "gemma_path"}


def mean(losses: list[float], n: int) -> float:
    assert len(losses) >= n
    return float(np.mean(losses[:n]))


@pytest.mark.parametrize("name", list(PATHS))
def test_recorded_perplexity(name: str) -> None:
    golden = GOLDEN[name]
    n = min(len(who["nll_per_window"]) for who in (golden, golden["wina"], golden["llama_cpp"]))
    assert n >= LEAST
    ours = mean(golden["wina"]["nll_per_window"], n)
    # Nats: 0.3% and 1% of the perplexity.
    assert abs(ours - mean(golden["nll_per_window"], n)) < np.log(1.003)
    assert abs(ours - mean(golden["llama_cpp"]["nll_per_window"], n)) < np.log(1.01)


@pytest.mark.parametrize(("name", "n"), [("smollm2", 4), ("qwen", 1), ("gemma3", 2)])
def test_perplexity_of_the_first_windows(
    wina_bin: Path, data_dir: Path, request: pytest.FixtureRequest, name: str, n: int
) -> None:
    golden = GOLDEN[name]
    command = [wina_bin, "perplexity", "-m", request.getfixturevalue(PATHS[name]), "--json"]
    command += ["-f", data_dir / "wikitext2" / "wiki.test.raw", "-c", "512", "--chunks", str(n)]
    done = subprocess.run(list(map(str, command)), capture_output=True, check=True, timeout=300)
    ours = json.loads(done.stdout)["nll_per_window"]
    assert len(ours) == n
    # Another order of a sum moves a window's loss by some 1e-4, another rule by far more.
    np.testing.assert_allclose(ours, golden["wina"]["nll_per_window"][:n], rtol=0, atol=1e-3)
    assert abs(mean(ours, n) - mean(golden["nll_per_window"], n)) < 0.004
    assert abs(mean(ours, n) - mean(golden["llama_cpp"]["nll_per_window"], n)) < 0.015
