"""Every example of docs/python.md runs, in order, in one interpreter."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from conftest import ROOT

_BLOCK = re.compile(r"^```python( grammar)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_examples(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "docs" / "python.md"
    text = path.read_text(encoding="utf-8")
    blocks = list(_BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") >= 10
    names: dict[str, object] = {}
    for block in blocks:
        if block[1] and importlib.util.find_spec("llguidance") is None:
            continue
        line = text.count("\n", 0, block.start(2))
        exec(compile("\n" * line + block[2], str(path), "exec"), names)
    assert "temperature" in capsys.readouterr().out
