"""pywina convert: what is written is what was there, plus what was asked for, or nothing at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
from tinycheckpoint import TOKENS, write_checkpoint
from tinymodel import ROLES

import pywina
from pywina.cli import main
from pywina.convert import convert, gguffile
from pywina.convert.transform import (
    at_equal_bytes,
    eigenbasis,
    global_bases,
    second_moments,
    segment_bases,
)
from pywina.hub.fetch import cache_dir
from pywina.tuning import Tuning

IDS = [int(t) for t in np.random.default_rng(9).integers(0, 250, 48)]
TEXT = "The rain in the garden is over, and all of it was seen again by the woman there. " * 20


def test_norms_are_stored_and_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    assert main(["convert", str(tiny_model), str(target)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]
    with pywina.load(tiny_model) as plain, pywina.load(target) as tuned:
        for exponent in (None, 1.0):
            for mask in ("group", "projection"):
                rule = pywina.Sparsity(0.5, mask=mask, exponent=exponent)
                np.testing.assert_array_equal(
                    plain.logits(IDS, sparsity=rule), tuned.logits(IDS, sparsity=rule)
                )
        assert "calibrated norm" in tuned.describe_rule(rule)
        np.testing.assert_array_equal(plain.logits(IDS), tuned.logits(IDS))


def test_everything_else_keeps_its_bytes(write_model: Callable[..., Path], tmp_path: Path) -> None:
    source = write_model(types=dict.fromkeys(ROLES, "Q4_0"), tied=False, extra={"a.b": 3})
    target = tmp_path / "out.gguf"
    assert main(["convert", str(source), str(target)]) == 0
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(target)
    assert [t.name for t in old.tensors] == [t.name for t in new.tensors]
    for a, b in zip(old.tensors, new.tensors, strict=True):
        assert a.tensor_type == b.tensor_type and tuple(a.shape) == tuple(b.shape)
        np.testing.assert_array_equal(a.data, b.data)
    for key, field in old.fields.items():
        if not key.startswith("GGUF."):
            assert new.fields[key].contents() == field.contents()
    added = set(new.fields) - set(old.fields)
    assert added and all(key.startswith("wina.") for key in added)
    again = tmp_path / "again.gguf"
    assert main(["convert", str(target), str(again)]) == 0
    assert again.read_bytes() == target.read_bytes()


_PEER_LOGITS = """
import sys, hashlib, llama_cpp
ids = [int(t) for t in sys.argv[2].split(",")]
model = llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1, logits_all=True, verbose=False)
model.eval(ids)
print(model.n_tokens, hashlib.sha256(model.scores[: len(ids)].tobytes()).hexdigest())
"""


def test_llama_cpp_computes_the_same_from_a_converted_file(
    smollm2_path: Path, tmp_path: Path
) -> None:
    """To the bit; with llama.cpp as tools/bench_peers.py --setup builds it."""
    peer = cache_dir().parent / "peers" / "venv" / "bin" / "python"
    if not peer.exists():
        pytest.skip("llama.cpp is not there: tools/bench_peers.py --setup builds it")
    rng = np.random.default_rng(5)
    kept = rng.uniform(0.2, 0.9, (1, 30, 4)).astype(np.float32)
    Tuning(targets=np.array([0.5], np.float32), kept=kept).save(tmp_path / "t.json", {})
    target = tmp_path / "out.gguf"
    options = ["--tuning", str(tmp_path / "t.json")]
    assert main(["convert", str(smollm2_path), str(target), *options]) == 0
    ids = ",".join(str(t) for t in IDS)
    found = [
        subprocess.run(
            [str(peer), "-c", _PEER_LOGITS, str(path), ids],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for path in (smollm2_path, target)
    ]
    assert found[0] == found[1] and found[0].startswith(f"{len(IDS)} ")


def test_a_tuning_is_stored(tiny_model: Path, tmp_path: Path) -> None:
    kept = np.random.default_rng(1).uniform(0.2, 0.9, (1, 2, 4)).astype(np.float32)
    tuning = Tuning(targets=np.array([0.5], np.float32), kept=kept)
    tuning.save(tmp_path / "t.json", {"why": "a test"})
    target = tmp_path / "out.gguf"
    options = ["--tuning", str(tmp_path / "t.json")]
    assert main(["convert", str(tiny_model), str(target), *options]) == 0
    with pywina.load(tiny_model) as model, pywina.load(target) as stored:
        model.set_tuning(tuning)
        np.testing.assert_array_equal(
            model.logits(IDS, sparsity=0.5), stored.logits(IDS, sparsity=0.5)
        )
        assert "calibrated budgets" in stored.describe_rule(0.5)


def test_a_tuning_of_another_model_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = np.full((1, 3, 4), 0.5, dtype=np.float32)
    Tuning(targets=np.array([0.5]), kept=kept).save(tmp_path / "t.json")
    target = tmp_path / "out.gguf"
    assert (
        main(["convert", str(tiny_model), str(target), "--tuning", str(tmp_path / "t.json")]) == 2
    )
    assert "kept has shape" in capsys.readouterr().err and not target.exists()
    (tmp_path / "t.json").write_text('{"norms": 3}')
    assert (
        main(["convert", str(tiny_model), str(target), "--tuning", str(tmp_path / "t.json")]) == 2
    )
    assert "holds no tuning" in capsys.readouterr().err


def test_dry_run_writes_nothing(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tiny_model), str(tmp_path / "out.gguf"), "--dry-run"]) == 0
    assert "wina.norms.gate_up" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_input_is_never_the_output(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny_model.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny_model)
    hard = tiny_model.parent / "hard.gguf"
    os.link(tiny_model, hard)
    for target in (tiny_model, link, hard):
        assert main(["convert", str(tiny_model), str(target)]) == 2
        assert "the input itself" in capsys.readouterr().err
    assert main(["convert", str(tiny_model), "smollm2-135m"]) == 2
    assert "smollm2-135m-converted.gguf" in capsys.readouterr().err
    hard.unlink()
    assert tiny_model.read_bytes() == before
    for wrong in (tmp_path, tmp_path / "none" / "out.gguf"):
        assert main(["convert", str(tiny_model), str(wrong)]) == 2


def test_a_failure_leaves_the_old_file(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"what was here before")
    with pywina.load(tiny_model) as model:
        plan = convert.plan_tuned(model, None)

        def fail(n: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert.run(plan, target, fail)
        monkeypatch.setattr(plan.content.tensors[3], "n_bytes", 12)
        with pytest.raises(pywina.FormatError):
            convert.run(plan, target)
    assert target.read_bytes() == b"what was here before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize("data", [b"GGUF", b"GGML\3\0\0\0", b"GGUF\3\0\0\0" + b"\xff" * 40])
def test_no_gguf_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(pywina.FormatError):
        gguffile.read(tmp_path / "bad.gguf")


# ---- transforms ------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["global", "segments:2", "blocks", "paper"])
@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen2", False)])
def test_a_rotated_model_computes_the_same(
    write_model: Callable[..., Path], tmp_path: Path, architecture: str, tied: bool, transform: str
) -> None:
    source = write_model(architecture=architecture, tied=tied, n_layer=3)
    target, text = tmp_path / "out.gguf", tmp_path / "text.txt"
    text.write_text(TEXT)
    options = ["--transform", transform, "--type", "F32", "-f", str(text)]
    assert main(["convert", str(source), str(target), *options]) == 0
    with pywina.load(source) as plain, pywina.load(target) as rotated:
        wanted, ours = plain.logits(IDS), rotated.logits(IDS)
        off = np.linalg.norm(ours - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert off.max() < 1e-3
        assert not rotated.info.tied_output
        changed = plain.logits(IDS, sparsity=0.5) - rotated.logits(IDS, sparsity=0.5)
        assert np.abs(changed).max() > 0.01
        n_changes = {"global": 0, "segments:2": 1, "blocks": 5, "paper": 5}[transform]
        found = [name for name in rotated.tensors if name.endswith("_rot.weight")]
        assert len(found) == n_changes
        extra = rotated.info.weight_bytes - plain.info.weight_bytes
        head = rotated.tensors["output.weight"].n_bytes if tied else 0
        assert extra >= n_changes * 64 * 64 * 4 and (n_changes or extra - head < 64 * 64 * 4)
        # Tokens one by one, where a rotation is read for each and counted.
        options = {"temperature": 0.0, "max_tokens": 6, "sparsity": 0.5, "ignore_eog": True}
        rotated.generate(IDS, **options)
        read = rotated.stats.bytes_per_token
        plain.generate(IDS, **options)
        assert read - plain.stats.bytes_per_token == pytest.approx(
            n_changes * 64 * 64 * 4, abs=0.02 * read
        )


def test_rotations_do_not_depend_on_the_batch(tiny_model: Path, tmp_path: Path) -> None:
    target, text = tmp_path / "out.gguf", tmp_path / "text.txt"
    text.write_text(TEXT)
    options = ["--transform", "blocks", "--type", "Q8_0", "-f", str(text)]
    assert main(["convert", str(tiny_model), str(target), *options]) == 0
    with pywina.load(target) as batched, pywina.load(target, n_batch=1) as single:
        for sparsity in (0.0, 0.5):
            np.testing.assert_array_equal(
                batched.logits(IDS, sparsity=sparsity, dense_prefix=5),
                single.logits(IDS, sparsity=sparsity, dense_prefix=5),
            )


def test_segments_are_cut_where_the_stream_changes() -> None:
    """Six blocks: two that use some coordinates, four that use others."""
    rng = np.random.default_rng(1)
    moments = np.zeros((12, 16, 16))
    for site in range(12):
        half = slice(0, 8) if site < 4 else slice(8, 16)
        basis = np.linalg.qr(np.random.default_rng(site >= 4).standard_normal((16, 16)))[0]
        energy = np.full(16, 0.01)
        energy[half] = rng.uniform(1, 2, 8)
        moments[site] = (basis * energy) @ basis.T
    bases = segment_bases(moments, 2)
    assert [a is b for a, b in pairwise(bases)].index(False) == 3
    assert len({id(basis) for basis in bases}) == 2
    assert len({id(basis) for basis in segment_bases(moments, 1)}) == 1
    for wrong in (0, 7):
        with pytest.raises(pywina.ArgumentError):
            segment_bases(moments, wrong)


def test_the_basis_orders_energy(tiny: pywina.Model) -> None:
    windows = [IDS, IDS[::-1]]
    moments = second_moments(tiny, windows)
    moment = moments.mean(axis=0)
    np.testing.assert_allclose(
        np.abs(global_bases(moments)[0]), np.abs(eigenbasis(moment)), atol=1e-3
    )
    assert np.trace(moment) == pytest.approx(tiny.info.n_embd, rel=0.01)  # normed: mean square 1
    basis = eigenbasis(moment)
    np.testing.assert_allclose(basis.T @ basis, np.eye(64), atol=1e-5)
    energy = np.diag(basis.T @ moment @ basis)
    assert (np.diff(energy) <= 1e-6).all() and energy[0] > 1.5 * energy[-1]


def test_rotated_quantised_weights(tiny_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    for kind, limit in (("Q8_0", 0.05), ("F16", 2e-3)):
        target = tmp_path / f"{kind}.gguf"
        options = ["--transform", "global", "--type", kind, "-f", str(text)]
        assert main(["convert", str(tiny_model), str(target), *options]) == 0
        with pywina.load(tiny_model) as plain, pywina.load(target) as rotated:
            assert rotated.tensors["blk.0.ffn_down.weight"].type == kind
            wanted = plain.logits(IDS)
            off = np.linalg.norm(rotated.logits(IDS) - wanted) / np.linalg.norm(wanted)
            assert off < limit


def test_a_transform_needs_a_text(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "out.gguf")
    assert main(["convert", str(tiny_model), target, "--transform", "global"]) == 2
    assert "-f" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text(TEXT)
    for wrong in ("local", "segments", "segments:0", "segments:x", "global:2"):
        options = ["--transform", wrong, "-f", str(tmp_path / "text.txt")]
        assert main(["convert", str(tiny_model), target, *options]) == 2
    assert not Path(target).exists()


def test_cuts_by_torch_are_the_same() -> None:
    """What a GPU does: the same sums in double precision."""
    pytest.importorskip("torch", reason="torch is not installed (pip install 'pywina[calibrate]')")
    rng = np.random.default_rng(3)
    moments = []
    for site in range(12):
        scale = np.roll(np.linspace(0.1, 2, 16), 8 if site >= 8 else 0)
        x = rng.standard_normal((200, 16)) * scale
        moments.append(x.T @ x)
    ours = segment_bases(np.stack(moments), 2)
    theirs = segment_bases(np.stack(moments), 2, "cpu:0")
    changes = [i for i in range(1, 12) if ours[i] is not ours[i - 1]]
    assert changes == [8] == [i for i in range(1, 12) if theirs[i] is not theirs[i - 1]]


@pytest.mark.parametrize("family", ["qwen3", "smollm3", "granite"])
@pytest.mark.parametrize("transform", ["global", "segments:2", "paper"])
def test_other_families_rotated(tmp_path: Path, family: str, transform: str) -> None:
    """Norms of heads and scalar multipliers do not see the basis of the residual stream."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", family)
    source, target, text = (tmp_path / name for name in ("in.gguf", "out.gguf", "text.txt"))
    text.write_text(TEXT)
    assert main(["convert", str(checkpoint), str(source), "--type", "F32"]) == 0
    options = ["--transform", transform, "--type", "F32", "-f", str(text)]
    assert main(["convert", str(source), str(target), *options]) == 0
    with pywina.load(source, n_ctx=128) as plain, pywina.load(target, n_ctx=128) as rotated:
        wanted, ours = plain.logits(TOKENS), rotated.logits(TOKENS)
        assert (np.linalg.norm(ours - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max() < 1e-3
        first = plain.read_tensor("blk.0.ffn_up.weight")
        assert np.abs(rotated.read_tensor("blk.0.ffn_up.weight") - first).max() > 0.01
        extra = at_equal_bytes(rotated, 0.5) - 0.5
        changes = {"global": 0, "segments:2": 1, "paper": 2 * plain.info.n_layer - 1}[transform]
        roles = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        sizes = [plain.tensors[f"blk.0.{role}.weight"].n_bytes for role in roles]
        assert extra == pytest.approx(changes * 64 * 64 * 4 / (sum(sizes) * plain.info.n_layer))


@pytest.mark.parametrize(("family", "why"), [("gemma3", "post_ffw_norm"), ("olmo2", "post_")])
def test_what_cannot_be_rotated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, why: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", family)
    source, target, text = (tmp_path / name for name in ("in.gguf", "out.gguf", "text.txt"))
    text.write_text(TEXT)
    assert main(["convert", str(checkpoint), str(source), "--type", "F32"]) == 0
    options = ["--transform", "global", "-f", str(text)]
    assert main(["convert", str(source), str(target), *options]) != 0
    error = capsys.readouterr().err
    assert why in error and family in error and not target.exists()
