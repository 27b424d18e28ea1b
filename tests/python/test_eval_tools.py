"""tools/eval_graph.py against the library's own evaluation, and tools/eval_compare.py by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pywina
from pywina.cli import main
from pywina.convert.transform import at_equal_bytes

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the in and there an of on a woman at sea is seen with all to rest".split()
TEXT = " ".join(np.random.default_rng(1).choice(WORDS, 2500))


def tool(name: str, *arguments: object) -> str:
    command = [sys.executable, ROOT / "tools" / name, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_graph_evaluates_what_the_library_does(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install 'pywina[calibrate]')")
    data, text = tmp_path / "data", tmp_path / "data" / "wikitext2" / "wiki.test.raw"
    text.parent.mkdir(parents=True)
    text.write_text(TEXT)
    ours, graph = tmp_path / "ours.json", tmp_path / "graph.json"
    rules = ["--sparsity", "0.25,0.5", "--method", "teal,wina", "--limit", "3"]
    options = ["--data", str(data), "--json", str(ours), "-t", "1", "--backend", "cpu"]
    assert main(["eval", str(tiny_model), "--tasks", "wikitext2", *options, *rules]) == 0
    options = ["-f", text, "--device", "cpu", "--json", graph]
    tool("eval_graph.py", tiny_model, *options, *rules)
    first, second = (json.loads(file.read_text())["items"]["wikitext2"] for file in (ours, graph))
    assert set(first) == set(second) == {"dense", "teal 0.25", "wina 0.25", "teal 0.5", "wina 0.5"}
    for rule, items in first.items():
        assert set(items) == set(second[rule]) and len(items) == 3
        for number, values in items.items():
            assert values[0] == pytest.approx(second[rule][number][0], abs=0.02), rule
            assert values[1] == pytest.approx(second[rule][number][1], abs=0.02), rule
    # A second run has nothing left to do, and a larger limit goes on.
    before = graph.read_text()
    tool("eval_graph.py", tiny_model, *options, *rules)
    assert json.loads(graph.read_text())["items"] == json.loads(before)["items"]


def test_bytes_of_basis_changes_are_paid(tiny_model: Path, tmp_path: Path) -> None:
    text, target = tmp_path / "text.txt", tmp_path / "rotated.gguf"
    text.write_text(TEXT)
    options = ["--transform", "blocks", "--type", "F32", "-f", str(text), "--windows", "2"]
    assert main(["convert", str(tiny_model), str(target), *options]) == 0
    with pywina.load(target, n_threads=1) as model, pywina.load(tiny_model, n_threads=1) as plain:
        raised = at_equal_bytes(model, 0.5)
        generated = {"temperature": 0.0, "max_tokens": 8, "ignore_eog": True}
        model.generate("the sea", sparsity=pywina.Sparsity(raised, budget="uniform"), **generated)
        plain.generate("the sea", sparsity=pywina.Sparsity(0.5, budget="uniform"), **generated)
        read, wanted = model.stats.bytes_per_token, plain.stats.bytes_per_token
        head = model.tensors["token_embd.weight"].n_bytes
        assert abs(read - wanted) < 0.02 * wanted or read - wanted == pytest.approx(head, rel=0.05)
        assert at_equal_bytes(plain, 0.5) == 0.5 and at_equal_bytes(model, 0.0) == 0.0
        with pytest.raises(pywina.ArgumentError, match="leaves no bytes"):
            at_equal_bytes(model, 0.99)


def test_compared_in_pairs(tmp_path: Path) -> None:
    def write(name: str, items: dict[str, dict[str, list[float]]]) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"setting": {}, "kept": {}, "items": {"wikitext2": items}}))
        return path

    base = {"dense": {"1": [1.0, 0.0, 1.0], "2": [2.0, 0.0, 1.0]}}
    base["teal 0.5"] = {"1": [1.5, 0.4, 0.5], "2": [2.5, 0.4, 0.5]}
    first = write("base.json", base)
    one = write("one.json", {"wina 0.5": {"1": [1.25, 0.1, 0.75]}})
    two = write("two.json", {"wina 0.5": {"2": [2.35, 0.1, 0.25]}})
    output = tool("eval_compare.py", f"base={first}", f"tuned={one},{two}")
    assert "| base | teal 0.5 | 2.0000 | +0.5000 |  | 2 | kld 0.4000, agreement 0.5000 |" in output
    wanted = "| tuned | wina 0.5 | 1.8000 | +0.3000 | -0.2000 ± 0.0500 | 2 | kld 0.1000, agreement"
    assert wanted in output
