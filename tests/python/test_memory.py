"""Memory: the plan against what a fresh process takes, limits that fail early, shared pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pywina
from pywina._native import check, ffi, lib
from pywina.cli import main

PROBE = Path(__file__).with_name("memory_probe.py")
SYNTHETIC = Path(os.environ.get("PYWINA_HOME") or "~/.cache/pywina").expanduser() / "synthetic"
MODELS = ("smollm2", "qwen", "gemma", "1b")

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="there is no /proc/self/clear_refs"
)


def _path(name: str, request: pytest.FixtureRequest) -> Path:
    if name != "1b":
        return Path(request.getfixturevalue(f"{name}_path"))
    path = SYNTHETIC / "1b-Q4_0.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there: tools/make_synthetic.py writes it")
    return path


def _pack(wina_bin: Path, path: Path, folder: Path) -> Path:
    target = folder / "packed.gguf"
    command = [wina_bin, "pack", "-m", path, "-o", target, "-t", "1"]
    subprocess.run(command, check=True, capture_output=True)
    return target


def _probe(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, PROBE, path, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@needs_proc
@pytest.mark.parametrize("name", MODELS)
def test_the_plan_is_the_peak(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, wina_bin: Path
) -> None:
    """Within 5%, from the file and from a packed one; `wina inspect` says the same beforehand."""
    path = _path(name, request)
    for file in (path, _pack(wina_bin, path, tmp_path)):
        options = {"n_ctx": 256, "n_threads": 2}
        found = _probe(file, options)
        plan = found["plan"]
        assert abs(plan["peak_bytes"] / found["peak_bytes"] - 1) < 0.05, found
        shown = subprocess.run(
            [wina_bin, "inspect", "-m", file, "--json", "-c", "256", "-t", "2"],
            capture_output=True, check=True,
        )  # fmt: skip
        assert json.loads(shown.stdout)["plan"] == plan
    layers = plan["weight_bytes"] // 3
    found = _probe(file, options | {"resident": layers})
    assert abs(found["plan"]["peak_bytes"] / found["peak_bytes"] - 1) < 0.05, found


@needs_proc
@pytest.mark.parametrize("kind", ["q8_0", "f32"])
def test_the_plan_knows_the_types_of_the_cache(smollm2_path: Path, kind: str) -> None:
    options = {"n_ctx": 1024, "n_threads": 1, "cache_type_k": kind, "cache_type_v": kind}
    found = _probe(smollm2_path, options)
    assert abs(found["plan"]["peak_bytes"] / found["peak_bytes"] - 1) < 0.05, found
    assert found["plan"]["cache_bytes"] == 1024 * 2 * 90 * (68 if kind == "q8_0" else 256)


def test_inspect_shows_the_plan(
    tiny_model: Path, wina_bin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*options: str) -> dict[str, int]:
        command = [wina_bin, "inspect", "-m", tiny_model, "--json", *options]
        done = subprocess.run(command, capture_output=True, check=True)
        return dict(json.loads(done.stdout)["plan"])

    half, whole = shown("-c", "100", "-ctk", "q8_0"), shown("-c", "200", "-ctk", "q8_0")
    assert whole["cache_bytes"] == 2 * half["cache_bytes"]
    assert half["weight_bytes"] == whole["weight_bytes"]
    text = subprocess.run(
        [wina_bin, "inspect", "-m", tiny_model, "-c", "100"], capture_output=True, text=True
    ).stdout
    assert re.search(r"memory: weights \d.*KV cache \d.*at its peak \d+\.\d MB", text)
    assert main(["inspect", str(tiny_model), "--json", "-c", "100", "-ctk", "q8_0"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert (memory["kv_cache"], memory["peak"]) == (half["cache_bytes"], half["peak_bytes"])


def test_a_limit_fails_before_anything_is_loaded(smollm2_path: Path, wina_bin: Path) -> None:
    seen: list[float] = []
    with pytest.raises(pywina.OutOfMemoryError) as failure:
        pywina.load(smollm2_path, n_ctx=2048, mem_limit="100M", progress=seen.append)
    assert not seen  # no matrix was packed
    for part in ("limit is 104.9 MB", "plan needs", "weights 99", "2048 tokens, f16 and f16"):
        assert part in str(failure.value)
    with pywina.load(smollm2_path, n_ctx=256, mem_limit="200M") as model:
        peak = model.plan_memory().peak_bytes
    with pytest.raises(pywina.OutOfMemoryError):
        pywina.load(smollm2_path, n_ctx=256, mem_limit=peak - 1)
    pywina.load(smollm2_path, n_ctx=256, mem_limit=peak).close()
    command = [wina_bin, "run", "-m", smollm2_path, "-p", "a", "-n", "1", "-c", "256", "-t", "1"]
    for limit, code in ((str(peak - 1_000_000), 1), ("1g", 0)):
        done = subprocess.run([*command, "--mem-limit", limit], capture_output=True, text=True)
        assert done.returncode == code and ("the plan needs" in done.stderr) == bool(code)


def test_smaller_caches_fit(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pywina.load(tiny_model, n_ctx=512, n_threads=1) as model:
        peak = model.plan_memory().peak_bytes
    options: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "mem_limit": peak}
    with pytest.raises(pywina.OutOfMemoryError, match=r"f16 and f32.*q8_0 cache needs less"):
        pywina.load(tiny_model, **options, cache_type_v="f32")
    pywina.load(tiny_model, **options).close()
    monkeypatch.setenv("PYWINA_MEM_LIMIT", "10K")
    assert main(["inspect", str(tiny_model)]) == 1
    assert "the memory limit is 0.0 MB" in capsys.readouterr().err


def test_every_session_is_held_to_the_limit(tiny_model: Path) -> None:
    with pywina.load(tiny_model, n_ctx=16, n_threads=1, mem_limit="2M") as model:
        with model._handle.borrow() as native:
            params, out = ffi.new("wina_session_params *"), ffi.new("wina_session **")
            lib.wina_session_params_init(params)
            params.n_ctx, params.n_batch = 512, 4096
            with pytest.raises(pywina.OutOfMemoryError, match="512 tokens"):
                check(lib.wina_session_create(native, params, out))
        with model.share() as other:
            assert other.generate("a", max_tokens=1, seed=1) is not None


@pytest.mark.parametrize(
    "size", ["", "x", "-1", "1.5", "0", "12T", "1 G", "1e9", "nan", 0, -5, 1.5]
)
def test_wrong_sizes(tiny_model: Path, wina_bin: Path, size: object) -> None:
    if size != "1.5":  # one byte: too little, but a size
        with pytest.raises(pywina.ArgumentError, match="mem_limit"):
            pywina.load(tiny_model, mem_limit=size)
    if isinstance(size, str) and size != "1.5":
        command = [wina_bin, "run", "-m", tiny_model, "-p", "a", "--mem-limit", size]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and "--mem-limit" in done.stderr


def _mapping(pid: int, path: Path, field: str) -> int:
    """Bytes of a process's mappings of a file."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith(field + ":"):
            total += int(line.split()[1]) * 1024
    return total


def _rollup(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[1]) * 1024


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="there is no /proc/self/smaps_rollup"
)
def test_processes_share_the_pages_of_a_packed_file(
    smollm2_path: Path, tmp_path: Path, wina_bin: Path
) -> None:
    """Both have all of it resident, and it counts once: half of it for each."""
    path = _pack(wina_bin, smollm2_path, tmp_path)
    command = [sys.executable, PROBE, path, '{"n_ctx": 64, "n_threads": 1}', "hold"]
    users = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        weights = [json.loads(user.stdout.readline())["plan"]["weight_bytes"] for user in users]
        for user, n_bytes in zip(users, weights, strict=True):
            resident, share = (_mapping(user.pid, path, field) for field in ("Rss", "Pss"))
            assert resident > 0.95 * n_bytes
            assert share < 0.55 * resident
            assert _mapping(user.pid, path, "Private_Dirty") == 0
            assert _rollup(user.pid, "Rss") - _rollup(user.pid, "Pss") > 0.45 * n_bytes
        users[0].communicate()
        alone = users[1].pid
        assert _mapping(alone, path, "Pss") > 0.95 * _mapping(alone, path, "Rss")
    finally:
        for user in users:
            user.communicate()
            assert user.returncode == 0
