"""Mixtures of experts beyond what test_arch.py asks of every architecture: each expert has norms
and kept inputs of its own, only what is chosen is read and counted, and what is wrong is refused.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from test_packed import _hash as checksum
from tinycheckpoint import CONFIGS, TOKENS, config_of, write_checkpoint

import pywina
from pywina.calibrate.objective import Objective
from pywina.cli import main
from pywina.convert import gguffile
from pywina.eval.windows import cut_windows

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from reference import Reference, count_of  # noqa: E402

FAMILIES = sorted(name for name, config in CONFIGS.items() if "num_experts_per_tok" in config)
N_DENSE = 5


def convert(folder: Path, family: str, kind: str = "F32") -> Path:
    """The file of a family's checkpoint."""
    if not (folder / family).is_dir():
        write_checkpoint(folder / family, family)
    target = folder / f"{family}-{kind}.gguf"
    assert main(["convert", str(folder / family), str(target), "--type", kind]) == 0
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder, made = tmp_path_factory.mktemp("experts"), {}

    def get(family: str, kind: str = "F32") -> Path:
        if (family, kind) not in made:
            made[family, kind] = convert(folder, family, kind)
        return made[family, kind]

    return get


def changed(source: Path, target: Path, change: Callable[[gguffile.GgufFile], None]) -> Path:
    """A copy of a file with something different."""
    content = gguffile.read(source)
    change(content)
    gguffile.write(target, content)
    return target


def apart(ours: np.ndarray, wanted: np.ndarray) -> float:
    """Lower quartile over the sparse tokens of the relative distance. A score, of an input or of an
    expert, that ties to rounding flips a choice somewhere, and from then on tokens differ; another
    rule makes all of them differ."""
    off = np.linalg.norm(ours - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(np.quantile(off[N_DENSE:], 0.25))


# ---- what is computed ------------------------------------------------------------------------


RULES = [
    {"sparsity": 0.5, "method": "wina", "mask": "group", "budget": "profile", "exponent": 1.0},
    {"sparsity": 0.6, "method": "wina", "mask": "projection", "budget": "uniform", "exponent": 0.5},
    {"sparsity": 0.5, "method": "teal", "mask": "group", "budget": "uniform", "exponent": 1.0},
    {"sparsity": 0.2, "method": "cats", "mask": "group", "budget": "uniform", "exponent": 1.0},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule['method']}-{rule['mask']}")
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_rules(files: Callable[..., Path], family: str, rule: dict) -> None:
    """Against the reference, and the reference with a little less kept is farther."""
    path = files(family)
    reference = Reference(path)
    with pywina.load(path, n_ctx=64) as model:
        ours = model.logits(TOKENS, sparsity=pywina.Sparsity(**rule), dense_prefix=N_DENSE)
    wanted = reference.logits(TOKENS, n_dense=N_DENSE, kv_f16=True, **rule)
    assert apart(ours, wanted) < 1e-3
    other = {**rule, "sparsity": rule["sparsity"] + 0.05}
    assert apart(reference.logits(TOKENS, n_dense=N_DENSE, kv_f16=True, **other), wanted) > 1e-2


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q5_1"])
def test_types(files: Callable[..., Path], kind: str) -> None:
    """Stacks in other types, dense and sparse."""
    path = files("mixtral", kind)
    reference = Reference(path)
    rule = RULES[0]
    with pywina.load(path, n_ctx=64) as model:
        dense = model.logits(TOKENS)
        sparse = model.logits(TOKENS, sparsity=pywina.Sparsity(**rule), dense_prefix=N_DENSE)
    assert apart(dense, reference.logits(TOKENS, kv_f16=True)) < 1e-3
    assert apart(sparse, reference.logits(TOKENS, n_dense=N_DENSE, kv_f16=True, **rule)) < 1e-3


def test_every_expert_has_its_own_norms(files: Callable[..., Path], tmp_path: Path) -> None:
    """Columns of one expert made larger, and its other matrices smaller, leave its outputs as they
    are but not what it keeps; a library that scored with the norms of another would not see it."""

    def scale(content: gguffile.GgufFile) -> None:
        """Other norms in every expert: columns of down times 2^k, rows of up divided by it."""
        rng = np.random.default_rng(4)
        for tensor in content.tensors:
            up, down = ("ffn_up_exps" in tensor.name), ("ffn_down_exps" in tensor.name)
            if not up and not down:
                continue
            values = np.frombuffer(b"".join(tensor.read()), "<f4").reshape(tensor.shape).copy()
            if up:
                powers = np.exp2(rng.integers(-3, 4, tensor.shape[:2])).astype(np.float32)
                scales[tensor.name.split(".")[1]] = powers
                values /= powers[:, :, None]
            else:
                values *= scales[tensor.name.split(".")[1]][:, None, :]
            raw = values.tobytes()
            object.__setattr__(tensor, "read", lambda raw=raw: iter([raw]))

    scales: dict[str, np.ndarray] = {}

    def ordered(content: gguffile.GgufFile) -> None:
        content.tensors.sort(key=lambda tensor: "ffn_down" in tensor.name)  # up before down
        scale(content)

    path = changed(files("mixtral"), tmp_path / "scaled.gguf", ordered)
    rule = {**RULES[0], "budget": "uniform"}
    reference = Reference(path)
    with pywina.load(path, n_ctx=64) as model, pywina.load(files("mixtral"), n_ctx=64) as plain:
        assert apart(model.logits(TOKENS), plain.logits(TOKENS)) < 1e-5
        ours = model.logits(TOKENS, sparsity=pywina.Sparsity(**rule), dense_prefix=N_DENSE)
    assert apart(ours, reference.logits(TOKENS, n_dense=N_DENSE, kv_f16=True, **rule)) < 1e-3
    own = reference.column_norms
    reference.column_norms = lambda layer, names: own(  # type: ignore[method-assign]
        layer, tuple(name.split(".")[0] + ".0" if "." in name else name for name in names)
    )
    assert apart(ours, reference.logits(TOKENS, n_dense=N_DENSE, kv_f16=True, **rule)) > 1e-2


def test_a_tensor_per_expert(files: Callable[..., Path], tmp_path: Path) -> None:
    """Files from before experts were stacked give the same bits."""

    def unstack(content: gguffile.GgufFile) -> None:
        tensors = []
        for tensor in content.tensors:
            if "_exps." not in tensor.name:
                tensors.append(tensor)
                continue
            raw = b"".join(tensor.read())
            size = len(raw) // tensor.shape[0]
            for i in range(tensor.shape[0]):
                part = raw[i * size : (i + 1) * size]
                name = tensor.name.replace("_exps.", f".{i}.")
                tensors.append(gguffile.Tensor(name, tensor.shape[1:], tensor.kind, size,
                                               lambda part=part: iter([part])))  # fmt: skip
        content.tensors = tensors

    path = changed(files("mixtral", "Q8_0"), tmp_path / "old.gguf", unstack)
    with pywina.load(path, n_ctx=64) as old, pywina.load(files("mixtral", "Q8_0"), n_ctx=64) as new:
        for sparsity in (0.0, 0.5):
            ours = old.logits(TOKENS, sparsity=sparsity)
            wanted = new.logits(TOKENS, sparsity=sparsity)
            np.testing.assert_array_equal(ours.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("cpu", ["c", "avx2", "avxvnni", "avx512", "avx512vnni"])
def test_bits_do_not_depend_on_the_instruction_set(
    files: Callable[..., Path], cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files("qwen2_moe", "Q8_0")
    with pywina.load(path, n_ctx=64) as model:
        wanted = model.logits(TOKENS, sparsity=0.5)
    monkeypatch.setenv("WINA_CPU", cpu)
    try:
        other = pywina.load(path, n_ctx=64)
    except pywina.WinaError as error:
        pytest.skip(str(error))
    with other:
        ours = other.logits(TOKENS, sparsity=0.5)
    np.testing.assert_array_equal(ours.view(np.uint32), wanted.view(np.uint32))


# ---- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_chosen_experts_are_counted(
    files: Callable[..., Path], family: str, sparsity: float
) -> None:
    """Bytes of a decoded token and the kept fraction, from the sizes in the configuration."""
    c = config_of(family)
    d, head = c["hidden_size"], c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    n = c.get("num_local_experts") or c["num_experts"]
    width = c.get("moe_intermediate_size", c["intermediate_size"])
    shared = c.get("shared_expert_intermediate_size") or c.get("shared_intermediate_size") or 0
    used = c["num_experts_per_tok"]
    groups = [(d, q + 2 * kv), (q, d)]  # inputs, outputs
    groups += used * [(d, 2 * width), (width, d)] + (shared > 0) * [(d, 2 * shared), (shared, d)]
    read = sum(count_of(1 - sparsity, n_in) * n_out for n_in, n_out in groups)
    total = sum(n_in * n_out for n_in, n_out in groups)
    router = d * (n + (family == "qwen2_moe"))
    per_token = 4 * (c["num_hidden_layers"] * (read + router) + c["vocab_size"] * d)
    wanted = pywina.Sparsity(sparsity, budget="uniform")
    with pywina.load(files(family), n_ctx=64) as model:
        model.generate("a b", max_tokens=6, temperature=0, ignore_eog=True, sparsity=wanted)
        assert model.stats.bytes_per_token == per_token
        assert model.stats.kept_fraction == pytest.approx(read / total, abs=1e-12)


def test_all_experts_are_in_memory(files: Callable[..., Path]) -> None:
    """What inspect says: every expert takes memory, whoever is chosen. Rows are padded to 64."""
    c = config_of("qwen2_moe")
    d, n, width = c["hidden_size"], c["num_experts"], 64  # 40, padded
    shared, layers = 128, c["num_hidden_layers"]  # 72, padded
    one = 2 * width * d + d * 64  # down has 40 inputs: two blocks of 32
    of_shared = 2 * shared * d + d * 96
    attention = (64 + 2 * 64) * d + d * d
    least = 4 * layers * (attention + n * one + of_shared)
    with pywina.load(files("qwen2_moe"), n_ctx=64) as model:
        assert least <= model.info.sparse_bytes < 1.1 * least
        assert model.info.weight_bytes > model.info.sparse_bytes
        stacks = sum(np.prod(t.shape) for name, t in model.tensors.items() if "_exps" in name)
        assert stacks == layers * n * 3 * c["moe_intermediate_size"] * d
        assert model.info.n_params > stacks


# ---- packed files ----------------------------------------------------------------------------


def packed(source: Path, target: Path) -> Path:
    assert main(["convert", str(source), str(target), "--pack"]) == 0
    return target


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "granitemoeshared"])
@pytest.mark.parametrize("kind", ["F16", "Q4_0"])
def test_packed(
    files: Callable[..., Path], family: str, kind: str, tmp_path: Path, wina_bin: Path
) -> None:
    """Bits, weights, norms of experts and what is known of the tensors: as in the plain file."""
    source = files(family, kind)
    target = packed(source, tmp_path / "packed.gguf")
    verify = [wina_bin, "inspect", "-m", target, "--verify"]
    assert subprocess.run(verify, capture_output=True, timeout=60).returncode == 0
    with pywina.load(source, n_ctx=64) as plain, pywina.load(target, n_ctx=64) as mapped:
        for rule in RULES[:2]:
            rule = pywina.Sparsity(**rule)
            np.testing.assert_array_equal(
                plain.logits(TOKENS, sparsity=rule), mapped.logits(TOKENS, sparsity=rule)
            )
        assert mapped.info.n_params == plain.info.n_params
        assert mapped.info.sparse_bytes == plain.info.sparse_bytes
        for name, tensor in plain.tensors.items():
            own = mapped.tensors[name]
            assert (own.shape, own.type) == (tensor.shape, tensor.type)
            np.testing.assert_array_equal(mapped.read_tensor(name), plain.read_tensor(name))
        stacks = [name for name, tensor in mapped.tensors.items() if len(tensor.shape) == 3]
        assert len(stacks) == 3 * plain.info.n_layer
        for name in (stacks[0].replace("_exps", ".0"), stacks[0].replace("_exps", "_exps.9")):
            with pytest.raises(pywina.ArgumentError, match="no tensor"):
                mapped.read_tensor(name)


def test_a_damaged_expert_is_found(
    files: Callable[..., Path], tmp_path: Path, wina_bin: Path
) -> None:
    target = packed(files("mixtral", "Q4_0"), tmp_path / "packed.gguf")
    data = bytearray(target.read_bytes())
    panels = next(t for t in gguf.GGUFReader(target).tensors if t.name == "wina.pack.panels")
    data[panels.data_offset + panels.n_bytes - 70] ^= 1
    target.write_bytes(data)
    done = subprocess.run(
        [wina_bin, "inspect", "-m", target, "--verify"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "checksum" in done.stderr and "layer 2" in done.stderr


@pytest.mark.parametrize(
    ("n", "words"), [(0, "dimension 2 is zero"), (1, "has shape"), (6, "has shape"),
                     (2**31, "more bytes than the file"), (2**32 - 1, "more bytes")],
)  # fmt: skip
def test_other_numbers_of_experts(
    files: Callable[..., Path], tmp_path: Path, n: int, words: str
) -> None:
    """A packed file whose header says so, with the header's checksum made good."""
    target = packed(files("mixtral", "Q4_0"), tmp_path / "packed.gguf")
    data, reader = bytearray(target.read_bytes()), gguf.GGUFReader(target)
    key = b"wina.pack.stacks"
    at = data.index(key) + len(key) + 8
    (count,) = struct.unpack_from("<Q", data, at)
    stacks = list(struct.unpack_from(f"<{count}I", data, at + 8))
    assert stacks.count(5) == 9 and set(stacks) == {1, 5}
    stacks[stacks.index(5)] = n
    struct.pack_into(f"<{count}I", data, at + 8, *stacks)
    sums = next(t for t in reader.tensors if t.name == "wina.pack.sums")
    head = bytes(data[: reader.data_offset])
    struct.pack_into("<Q", data, int(sums.data_offset), checksum(head))
    target.write_bytes(data)
    with pytest.raises(pywina.FormatError, match=words):
        pywina.load(target)


# ---- what is refused -------------------------------------------------------------------------


def test_not_on_a_gpu(files: Callable[..., Path]) -> None:
    with pytest.raises(pywina.UnsupportedError, match="mixtures of experts run on the CPU only"):
        pywina.load(files("mixtral"), backend="cuda")
    with pywina.load(files("mixtral"), backend="auto") as model:
        assert model.info.backend == "cpu" and "mixtures of experts" in model.info.backend_note


def test_what_experts_have_not(files: Callable[..., Path], tmp_path: Path) -> None:
    with pywina.load(files("mixtral")) as model:
        with pytest.raises(pywina.UnsupportedError, match="cannot be seen"), model.tap(print):
            pass
        with pytest.raises(pywina.UnsupportedError, match="norms of their own"):
            model.norms(0, "down")
        assert model.norms(0, "qkv").shape == (64,)
        n = model.info.n_layer
        norms = {
            g: np.ones((n, w)) for g, w in (("qkv", 64), ("o", 64), ("gate_up", 64), ("down", 96))
        }
        with pytest.raises(pywina.ArgumentError, match="norms of their own"):
            model.set_tuning(pywina.Tuning(norms=norms))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--imatrix", "x.imatrix"], "cannot be seen"),
        (["-o", "x.gguf", "--norms", "loss"], "norms 'loss'"),
        (["-o", "x.gguf", "--allocate", "greedy"], "allocation 'greedy'"),
        (["-o", "x.json", "--allocate", "descent"], "allocation 'descent'"),
        (["-o", "x.json", "--thresholds"], "thresholds"),
        (["-o", "x.gguf", "--device", "cuda"], "device 'cuda'"),
    ],
)  # fmt: skip
def test_not_calibrated(
    files: Callable[..., Path], flags: list[str], words: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    text = tmp_path / "text.txt"
    text.write_text("a b c d " * 200)
    monkeypatch.chdir(tmp_path)
    command = ["calibrate", str(files("mixtral")), "-f", str(text), "--size", "64"]
    assert main([*command, "--windows", "1", *flags]) == 2
    error = capsys.readouterr().err
    assert "mixture of experts" in error and words in error
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_budgets_are_found(
    family: str, files: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all experts of a layer together, at equal bytes: better on its text than those that are
    built in, in the file too, and still the library's own norms of each expert."""
    text, target = tmp_path / "text.txt", tmp_path / "tuned.gguf"
    words = "the in and there an of on a woman at sea is seen with all to rest far over".split()
    text.write_text(" ".join(np.random.default_rng(2).choice(words, 3000)))
    command = ["calibrate", str(files(family)), "-f", str(text), "--size", "128", "-t", "1"]
    assert main([*command, "--windows", "4", "-o", str(target), "--allocate", "block"]) == 0
    tuning = pywina.Tuning.load(target.with_suffix(".json"))
    assert tuning.kept is not None and not tuning.norms
    with pywina.load(files(family), n_threads=1) as model:
        objective = Objective(model, cut_windows(model, text.read_text(), 128, 4))
        rule = pywina.Sparsity(0.5)
        built_in, found = (np.mean(objective(t, rule)) for t in (None, tuning))
        uniform = np.mean(objective(None, pywina.Sparsity(0.5, budget="uniform")))
        assert found < min(built_in, uniform)
        tokens = list(range(40, 80))
        model.set_tuning(tuning)
        own = model.logits(tokens, sparsity=0.5)
        assert model.stats.kept_fraction == pytest.approx(0.5, abs=0.01)
    with pywina.load(target, n_threads=1) as model:
        np.testing.assert_array_equal(model.logits(tokens, sparsity=0.5), own)
    assert "exponent 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags", [[], ["--transform", "paper"], ["--pack", "--transform", "paper"]]
)
def test_not_converted(
    files: Callable[..., Path], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "x.gguf"
    assert main(["convert", str(files("mixtral")), str(target), *flags]) == 2
    assert "a mixture of experts, which have norms of their own" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_calibrated_budgets(files: Callable[..., Path]) -> None:
    """Budgets by layer and group hold for every expert of the layer."""
    path = files("mixtral")
    kept = np.random.default_rng(2).uniform(0.3, 0.7, (3, 4)).astype(np.float32)
    reference = Reference(path)
    with pywina.load(path, n_ctx=64) as model:
        model.set_tuning(pywina.Tuning(targets=np.float32([0.5]), kept=kept[None]))
        wanted = pywina.Sparsity(0.5, budget="calibrated", exponent=1.0)
        ours = model.logits(TOKENS, sparsity=wanted, dense_prefix=N_DENSE)
    theirs = reference.logits(TOKENS, sparsity=0.5, budget=kept, n_dense=N_DENSE, kv_f16=True)
    assert apart(ours, theirs) < 1e-3


def _key(name: str, number: object) -> Callable[[gguffile.GgufFile], None]:
    def change(content: gguffile.GgufFile) -> None:
        content.set(f"qwen2moe.{name}", number)

    return change


def _shape(part: str, shape: tuple[int, ...]) -> Callable[[gguffile.GgufFile], None]:
    """The first tensor whose name has the part, of another shape."""

    def change(content: gguffile.GgufFile) -> None:
        i = next(i for i, t in enumerate(content.tensors) if part in t.name)
        size = 4 * int(np.prod(shape))
        content.tensors[i] = gguffile.Tensor(content.tensors[i].name, shape, 0, size,
                                             lambda: iter([bytes(size)]))  # fmt: skip

    return change


def _without(part: str) -> Callable[[gguffile.GgufFile], None]:
    def change(content: gguffile.GgufFile) -> None:
        content.tensors = [t for t in content.tensors if part not in t.name]

    return change


BAD = {
    "no-experts": (_key("expert_count", 0), "qwen2moe.expert_count is 0, must be in 1"),
    "huge": (_key("expert_count", 2**32 - 1), "expert_count is 4294967295"),
    "many": (_key("expert_count", 1000), "blk.0.ffn_gate_inp.weight has shape"),
    "fewer": (_key("expert_count", 5), "blk.0.ffn_gate_inp.weight has shape"),
    "none-used": (_key("expert_used_count", 0), "expert_used_count is 0, must be in 1..6"),
    "too-many-used": (_key("expert_used_count", 7), "expert_used_count is 7, must be in 1..6"),
    "width": (_key("expert_feed_forward_length", 41), "blk.0.ffn_gate_exps.weight has shape"),
    "width-0": (_key("expert_feed_forward_length", 0), "expert_feed_forward_length is 0"),
    "shared-width": (_key("expert_shared_feed_forward_length", 71), "blk.0.ffn_gate_shexp"),
    "sigmoid": (_key("expert_gating_func", 2), "expert_gating_func 2 is not supported"),
    "scaled": (_key("expert_weights_scale", 2.5), "expert_weights_scale 2.5"),
    "grouped": (_key("expert_group_count", 4), "expert_group_count 4"),
    "flat": (_shape("ffn_up_exps", (6 * 40, 64)), "blk.0.ffn_up_exps.weight has shape"),
    "turned": (_shape("ffn_down_exps", (6, 40, 64)), "blk.0.ffn_down_exps.weight has shape"),
    "a-stack-of-5": (_shape("ffn_down_exps", (5, 64, 40)), "blk.0.ffn_down_exps.weight has shape"),
    "gate": (_shape("ffn_gate_inp_shexp", (2, 64)), "blk.0.ffn_gate_inp_shexp.weight has shape"),
    "no-router": (_without("blk.1.ffn_gate_inp.weight"), "blk.1.ffn_gate_inp.weight is missing"),
    "no-stack": (_without("blk.2.ffn_up_exps"), "blk.2.ffn_up_exps.weight is missing"),
    "no-shared": (_without("blk.0.ffn_down_shexp"), "blk.0.ffn_down_shexp.weight is missing"),
    "no-gate": (_without("ffn_gate_inp_shexp"), "ffn_gate_inp_shexp.weight is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files(files: Callable[..., Path], tmp_path: Path, name: str) -> None:
    change, words = BAD[name]
    path = changed(files("qwen2_moe"), tmp_path / "bad.gguf", change)
    with pytest.raises((pywina.FormatError, pywina.UnsupportedError)) as caught:
        pywina.load(path)
    assert words in str(caught.value)


def test_experts_where_none_belong(files: Callable[..., Path], tmp_path: Path) -> None:
    def rename(content: gguffile.GgufFile) -> None:
        for key in [key for key in content.values if key.startswith("qwen3moe.")]:
            content.values[key.replace("qwen3moe", "qwen3")] = content.values.pop(key)
        content.set("general.architecture", "qwen3")

    path = changed(files("qwen3_moe"), tmp_path / "bad.gguf", rename)
    with pytest.raises(pywina.UnsupportedError, match=r"qwen3\.expert_count is 7"):
        pywina.load(path)


# ---- conversion ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob False"),
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob True"),
        ("qwen2_moe", {"mlp_only_layers": [1]}, "layers without experts"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "layers without experts"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0"),
        ("mixtral", {"num_local_experts": 6}, "experts.5.w1.weight' is missing"),
        ("mixtral", {"num_local_experts": 4}, "belongs to none of 4 experts"),
        ("mixtral", {"num_experts_per_tok": None}, "is not understood"),
    ],
)
def test_checkpoints_that_are_refused(
    family: str, change: dict, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", family)
    config = {**config_of(family), **change}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    target = tmp_path / "x.gguf"
    assert main(["convert", str(folder), str(target)]) == 2
    assert words in capsys.readouterr().err and not target.exists()


def test_routers_stay_float(files: Callable[..., Path], tmp_path: Path) -> None:
    """In the converter and when a file is quantised; stacks are quantised."""
    target = tmp_path / "q.gguf"
    assert main(["convert", str(files("mixtral")), str(target), "--quantize", "Q8_0"]) == 0
    for path in (files("qwen2_moe", "Q8_0"), target):
        types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
        assert {kind for name, kind in types.items() if "ffn_gate_inp" in name} == {"F32"}
        assert {kind for name, kind in types.items() if "ffn_up_exps" in name} == {"Q8_0"}
    with pywina.load(target, n_ctx=64) as ours, pywina.load(files("mixtral"), n_ctx=64) as wanted:
        assert 1e-4 < apart(ours.logits(TOKENS), wanted.logits(TOKENS)) < 0.05
