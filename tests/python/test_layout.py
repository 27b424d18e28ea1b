"""tools/check_layout.py: the tree passes, and each kind of violation is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _run(root: Path) -> subprocess.CompletedProcess[str]:
    tool = ROOT / "tools" / "check_layout.py"
    command = [sys.executable, str(tool), str(root), str(root / "none")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _tree(root: Path, files: dict[str, str]) -> Path:
    base = {
        "native/include/wina.h": "",
        "native/src/status.h": '#include "wina.h"\n',
        "native/src/gguf.h": "",
        "native/src/session.h": "",
    }
    for name, text in (base | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_repository_passes() -> None:
    result = _run(ROOT)
    assert result.returncode == 0, result.stderr


def test_a_clean_tree_passes(tmp_path: Path) -> None:
    result = _run(_tree(tmp_path, {"native/src/session.c": '#include "status.h"\n'}))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("native/src/gguf.c", '#include "session.h"\n', "higher layer"),
        ("native/src/sparse/select.c", '#include "gguf.h"\n', "must not know"),
        ("native/src/sparse/score.c", '#include "../gguf.h"\n', "must not know"),
        ("native/cli/main.c", '#include "gguf.h"\n', "uses only wina.h"),
        ("native/src/novelty.c", "", "has no layer"),
        ("native/src/gguf.c", '#include "absent.h"\n', "not there"),
        ("native/src/gguf.c", "\n" * 701, "701 lines"),
        ("native/src/cpu/status.h", "", "the name is taken"),
    ],
)
def test_violations_are_found(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    result = _run(_tree(tmp_path, {name: text}))
    assert result.returncode == 1
    assert complaint in result.stderr


def test_symbols_without_the_prefix_are_found(tmp_path: Path) -> None:
    root = _tree(tmp_path, {"native/src/gguf.c": "int wina_good;\nint bad_name;\nstatic int ok;\n"})
    build = root / "build" / "obj"
    build.mkdir(parents=True)
    subprocess.run(
        ["cc", "-c", str(root / "native/src/gguf.c"), "-o", str(build / "gguf.o")], check=True
    )
    tool = ROOT / "tools" / "check_layout.py"
    result = subprocess.run(
        [sys.executable, str(tool), str(root)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "bad_name" in result.stderr
    assert "wina_good" not in result.stderr
