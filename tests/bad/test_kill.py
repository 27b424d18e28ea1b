"""Files that are written: a writer is killed, the disk is full, calls fail, two write at once.
The target is absent, old or complete, and what a dead writer left is removed by the next one."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from make_bad import good
from tinymodel import TinySpec, write_tiny

import pywina
from pywina._replace import replacing
from pywina.cli import main

ROUNDS = int(os.environ.get("PYWINA_KILL_ROUNDS", "20"))
WORDS = "abc ab a b c " * 400


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.gguf"
    path.write_bytes(good().encode())
    return path


@pytest.fixture
def wina_bin() -> Path:
    return Path(os.environ.get("WINA_BIN") or Path(__file__).parents[2] / "build" / "bin" / "wina")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


# Forks itself for every round, so that a round does not start Python anew. A child that has not
# been waited for keeps its number, so nothing else can be killed.
_RUNNER = """
import contextlib, io, os, signal, sys, time
from pywina.cli import main
for line in sys.stdin:
    delay, *words = line.split()
    child = os.fork()
    if child == 0:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            status = main(words)
        os._exit(status)
    if float(delay) >= 0:
        time.sleep(float(delay))
        os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Runner:
    """Runs pywina's commands in children that can be killed."""

    def __enter__(self) -> Runner:
        command = [sys.executable, "-c", _RUNNER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def run(self, *words: object, kill_after: float = -1) -> int:
        """The status of waitpid. kill_after: seconds until SIGKILL; none if negative."""
        self.process.stdin.write(" ".join(str(w) for w in (kill_after, *words)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def check_kills(
    command: Callable[[int], list[object]], target: Path, is_valid: Callable[[], bool]
) -> dict[str, int]:
    """Kills the command at random moments; counts what the target was afterwards."""
    rng = random.Random(5)
    counts = dict.fromkeys(("absent", "old", "complete", "killed"), 0)
    with Runner() as runner:
        assert runner.run(*command(0)) == 0
        start = time.monotonic()
        assert runner.run(*command(1)) == 0
        whole = time.monotonic() - start
        for i in range(ROUNDS):
            old = None if i % 2 else b"what was there before"
            target.unlink(missing_ok=True)
            if old is not None:
                target.write_bytes(old)
            status = runner.run(*command(i + 2), kill_after=rng.uniform(0, 1.1 * whole))
            counts["killed"] += os.WIFSIGNALED(status)
            if not target.exists():
                assert old is None
                counts["absent"] += 1
            elif old is not None and target.read_bytes() == old:
                counts["old"] += 1
            else:
                assert is_valid()
                counts["complete"] += 1
        target.unlink(missing_ok=True)
        assert runner.run(*command(ROUNDS + 2)) == 0
    assert not [p.name for p in target.parent.iterdir() if p.name.endswith(".tmp")]
    assert counts["killed"] > 0
    print(counts)
    return counts


def test_conversion_killed(source: Path, output: Path) -> None:
    target = output / "out.gguf"
    with pywina.load(source, n_threads=1) as model:
        expected = model.logits([1, 2])

    def is_valid() -> bool:
        with pywina.load(target, n_threads=1) as model:
            return bool((model.logits([1, 2]) == expected).all())

    counts = check_kills(lambda i: ["convert", source, target, "-t", 1], target, is_valid)
    assert counts["absent"] + counts["old"] + counts["complete"] == ROUNDS


def test_calibration_killed(tmp_path: Path, output: Path) -> None:
    source, target, text = (
        write_tiny(tmp_path / "tiny.gguf", TinySpec(n_layer=1)),
        output / "out.gguf",
        output / "text",
    )
    text.write_text(WORDS)

    def is_valid() -> bool:
        with pywina.load(target, n_threads=1) as model:
            return "calibrated" in model.describe_rule(0.5)

    def command(i: int) -> list[object]:
        (output / "out.log.json").unlink(missing_ok=True) if i % 3 == 0 else None
        return ["calibrate", source, "-f", text, "-o", target, "-t", 1, "--allocate", "global",
                "--windows", 1, "--size", 64]  # fmt: skip

    counts = check_kills(command, target, is_valid)
    assert counts["absent"] + counts["old"] + counts["complete"] == ROUNDS


def test_packing_killed(source: Path, output: Path, wina_bin: Path) -> None:
    """What `wina pack` leaves when it is killed once stayed for ever."""
    target = output / "out.gguf"
    command = [wina_bin, "pack", "-m", source, "-o", target, "-t", "1"]
    rng, counts = random.Random(6), dict.fromkeys(("absent", "old", "complete", "killed"), 0)
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole, complete = time.monotonic() - start, target.read_bytes()
    for i in range(ROUNDS):
        old = None if i % 2 else b"what was there before"
        target.unlink(missing_ok=True)
        if old is not None:
            target.write_bytes(old)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0, 1.1 * whole))
            process.kill()
        counts["killed"] += process.returncode < 0
        if not target.exists():
            assert old is None
            counts["absent"] += 1
        elif target.read_bytes() == old:
            counts["old"] += 1
        else:
            assert target.read_bytes() == complete
            counts["complete"] += 1
    (output / ".out.gguf.0123.tmp").write_bytes(b"left by a killed one")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert [p.name for p in output.iterdir()] == ["out.gguf"]
    assert target.read_bytes() == complete and counts["killed"] > 0
    print(counts)


def test_packing_beside_others(source: Path, output: Path, wina_bin: Path) -> None:
    """Several `wina pack` of one target, and a live writer of the Python side that they spare."""
    target = output / "out.gguf"
    command = [wina_bin, "pack", "-m", source, "-o", target, "-t", "1"]
    with replacing(target) as file:
        file.write(b"not yet")
        packers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(4)]
        assert [p.wait() for p in packers] == [0] * 4
        with pywina.load(target, n_threads=1) as model:
            assert model.info.packed
    assert target.read_bytes() == b"not yet"
    assert [p.name for p in output.iterdir()] == ["out.gguf"]


def test_a_full_disk(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=16k,nr_inodes=16", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        (disk / "filler").write_bytes(bytes(12 << 10))
        target = disk / "out.gguf"
        target.write_bytes(b"old")
        assert main(["convert", str(source), str(target)]) == 2
        assert "No space left" in capsys.readouterr().err
        assert target.read_bytes() == b"old"
        assert sorted(p.name for p in disk.iterdir()) == ["filler", "out.gguf"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Path("/proc/out.gguf") if os.geteuid() == 0 else tmp_path / "ro" / "out.gguf"
    if os.geteuid() != 0:
        target.parent.mkdir(mode=0o555)
    assert main(["convert", str(source), str(target)]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("call", ["flush", "fsync", "fchmod", "replace", "flock", "mkstemp"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EDQUOT])
def test_a_call_fails(
    call: str, number: int, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = output / "x"
    target.write_bytes(b"old")

    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    modules = {"flock": "fcntl", "mkstemp": "tempfile"}
    with pytest.raises(pywina.FileError, match=os.strerror(number)), monkeypatch.context() as patch:
        if call != "flush":
            patch.setattr(f"pywina._replace.{modules.get(call, 'os')}.{call}", fail)
        with replacing(target) as file:
            file.write(b"new")
            if call == "flush":
                fail()
    assert target.read_bytes() == b"old" and [p.name for p in output.iterdir()] == ["x"]


def test_two_writers(output: Path) -> None:
    """Both finish, the last one wins, and neither takes the other's file for a dead one's."""
    target, texts = output / "x", [bytes([65 + i]) * 100_000 for i in range(4)]
    errors: list[BaseException] = []

    def write(text: bytes) -> None:
        try:
            for _ in range(10):
                with replacing(target) as file:
                    file.write(text)
                assert target.read_bytes() in texts
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and target.read_bytes() in texts
    assert [p.name for p in output.iterdir()] == ["x"]


def test_only_dead_writers_lose_their_files(output: Path) -> None:
    dead, other = output / ".x.abc.tmp", output / ".y.abc.tmp"
    dead.write_bytes(b"left")
    other.write_bytes(b"left of another target")
    with replacing(output / "x") as outer:
        outer.write(b"1")
        with replacing(output / "x") as inner:
            inner.write(b"2")
        assert (output / "x").read_bytes() == b"2"
    assert (output / "x").read_bytes() == b"1"
    assert sorted(p.name for p in output.iterdir()) == [".y.abc.tmp", "x"]
