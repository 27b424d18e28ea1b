"""Perplexity of the real models against a float32 implementation and llama.cpp, same windows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "perplexity.json"


@pytest.mark.parametrize(("name", "n"), [("smollm2", 4), ("qwen", 1)])
def test_perplexity_of_real_models(
    wina_bin: Path, data_dir: Path, request: pytest.FixtureRequest, name: str, n: int
) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    command = [wina_bin, "perplexity", "-m", request.getfixturevalue(f"{name}_path"), "--json"]
    command += ["-f", data_dir / "wikitext2" / "wiki.test.raw", "-c", "512", "--chunks", str(n)]
    done = subprocess.run(list(map(str, command)), capture_output=True, check=True, timeout=300)
    ours = sum(json.loads(done.stdout)["nll_per_window"]) / n
    float32 = sum(golden["nll_per_window"][:n]) / n
    llama_cpp = sum(golden["llama_cpp"]["nll_per_window"][:n]) / n
    assert abs(ours - float32) < 0.003  # nats: 0.3% of the perplexity
    assert abs(ours - llama_cpp) < 0.01
