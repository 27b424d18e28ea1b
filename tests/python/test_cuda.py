"""The GPU backend where there is no GPU: its kernels, run by the CPU (see
tests/native/cuda/emulate), against the CPU backend; and that nvcc compiles everything."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tinycheckpoint import write_checkpoint

import pywina
from pywina.cli import main

ROOT = Path(__file__).resolve().parents[2]
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


def _make(target: str, build: Path, *options: str) -> None:
    command = ["make", "-C", str(ROOT), f"BUILD={build}", f"CUDA_HOME={CUDA}", *options, target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def _run(emulated: Path, *command: object, **machine: str) -> str:
    """What a command writes on an emulated GPU of two multiprocessors, or of another machine."""
    environment = {"EMULATE_SMS": "2"} | machine
    environment["WINA_CUDA_LIBRARY"] = str(emulated / "emulate" / "libwina_cuda.so")
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def emulated() -> Path:
    """The folder of build/emulate, built if it is not there; it stays for the next run."""
    if platform.machine() != "x86_64":
        pytest.skip("the emulation of CUDA runs on x86-64 only")
    if not (CUDA / "include" / "cuda_runtime_api.h").exists() or not shutil.which("g++"):
        pytest.skip("CUDA's headers (or g++) are not there")
    build = ROOT / "build"
    _make("cuda-emulated", build)
    return build


@pytest.mark.parametrize(
    ("case", "machine"),
    [
        ("F16 36 x 52, sparsity 0", {}),  # dense and half, odd widths
        ("Q6_K, sparsity 0.65, projections", {}),
        ("like gemma2, heads of 64, sparsity 0.5", {}),  # gelu, windows, caps, norms after blocks
        ("like gemma3, heads of 96", {}),  # norms of q and k by heads, two bases of angles
        ("like olmo2, heads of 64", {}),  # over all heads, none before blocks
        ("like smollm3, heads of 64", {}),  # layers without rotation, multipliers
        ("chain", {}),  # layers on the CPU and on a GPU
        ("chain", {"EMULATE_GPUS": "3", "EMULATE_FREE_MB": "401"}),  # a layer on each
        ("chain, 3", {"EMULATE_GPUS": "2", "WINA_CUDA_FREE_MB": "401.5"}),
        ("Q4_0, sparsity 0.5", {"WINA_CUDA_BLOCKS": "2"}),  # several tiles for every block
        ("sampling, vocabulary of 1030", {}),  # tokens from the best candidates
        ("cache of q8_0 and f16, like gemma2, heads of 80", {}),  # a ring, 8 bits in keys alone
        ("cache of f16 and q8_0, like plain", {}),
        ("cache of q8_0 and q8_0, like gemma3", {"EMULATE_SMS": "1"}),
        ("cache of q8_0 and q8_0, like gemma2, heads of 128, in a chain", {"EMULATE_SMS": "1"}),
        ("equal logits", {}),  # ties, also too many, and what is not finite
        # all of these and the following have prompts, with pieces of 128 KiB; these by cuBLAS
        ("small Q", {"CHECK_SET": "small"}),  # every quantised type
        ("small like", {"CHECK_SET": "small"}),  # kinds of architectures, a cache of q8_0
        ("F32 16 x 24", {}),  # fewer columns than a block
        ("MXFP4 as floats", {}),  # bfloat16 from MXFP4
        ("embeddings of Q3_K", {}),  # rows of all tokens at once
        ("hidden states", {"EMULATE_SMS": "1"}),  # and the plan of the memory
        ("taps", {"EMULATE_SMS": "1"}),  # of 9 and 2 tokens, behind layers of the CPU, too
        ("BF16 36 x 300", {"WINA_CUBLAS": "none"}),  # by the kernel for tensor cores
        ("small Q4_K", {"CHECK_SET": "small", "WINA_CUBLAS": "none"}),
    ],
)
def test_kernels_equal_the_cpu(emulated: Path, case: str, machine: dict[str, str]) -> None:
    options = machine.get("CHECK_SET", "").split()
    settings = {"CHECK_ONLY": case, "EMULATE_SMS": "4"} | machine
    found = _run(emulated, emulated / "tests" / "check_cuda", *options, **settings)
    assert case.split(",")[0] in found


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windowed")
    source = write_checkpoint(folder / "checkpoint", "gemma2")
    target = folder / "model.gguf"
    assert main(["convert", str(source), str(target), "--type", "F32"]) == 0
    return target


DRAW = """
import sys
import pywina

ways = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repeat_penalty": 1.3},
    {"temperature": 1.5, "seed": 3},
    {"temperature": 1.0, "seed": 4, "top_k": 0, "min_p": 0.0},
    {"temperature": 1.0, "seed": 4, "top_k": 0, "top_p": 0.2},
]
with pywina.load(sys.argv[1], backend="cuda", n_ctx=64) as model:
    assert model.info.device == "emulated GPU"
    for way in ways:
        way |= {"max_tokens": 6, "ignore_eog": True}
        found = model.stream("Hello the world", **way)
        list(found)
        # a processor needs all logits, and leaves them as they are
        copied = model.stream(
            "Hello the world", logits_processors=[lambda tokens, logits: logits], **way
        )
        list(copied)
        assert len(found.tokens) == 6 and found.tokens == copied.tokens, way
    late = [chunk.logprob for chunk in model.stream([1, 2], max_tokens=3, logprobs=2)]
    assert all(p is not None and p < 0 for p in late if p is not None) and late[0] is not None
"""


def test_tokens_drawn_from_the_best_are_those_drawn_from_all(
    emulated: Path, write_model: Callable[..., Path]
) -> None:
    _run(emulated, sys.executable, "-c", DRAW, write_model())


STATES = """
import os
import sys
import pywina
from pywina._native import lib

path, kind, layers = sys.argv[1], sys.argv[2], int(sys.argv[3])
IDS = [(37 * i + 11) % 250 for i in range(40)]


def load(backend):
    where = {"backend": "cpu"} if backend == "cpu" else {"n_gpu_layers": layers}
    return pywina.load(path, n_ctx=96, n_batch=4, n_threads=1, cache_type_k=kind,
                       cache_type_v=kind, **where)


def tokens(model, prompt):
    stream = model.stream(prompt, max_tokens=6, temperature=0, ignore_eog=True)
    list(stream)
    return stream.tokens


def keepable(model):
    with model._handle.run() as session:
        return [n for n in range(len(IDS)) if lib.wina_session_n_keepable(session, n) == n]


cpu, gpu = load("cpu"), load("gpu")
assert gpu.info.backend == "cuda", gpu.info
wanted = tokens(cpu, IDS)
cpu.generate(IDS, max_tokens=1)
state = cpu.save_state()
assert gpu.load_state(state)[: len(IDS)] == IDS
assert gpu.save_state() == state  # to the bit, there and back
assert tokens(gpu, IDS) == wanted
own, fresh = load("gpu"), load("cpu")
for model in (own, fresh):
    model.generate(IDS, max_tokens=1)
assert keepable(own) == keepable(fresh)
other = load("cpu")
other.load_state(own.save_state())
assert tokens(other, IDS) == wanted
# what a prompt shares with what was there, as far as windows still have it
for prompt in (IDS[:-3], [*IDS[:-3], 1, 2], IDS[:20], [*IDS[:19], 7, 8], IDS):
    assert tokens(gpu, prompt) == tokens(cpu, prompt), prompt
damaged = bytearray(state)
damaged[-40] ^= 4
for bad in (bytes(damaged), state[:-8], load("cpu").save_state()[:16] + state[16:]):
    try:
        gpu.load_state(bad)
    except pywina.FormatError:
        pass
    else:
        raise AssertionError("a damaged state was loaded")
assert tokens(gpu, IDS) == wanted
before = gpu.save_state()
os.environ["EMULATE_FAIL"] = "1"
for call in (gpu.save_state, lambda: gpu.load_state(state)):
    try:
        call()
    except pywina.DeviceError as error:
        assert "saved state" in str(error)
    else:
        raise AssertionError("a copy that failed was not noticed")
del os.environ["EMULATE_FAIL"]
assert tokens(gpu, IDS) == wanted  # from the start: nothing was left
"""


@pytest.mark.parametrize("layers", [4, 2])  # all of them; the last ones, behind those of the CPU
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_states_move_between_cpu_and_gpu(
    emulated: Path, windowed: Path, kind: str, layers: int
) -> None:
    _run(emulated, sys.executable, "-c", STATES, windowed, kind, layers, EMULATE_SMS="1")


PREFIXES = """
import sys
import pywina

IDS = [(37 * i + 11) % 250 for i in range(40)]


def tokens(model, prompt, **options):
    stream = model.stream(prompt, max_tokens=7, temperature=0, ignore_eog=True, **options)
    list(stream)
    return stream.tokens, model.stats.n_prefill


def load():
    return pywina.load(sys.argv[1], backend="cuda", n_ctx=96, n_batch=8)


model = load()
made, n = tokens(model, IDS)
assert n == 40
for prompt, n_same in (
    (IDS, 32), (IDS[:33], 32), (IDS[:32], 24), ([*IDS[:19], 7, 8], 16), (IDS[:7], 0),
    (IDS, 0), ([*IDS, *made], 40), ([*IDS, *made, 1, 2], 40), ([*IDS, 3], 40), (IDS, 32),
):  # fmt: skip
    # whole batches of the last prompt's own, nothing that was generated
    wanted, n_all = tokens(load(), prompt)
    assert tokens(model, prompt) == (wanted, n_all - n_same), (len(prompt), n_same)
state = model.save_state()
other = load()
assert len(other.load_state(state)) > 40  # what was generated, too
assert tokens(other, [*IDS, 3]) == (tokens(load(), [*IDS, 3])[0], 1)
steps = pywina.stepping.Steps(model)
steps.eval(IDS[:11])
other.load_state(steps.save_state())
assert tokens(other, IDS)[1] == 29
assert tokens(model, IDS)[1] == 40  # other batches
tokens(model, IDS, sparse_prefill=True, sparsity=0.5)
assert tokens(model, IDS)[1] == 40
"""


def test_prompts_on_a_gpu_use_whole_batches_again(
    emulated: Path, write_model: Callable[..., Path]
) -> None:
    _run(emulated, sys.executable, "-c", PREFIXES, write_model(), EMULATE_SMS="1")


HOST = """
import json, sys
from pathlib import Path
import numpy as np
import pywina

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    (text,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(text.split()[1]) * 1024

path, packed, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with pywina.load(path, backend="cpu", n_ctx=32) as model:  # tables of the library, and its threads
    expected = model.embed("Hello the world")
    rows = model.read_tensor("blk.0.ffn_up.weight")
before = resident()
model = pywina.load(packed if options.get("packed") else path, n_ctx=32, **options["load"])
taken = resident() - before
plan = model.plan_memory()
error = model.embed("Hello the world") - expected  # of a batch: check_cuda's bound
assert np.sum(error**2) < 1e-5 * np.sum(np.square(expected)), error
out = {"taken": taken, "plan": plan.__dict__, "note": model.info.backend_note}
try:
    out["rows"] = bool(np.array_equal(model.read_tensor("blk.0.ffn_up.weight"), rows))
except pywina.WinaError as error:
    out["rows"] = str(error)
try:
    model.write_packed(packed + ".again")
    out["written"] = Path(packed + ".again").read_bytes() == Path(packed).read_bytes()
except pywina.WinaError as error:
    out["written"] = str(error)
print(json.dumps(out))
"""


@pytest.mark.parametrize("way", ["file", "mapped", "half"])
def test_weights_on_a_gpu_leave_the_hosts_memory(
    emulated: Path, write_model: Callable[..., Path], tmp_path: Path, way: str
) -> None:
    path = write_model(n_embd=512, n_ff=4096, n_layer=4, n_head=8, tied=False)
    packed = tmp_path / "packed.gguf"
    with pywina.load(path, backend="cpu") as model:
        model.write_packed(packed)
        weights = model.info.weight_bytes
    load: dict[str, object] = {"backend": "cuda"}
    if way == "half":
        load["n_gpu_layers"] = 2
    options = json.dumps({"load": load, "packed": way == "mapped"})
    found = json.loads(_run(emulated, sys.executable, "-c", HOST, path, packed, options))
    plan = found["plan"]
    # the emulated device's memory is this process's own: there once, and here for what stays
    on_gpu = plan["gpu_weight_bytes"]
    assert on_gpu == pytest.approx(weights / (2 if way == "half" else 1), rel=0.1)
    assert plan["gpu_cache_bytes"] > 0 and plan["gpu_buffer_bytes"] > 0
    assert plan["weight_bytes"] == pytest.approx(weights - on_gpu, abs=0.05 * weights)
    assert found["taken"] < 1.25 * weights
    assert found["rows"] is True
    if way != "mapped":  # rows come from the file, but what was packed is gone
        assert "backend cpu" in found["written"]


def test_types_without_kernels_are_named_in_the_plan(
    emulated: Path, write_model: Callable[..., Path]
) -> None:
    types = {"up": "Q2_K", "gate": "Q2_K", "down": "MXFP4"}
    path = write_model(n_embd=256, n_ff=256, n_layer=1, n_head=4, types=types)
    code = (
        "import sys, pywina\n"
        "with pywina.load(sys.argv[1], backend='cuda', n_ctx=32) as model:\n"
        "    print(model.info.backend_note)\n"
        "    print(model.plan_memory().gpu_weight_bytes)\n"
        "    stream = model.stream('Hello', max_tokens=4, temperature=0, ignore_eog=True)\n"
        "    print(list(stream) and stream.tokens)\n"
    )

    def run(code: str) -> list[str]:
        return _run(emulated, sys.executable, "-c", code, path).splitlines()

    note, gpu, tokens = run(code)
    assert note == "Q2_K as float16, MXFP4 as bfloat16"
    assert int(gpu) > 3 * 256 * 256 * 2
    assert run(code.replace("'cuda'", "'cpu'"))[2] == tokens


def test_bench_reports_the_share_of_a_copy(
    emulated: Path, write_model: Callable[..., Path], wina_bin: Path
) -> None:
    command = [str(wina_bin), "bench", "-m", str(write_model()), "-p", "0", "-n", "2", "-r", "1"]

    def bench(*options: str) -> str:
        return _run(emulated, *command, *options, EMULATE_FREE_MB="500")

    (row,) = json.loads(bench("--backend", "cuda", "--json"))
    assert row["copy_gb_s"] > 0.1
    assert row["copy_share"] == pytest.approx(row["gb_s"] / row["copy_gb_s"], rel=1e-6)
    assert "A copy in the GPU's memory reads and writes" in bench("--backend", "cuda")
    (row,) = json.loads(bench("--backend", "cpu", "--json"))
    assert "copy_gb_s" not in row and "copy" not in bench("--backend", "cpu")


def test_nvcc_compiles_the_backend(tmp_path: Path) -> None:
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not there")
    if not os.environ.get("PYWINA_TEST_NVCC"):
        pytest.skip("nvcc takes a minute: PYWINA_TEST_NVCC=1 runs it")
    _make("cuda", tmp_path, "CUDA_ARCHS=90", "-j2")
    assert (tmp_path / "lib" / "libwina_cuda.so").stat().st_size > 100_000


def test_cublas_of_the_wheel_is_named(tmp_path: Path) -> None:
    library = tmp_path / "nvidia" / "cu13" / "lib" / "libcublas.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    code = "import pywina, os; print(os.environ['WINA_CUBLAS'])"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    environment.pop("WINA_CUBLAS", None)

    def named() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert named() == str(library)
    environment["WINA_CUBLAS"] = "none"
    assert named() == "none"
