"""Models from the Hugging Face hub with the real client, huggingface_hub, against a hub on this
machine: cache, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from localhub import LocalHub
from test_split import N_PARTS, part_name, split_file

import pywina

TOKEN = "hf_sesame"

PYTHON = """
import sys, pywina
with pywina.Model.from_pretrained("owner/repo", filename=sys.argv[1], n_ctx=64) as model:
    print(model.path, model.info.n_ctx, repr(model.generate("the", max_tokens=3, temperature=0)))
"""


@pytest.fixture
def hub(tiny_model: Path, write_model: object, tmp_path: Path) -> Iterator[LocalHub]:
    other = tmp_path / "README.md"
    other.write_text("# a model\n")
    files = {"README.md": other, "m-Q4_K_M.gguf": tiny_model, "sub/m-Q8_0.gguf": tiny_model}
    with LocalHub(files, token=TOKEN) as made:
        yield made


def run(
    hub: LocalHub, home: Path, *arguments: object, token: str = TOKEN, **env: str
) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    own |= {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(home),
            "HF_TOKEN": token, **env}  # fmt: skip
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=own, capture_output=True, text=True,
        timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_model_is_fetched_once(hub: LocalHub, tmp_path: Path, tiny_model: Path) -> None:
    home = tmp_path / "home"
    done = run(hub, home, "-m", "pywina", "pull", "owner/repo:q4_k_m")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.is_relative_to(home) and path.name == "m-Q4_K_M.gguf"
    assert path.read_bytes() == tiny_model.read_bytes()
    about = [token for _, path, token in hub.requests if "owner/repo" in path]
    assert about == [TOKEN] * len(about) and len(about) >= 3, "each one says who asks"
    n_gets = sum(method == "GET" and "resolve" in path for method, path, _ in hub.requests)
    again = run(hub, home, "-c", PYTHON, "*Q4_K_M.gguf")
    assert again.returncode == 0 and again.stdout.startswith(f"{path} 64 "), again.stderr
    gets = [path for method, path, _ in hub.requests if method == "GET" and "resolve" in path]
    assert len(gets) == n_gets == 1
    n_before = len(hub.requests)
    for env, options in (({"HF_HUB_OFFLINE": "1"}, ()), ({}, ("--offline",))):
        off = run(hub, home, "-m", "pywina", "run", "-hf", "owner/repo:Q4_K_M", *options, "-p",
                  "the", "-n", 3, "--temp", 0, **env)  # fmt: skip
        assert off.returncode == 0 and repr(off.stdout[:-1]) in again.stdout, off.stderr
    assert len(hub.requests) == n_before, "offline means offline"
    default = run(hub, home, "-m", "pywina", "pull", "owner/repo")  # of several, Q4_K_M
    assert default.stdout == done.stdout
    listed = run(hub, home, "-m", "pywina", "list")
    assert "owner/repo" in listed.stdout and listed.returncode == 0


def test_a_model_in_parts(tiny_model: Path, tmp_path: Path) -> None:
    """All of them are fetched, by the name without the number of a part, and found again."""
    (tmp_path / "parts").mkdir()
    split_file(tiny_model, tmp_path / "parts", "m-Q8_0")
    names = [part_name(no, "m-Q8_0") for no in range(N_PARTS)]
    files = {f"big/{name}": tmp_path / "parts" / name for name in names}
    whole = run_direct(tiny_model)
    with LocalHub(files | {"m-Q4_0.gguf": tiny_model}, token=TOKEN) as hub:
        home = tmp_path / "home"
        done = run(hub, home, "-m", "pywina", "pull", "owner/repo:q8_0")
        assert done.returncode == 0, done.stderr
        first = Path(done.stdout.strip())
        assert sorted(path.name for path in first.parent.iterdir()) == names
        for env in ({}, {"HF_HUB_OFFLINE": "1"}):
            again = run(hub, home, "-c", PYTHON, "*Q8_0.gguf", **env)
            assert again.returncode == 0, again.stderr
            assert again.stdout == f"{first} 64 {whole!r}\n"


def run_direct(path: Path) -> str:
    with pywina.load(path, n_ctx=64) as model:
        return model.generate("the", max_tokens=3, temperature=0)


def test_a_pattern_that_matches_several(hub: LocalHub, tmp_path: Path) -> None:
    done = run(hub, tmp_path / "home", "-c", PYTHON, "*.gguf")
    assert "ArgumentError: 2 files of owner/repo match" in done.stderr
    assert not [path for _, path, _ in hub.requests if "resolve" in path], "nothing is fetched"


@pytest.mark.parametrize(
    ("name", "token", "complaint"),
    [
        ("owner/repo:Q5_0", TOKEN, "m-Q4_K_M.gguf, sub/m-Q8_0.gguf"),
        ("owner/none:Q4_0", TOKEN, "no repository owner/none"),
        ("owner/repo:Q4_K_M", "hf_wrong", "wants its terms accepted"),
    ],
)
def test_what_the_hub_does_not_have(
    hub: LocalHub, tmp_path: Path, name: str, token: str, complaint: str
) -> None:
    done = run(hub, tmp_path / "home", "-m", "pywina", "pull", name, token=token)
    assert done.returncode in (1, 2) and done.stdout == "", done.stderr
    assert complaint in done.stderr and "Traceback" not in done.stderr
    assert token not in done.stderr


def test_offline_and_nothing_fetched(hub: LocalHub, tmp_path: Path) -> None:
    off = run(hub, tmp_path / "home", "-m", "pywina", "run", "-hf", "owner/repo:Q4_K_M",
              "--offline", "-p", "x")  # fmt: skip
    assert off.returncode == 2 and "is not in the cache" in off.stderr
    assert hub.requests == []
