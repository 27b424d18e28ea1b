"""The `wina` program: output, exit codes, agreement with the library, interruption."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pywina

Run = Callable[..., "subprocess.CompletedProcess[str]"]
COMMANDS = ["run", "chat", "tokenize", "inspect", "perplexity", "bench"]
TEXT = "the world is one, and the other is in the hand of the world.\n" * 40


@pytest.fixture
def wina(wina_bin: Path) -> Run:
    """wina(*arguments, stdin=""): the finished process, its output as strict UTF-8."""

    def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [wina_bin, *map(str, arguments)]
        done = subprocess.run(
            command, input=stdin.encode(), capture_output=True, timeout=120, check=False
        )
        # Decoded here: subprocess would turn \r into \n.
        output, errors = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(command, done.returncode, output, errors)

    return run


def report(result: subprocess.CompletedProcess[str]) -> dict | list:
    """The JSON that a successful command wrote; Python's NaN and Infinity are not JSON."""
    assert result.returncode == 0, result.stderr

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(result.stdout, parse_constant=refuse)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


# ---- run --------------------------------------------------------------------------------------


def test_run_prints_the_text_alone(wina: Run, tiny_model: Path, tiny: pywina.Model) -> None:
    expected = tiny.generate("the world", max_tokens=12, temperature=0.0)
    options = ["-m", tiny_model, "-n", 12, "--temp", 0, "-t", 2]
    result = wina("run", *options, "-p", "the world")
    assert (result.returncode, result.stdout) == (0, expected + "\n")
    first, rule, last = result.stderr.splitlines()
    assert re.search(r"cpu \((c|avx2|avxvnni|avx512|avx512vnni|neon|dotprod|i8mm)\)", first)
    assert "2 threads" in first and "sparsity 0" in first and rule == "wina: dense"
    assert "tok/s" in last and "kept 1.000" in last
    assert wina("run", *options, "-f", "-", stdin="the world").stdout == expected + "\n"


def test_run_reads_a_file(wina: Run, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("the world")
    options = ["run", "--model", tiny_model, "--n-predict=5", "--temp=0"]
    from_file = wina(*options, "--file", path)
    assert from_file.stdout == wina(*options, "--prompt", "the world").stdout != ""


def test_run_json(wina: Run, tiny_model: Path, tiny: pywina.Model) -> None:
    options = ["-s", 7, "--sparsity", 0.5, "--method", "teal", "--mask", "projection", "-t", 2]
    options += ["-n", 9, "-c", 128, "--top-k", 5, "--repeat-penalty", 1.2, "-b", 16]
    got = report(wina("run", "-m", tiny_model, "-p", "the world", "--json", *options))
    stream = tiny.stream(
        "the world", seed=7, sparsity=0.5, method="teal", mask="projection", max_tokens=9, top_k=5,
        repeat_penalty=1.2,
    )  # fmt: skip
    chunks = list(stream)
    assert got["text"] == "".join(chunk.text for chunk in chunks)
    assert got["tokens"] == stream.tokens
    assert got["finish_reason"] == chunks[-1].finish_reason
    assert got["prompt_tokens"] == len(tiny.tokenize("the world"))
    assert got["kept_fraction"] == pytest.approx(0.5, abs=0.02)
    assert set(got["timings"]) == {"load_s", "prefill_tok_s", "decode_tok_s"}
    assert all(value > 0 for value in got["timings"].values())
    settings = {"seed": 7, "sparsity": 0.5, "method": "teal", "mask": "projection", "n_threads": 2}
    assert {key: got[key] for key in settings} == settings
    assert re.fullmatch("c|avx2|avxvnni|avx512|avx512vnni|neon|dotprod|i8mm", got["backend"])


def test_a_random_seed_is_told_and_repeats(wina: Run, tiny_model: Path) -> None:
    options = ["run", "-m", tiny_model, "-p", "the", "-n", 12, "--temp", 2, "--json"]
    first = report(wina(*options))
    again = report(wina(*options, "-s", first["seed"]))
    assert again["tokens"] == first["tokens"]
    assert report(wina(*options))["seed"] != first["seed"]


def test_finish_reasons(wina: Run, tiny_model: Path, tiny: pywina.Model) -> None:
    options = ["run", "-m", tiny_model, "-p", "the", "--json", "--temp", 0, "--ignore-eos"]
    length = report(wina(*options, "-n", 10))
    assert (length["finish_reason"], len(length["tokens"])) == ("length", 10)
    context = report(wina(*options, "-c", 16))
    assert context["finish_reason"] == "context"
    assert len(context["tokens"]) + context["prompt_tokens"] in (16, 17)  # the last: not evaluated
    stop = length["text"][3:5]
    stopped = report(wina(*options, "-n", 10, "--stop", "never met", "--stop", stop))
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == length["text"][: length["text"].index(stop)]


def test_the_end_of_an_answer(wina: Run, tiny_model: Path) -> None:
    """At a high temperature the tiny model says its end token soon under some of many seeds."""
    options = ["run", "-m", tiny_model, "-p", "a", "-n", 60, "--temp", 3, "--top-k", 0, "--json"]
    options += ["--top-p", 1, "--min-p", 0]
    for seed in range(60):
        got = report(wina(*options, "-s", seed))
        if got["finish_reason"] == "eog":
            longer = report(wina(*options, "-s", seed, "--ignore-eos"))
            assert longer["tokens"][: len(got["tokens"])] == got["tokens"]
            assert len(longer["tokens"]) == 60 > len(got["tokens"])
            return
    pytest.fail("no seed of 60 ended the answer: is the end token recognised?")


def test_run_writes_valid_utf8(wina: Run, tiny_model: Path) -> None:
    """A tiny model gives bytes at random; what is printed is text all the same."""
    for seed in range(8):
        options = ["-m", tiny_model, "-p", "é", "-n", 40, "--temp", 5, "--top-k", 0, "-s", seed]
        got = report(wina("run", *options, "--json"))  # decoded strictly
        assert wina("run", *options).stdout == got["text"] + "\n"


def test_verbose_tells_what_was_loaded(wina: Run, tiny_model: Path) -> None:
    options = ["run", "-m", tiny_model, "-p", "a", "-n", 1]
    verbose = wina(*options, "-v").stderr
    assert str(tiny_model) in verbose and "llama" in verbose
    assert str(tiny_model) not in wina(*options).stderr


# ---- tokenize, inspect ------------------------------------------------------------------------


def test_tokenize(wina: Run, tiny_model: Path, tiny: pywina.Model) -> None:
    text = 'the "world"\n\t\\é <|im_end|>\x01'
    result = wina("tokenize", "-m", tiny_model, "-p", text, "--json")
    plain = report(result)["tokens"]
    assert result.stderr == ""
    special = report(wina("tokenize", "-m", tiny_model, "-p", text, "--json", "--special"))
    assert tiny.detokenize(plain) == text
    assert len(special["tokens"]) < len(plain)
    lines = wina("tokenize", "-m", tiny_model, "-p", "the world\n").stdout.splitlines()
    pairs = [line.split(" -> ", 1) for line in lines]
    ids = report(wina("tokenize", "-m", tiny_model, "-p", "the world\n", "--json"))["tokens"]
    assert [int(left) for left, _ in pairs] == ids
    assert "".join(json.loads(piece) for _, piece in pairs) == "the world\n"
    assert report(wina("tokenize", "-m", tiny_model, "-p", "", "--json")) == {"tokens": []}


def test_inspect(wina: Run, write_model: Callable[..., Path]) -> None:
    name = 'quotes " \\ and\nlines\t\x1b[31m é'
    long = "x" * 9000 + "é"
    path = write_model(extra={"test.text": name, "test.long": long}, types={"gate": "Q8_0"})
    result = wina("inspect", "-m", path, "--json")
    got = report(result)
    assert result.stderr == ""
    assert got["architecture"] == got["metadata"]["general.architecture"] == "llama"
    assert got["metadata"]["test.text"] == name
    assert got["metadata"]["test.long"] == long
    by_name = {tensor["name"]: tensor for tensor in got["tensors"]}
    assert by_name["blk.1.ffn_gate.weight"] == {
        "name": "blk.1.ffn_gate.weight", "type": "Q8_0", "shape": [64, 128],
        "n_bytes": 64 * 128 // 32 * 34,
    }  # fmt: skip
    assert got["n_params"] == sum(math.prod(tensor["shape"]) for tensor in got["tensors"])
    memory = got["memory"]
    assert memory["file_bytes"] == path.stat().st_size
    assert 0 < memory["sparse_bytes"] < memory["weight_bytes"]
    assert memory["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * got["n_layer"]  # k, v; 2 heads of 16
    plain = wina("inspect", "-m", path)
    assert plain.returncode == 0 and plain.stderr == ""
    assert "\x1b" not in plain.stdout  # a file must not command the terminal
    assert all(tensor in plain.stdout for tensor in by_name)


# ---- perplexity -------------------------------------------------------------------------------


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_perplexity_is_that_of_the_logits(
    wina: Run, write_model: Callable[..., Path], text_file: Path, sparsity: float, add_bos: bool
) -> None:
    """Everything again in numpy, from logits; a window of 75 ends inside a slice of positions."""
    path, window, first = write_model(add_bos=add_bos), 75, 37
    got = report(
        wina("perplexity", "-m", path, "-f", text_file, "-c", window, "--chunks", 3,
             "--sparsity", sparsity, "--dense-prefix", 5, "--json")
    )  # fmt: skip
    losses, divergences = [], []
    with pywina.load(path) as model:
        tokens = list(model.tokenize(TEXT, add_special=True))
        for start in range(0, 3 * window, window):
            ids = tokens[start : start + window]
            if add_bos:
                ids[0] = tokens[0]
            sparse = _log_softmax(model.logits(ids, dense_prefix=5, sparsity=sparsity))
            dense = _log_softmax(model.logits(ids, sparsity=0.0))
            rows = range(first, window - 1)
            losses.append([-sparse[i, ids[i + 1]] for i in rows])
            divergences += [np.sum(np.exp(dense[i]) * (dense[i] - sparse[i])) for i in rows]
    everything = np.concatenate(losses)
    assert got["n_tokens"] == len(everything) == 3 * (window - 1 - first)
    np.testing.assert_allclose(got["nll_per_window"], np.mean(losses, axis=1), rtol=1e-7)
    ppl = np.exp(everything.mean())
    assert got["ppl"] == pytest.approx(ppl, rel=1e-7)
    error = ppl * everything.std() / np.sqrt(len(everything) - 1)
    assert got["ppl_stderr"] == pytest.approx(error, rel=1e-5)
    if sparsity == 0:
        assert (got["kld"], got["kept_fraction"]) == (0, 1)
    else:
        assert got["kld"] == pytest.approx(np.mean(divergences), rel=1e-5)
        assert got["kld"] > 1e-4
        assert got["kept_fraction"] == pytest.approx(0.5, abs=0.02)


def test_perplexity_options(wina: Run, tiny_model: Path, text_file: Path) -> None:
    def run(*options: object) -> dict:
        common = ["-m", tiny_model, "-f", text_file, "-c", 64, "--chunks", 2, "--json"]
        return report(wina("perplexity", *common, *options))

    dense, sparse = run(), run("--sparsity", 0.5)
    assert run("--sparsity", 0.5, "--no-kld") == sparse | {"kld": None}
    assert run("--sparsity", 0.5, "-t", 1, "-b", 7) == sparse  # neither changes a result
    teal = run("--sparsity", 0.5, "--method", "teal")
    assert teal["ppl"] != sparse["ppl"] and teal["method"] == "teal"
    norms = run("--sparsity", 0.5, "--exponent", 1)
    assert norms["ppl"] != sparse["ppl"] and norms["exponent"] == 1
    masks = run("--sparsity", 0.5, "--exponent", 1, "--mask", "projection")
    assert masks["ppl"] != norms["ppl"] and masks["mask"] == "projection"
    same = ["ppl", "ppl_stderr", "nll_per_window", "n_tokens", "kld"]
    whole = run("--sparsity", 0.5, "--dense-prefix", 64)
    named = run("--sparsity", 0.5, "--method", "dense")
    for other in (whole, named):
        assert {key: other[key] for key in same} == {key: dense[key] for key in same}
    plain = wina("perplexity", "-m", tiny_model, "-f", text_file, "-c", 64, "--chunks", 2)
    assert plain.returncode == 0 and plain.stderr == ""  # progress is for terminals
    assert f"{dense['ppl']:.4f}" in plain.stdout


def test_perplexity_of_a_real_model(wina: Run, smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(
        "The Moon is Earth's only natural satellite. It orbits at an average distance of 384,399 "
        "kilometres, about 30 times the diameter of Earth. Its gravitational pull is the main "
        "driver of Earth's tides. The Moon was formed 4.5 billion years ago, not long after Earth."
    )
    options = ["perplexity", "-m", smollm2_path, "-f", path, "-c", 60, "--chunks", 1, "--json"]
    dense, sparse = report(wina(*options)), report(wina(*options, "--sparsity", 0.5))
    assert 2 < dense["ppl"] < 40 and dense["kld"] == 0
    assert sparse["ppl"] != dense["ppl"] and sparse["kld"] > 0.01
    assert sparse["kept_fraction"] == pytest.approx(0.5, abs=0.01)


# ---- bench ------------------------------------------------------------------------------------

ROW = {
    "test", "sparsity", "kept_fraction", "n_threads", "tok_s", "tok_s_stddev", "bytes_per_token",
    "gb_s", "logits_hash", "backend",
}  # fmt: skip


def test_bench_rows(wina: Run, tiny_model: Path) -> None:
    options = ["bench", "-m", tiny_model, "-p", 24, "-n", 8, "-r", 2, "-t", 2]
    options += ["--sparsity", "0,0.5"]
    result = wina(*options, "--json")
    rows = report(result)
    assert [(row["test"], row["sparsity"]) for row in rows] == [
        ("pp24", 0), ("tg8", 0), ("tg8", 0.5)
    ]  # fmt: skip
    for row in rows:
        assert row.keys() >= ROW and row["tok_s"] > 0 and row["tok_s_stddev"] >= 0
        assert row["n_threads"] == 2 and re.fullmatch("[0-9a-f]{16}", row["logits_hash"])
    prompt, dense, sparse = rows
    assert (prompt["kept_fraction"], dense["kept_fraction"]) == (1, 1)
    assert sparse["kept_fraction"] == pytest.approx(0.5, abs=0.02)
    assert prompt["bytes_per_token"] is None and prompt["gb_s"] is None
    assert 0 < sparse["bytes_per_token"] < dense["bytes_per_token"]
    assert sparse["gb_s"] == pytest.approx(sparse["bytes_per_token"] * sparse["tok_s"] / 1e9)
    assert dense["logits_hash"] != sparse["logits_hash"]
    table = wina(*options)
    assert table.returncode == 0 and table.stderr == ""
    assert len(table.stdout.splitlines()) == 2 + len(rows)
    assert all(row["logits_hash"] in table.stdout for row in rows)


def test_bench_hash_depends_on_the_work_alone(wina: Run, tiny_model: Path) -> None:
    def hashes(*options: object) -> list[str]:
        rows = report(wina("bench", "-m", tiny_model, "-n", 8, "--json", *options))
        return [row["logits_hash"] for row in rows]

    dense = hashes("-p", 24, "-r", 1, "-t", 1)
    assert len(dense) == 2
    assert hashes("-p", 24, "-r", 3, "-t", 3, "-b", 5, "--sparsity", "0") == dense
    assert hashes("-p", 0, "-d", 16, "-r", 1) != dense[1:]
    sparse = ["-r", 1, "--sparsity", 0.5]
    assert hashes("-p", 24, *sparse)[0] == dense[0]  # prompts are dense by default
    assert hashes("-p", 24, *sparse, "--sparse-prefill")[0] != dense[0]
    # The same tokens one by one: sparse decode of n tokens is a sparse prompt of n tokens.
    assert len(set(hashes("-p", 8, *sparse, "--sparse-prefill"))) == 1


# ---- usage and bad input ----------------------------------------------------------------------


def test_help_and_version(wina: Run) -> None:
    whole = wina("--help")
    assert whole.returncode == 0 and whole.stderr == ""
    assert all(command in whole.stdout for command in COMMANDS)
    for command in COMMANDS:
        result = wina(command, "--help")
        assert result.returncode == 0 and result.stderr == ""
        assert f"wina {command}" in result.stdout
        assert "--model" in result.stdout and "--json" in result.stdout
        assert ("--sparsity" in result.stdout) == (command != "tokenize")
    assert wina("--version").stdout == f"wina {pywina.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "usage"),
        (["frobnicate"], 'unknown command "frobnicate".*--help'),
        (["run", "-p", "a"], "-m FILE"),
        (["run", "-m"], "--model needs a value"),
        (["run", "-m", "MODEL", "-p", "a", "--frob"], 'unknown option "--frob".*run --help'),
        (["run", "-m", "MODEL", "-p", "a", "b"], 'unknown argument "b"'),
        (["tokenize", "-m", "MODEL", "-p", "a", "--temp", "1"], 'unknown option "--temp"'),
        (["run", "-m", "MODEL", "-p", "a", "--json=1"], "--json takes no value"),
        (["run", "-m", "MODEL"], "--prompt TEXT or --file FILE"),
        (["run", "-m", "MODEL", "-p", "a", "-f", "b"], "either --prompt or --file"),
        (["run", "-m", "MODEL", "-p", ""], "prompt is empty"),
        (["run", "-m", "MODEL", "-f", "-"], "prompt is empty"),
        (["run", "-m", "MODEL", "-f", "/no/such/text"], "/no/such/text"),
        (["run", "-m", "MODEL", "-p", "a", "--stop", ""], "--stop"),
        (["run", "-m", "MODEL", "-p", "a", "-n", "12x"], '--n-predict: "12x" is not a whole'),
        (["run", "-m", "MODEL", "-p", "a", "-n", "1.5"], '"1.5" is not a whole'),
        (["run", "-m", "MODEL", "-p", "a", "-n", "1e2"], '"1e2" is not a whole'),
        (["run", "-m", "MODEL", "-p", "a", "-n", " 2"], '" 2" is not a whole'),
        (["run", "-m", "MODEL", "-p", "a", "-n", "-2"], "--n-predict: -2 is outside"),
        (["run", "-m", "MODEL", "-p", "a", "-t", "0"], "--threads: 0 is outside"),
        (["run", "-m", "MODEL", "-p", "a", "-t", ""], '--threads: "" is not'),
        (["run", "-m", "MODEL", "-p", "a", "--temp", "nan"], '--temp: "nan" is not a number'),
        (["run", "-m", "MODEL", "-p", "a", "--temp", "inf"], '--temp: "inf" is not a number'),
        (["run", "-m", "MODEL", "-p", "a", "--temp", "0x1"], '--temp: "0x1" is not a number'),
        (["run", "-m", "MODEL", "-p", "a", "--temp", "-1"], "--temp: -1 is outside"),
        (["run", "-m", "MODEL", "-p", "a", "--top-p", "1.5"], "--top-p: 1.5 is outside"),
        (["run", "-m", "MODEL", "-p", "a", "--sparsity", "1"], "--sparsity: 1 is outside"),
        (["run", "-m", "MODEL", "-p", "a", "--sparsity", "-0.1"], "--sparsity: -0.1 is outside"),
        (["run", "-m", "MODEL", "-p", "a", "--sparsity", "0.99999999999"], "sparsity is 1"),
        (["run", "-m", "MODEL", "-p", "a", "--method", "magic"], '"magic".*wina, teal'),
        (["run", "-m", "MODEL", "-p", "a", "--mask", "all"], '"all".*group or projection'),
        (["run", "-m", "MODEL", "-p", "a", "-c", "4096"], "n_ctx is 4096.*512"),
        (["run", "-m", "MODEL", "-p", "a b c d e f g", "-c", "4"], "context of 4 tokens"),
        (["perplexity", "-m", "MODEL"], "--file FILE"),
        (["perplexity", "-m", "MODEL", "-f", "/no/such/text"], "/no/such/text"),
        (["perplexity", "-m", "MODEL", "-f", "TEXT", "-c", "2"], "--ctx-size: 2 is too small"),
        (["perplexity", "-m", "MODEL", "-f", "TEXT", "-c", "513"], "n_ctx is 513"),
        (["perplexity", "-m", "MODEL", "-f", "-", "-c", "64"], "0 tokens.*--ctx-size"),
        (["perplexity", "-m", "MODEL", "-f", "TEXT", "--chunks", "0"], "--chunks: 0 is outside"),
        (["perplexity", "-m", "MODEL", "-f", "TEXT", "--sparsity", "2"], "--sparsity: 2"),
        (["bench", "-m", "MODEL", "--sparsity", "0,1"], '--sparsity: "0,1"'),
        (["bench", "-m", "MODEL", "--sparsity", "0,"], '--sparsity: "0,"'),
        (["bench", "-m", "MODEL", "--sparsity", "nan"], '--sparsity: "nan"'),
        (["bench", "-m", "MODEL", "-c", "100"], "--ctx-size: 100 is too small.*128"),
        (["bench", "-m", "MODEL", "-p", "600"], "n_ctx is 600"),
        (["bench", "-m", "MODEL", "-r", "0"], "--repetitions: 0 is outside"),
    ],
)
def test_bad_usage_exits_with_2(
    wina: Run, tiny_model: Path, text_file: Path, arguments: list[str], complaint: str
) -> None:
    paths = {"MODEL": str(tiny_model), "TEXT": str(text_file)}
    given = [paths.get(argument, argument) for argument in arguments]
    for extra in [[], ["--json"]] if given and given[-1] != "-m" else [[]]:
        result = wina(*given, *extra)
        assert (result.returncode, result.stdout) == (2, "")
        assert re.search(complaint, result.stderr), result.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "short", "magic"])
def test_bad_models_exit_with_2(
    wina: Run, tiny_model: Path, text_file: Path, tmp_path: Path, command: str, kind: str
) -> None:
    path, data = tmp_path / f"{kind}.gguf", tiny_model.read_bytes()
    contents = {
        "empty": b"",
        "text": b"not a model at all" * 100,
        "short": data[: len(data) * 2 // 3],
        "magic": b"FUGG" + data[4:],
    }
    if kind == "folder":
        path.mkdir()
    elif kind in contents:
        path.write_bytes(contents[kind])
    text = ["-f", text_file] if command in ("run", "tokenize", "perplexity") else []
    result = wina(command, "-m", path, *text, "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert path.name in result.stderr


def test_failures_while_running_exit_with_1(wina: Run, tiny_model: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_model.read_bytes())
    # The last tensor of the file is the gain of the last norm: 64 floats.
    data[-256:] = np.full(64, np.nan, dtype=np.float32).tobytes()
    path = tmp_path / "nan.gguf"
    path.write_bytes(data)
    result = wina("run", "-m", path, "-p", "the")
    assert (result.returncode, result.stdout) == (1, "")
    assert "finite" in result.stderr


def test_a_full_disk_exits_with_1(wina_bin: Path, tiny_model: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for options in (["run", "-p", "a", "-n", "4"], ["inspect"], ["bench", "-n", "1", "-r", "1"]):
        with open("/dev/full", "wb") as full:
            result = subprocess.run(
                [wina_bin, *options, "-m", tiny_model],
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
            )  # fmt: skip
        assert result.returncode == 1 and "cannot write" in result.stderr


# ---- interruption -----------------------------------------------------------------------------


@pytest.fixture
def endless_model(write_model: Callable[..., Path]) -> Path:
    """Room for far more tokens than a test waits for."""
    return write_model(n_ctx=100_000)


def _start(wina_bin: Path, *arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen:
    return subprocess.Popen(
        [wina_bin, *map(str, arguments)], stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def _interrupt(process: subprocess.Popen) -> str:
    """What the process wrote after Ctrl-C, which ends it soon and in order."""
    process.send_signal(signal.SIGINT)
    started = time.perf_counter()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.perf_counter() - started < 5
    return output


def test_an_interrupt_keeps_the_text(wina_bin: Path, endless_model: Path) -> None:
    options = ["run", "-m", endless_model, "-p", "the", "-c", 100000, "--temp", 0, "--ignore-eos"]
    process = _start(wina_bin, *options)
    assert process.stdout is not None
    first = process.stdout.read(1)
    text = first + _interrupt(process)
    assert text.endswith("\n") and len(text) >= 2
    process = _start(wina_bin, *options, "--json")
    assert process.stderr is not None and "context" in process.stderr.readline()
    time.sleep(0.3)
    got = json.loads(_interrupt(process))
    assert got["finish_reason"] == "interrupted" and len(got["tokens"]) > 0


def test_an_interrupt_ends_a_long_prompt(
    wina_bin: Path, endless_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("the world " * 9000)
    process = _start(wina_bin, "run", "-m", endless_model, "-f", path, "-c", 100000, "--json")
    assert process.stderr is not None and "context" in process.stderr.readline()
    got = json.loads(_interrupt(process))
    assert (got["tokens"], got["finish_reason"]) == ([], "interrupted")


def test_an_interrupt_ends_a_bench(wina_bin: Path, endless_model: Path) -> None:
    process = _start(wina_bin, "bench", "-m", endless_model, "-p", 8, "-n", 20000, "-v", "--json")
    assert process.stderr is not None and "loaded" in process.stderr.readline()
    time.sleep(0.3)
    assert [row["test"] for row in json.loads(_interrupt(process))] == ["pp8"]


def test_an_interrupt_keeps_the_windows(wina_bin: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 200)
    here, there = pty.openpty()
    process = _start(
        wina_bin, "perplexity", "-m", tiny_model, "-f", path, "-c", 64, "--sparsity", 0.5, "--json",
        stderr=there,
    )  # fmt: skip
    os.close(there)
    notes = b""
    while b"window 2 of" not in notes:
        notes += os.read(here, 4096)
    assert b"s left" in notes
    got = json.loads(_interrupt(process))
    os.close(here)
    n = len(got["nll_per_window"])
    assert n >= 2 and got["n_tokens"] == n * 31
    assert got["ppl"] == pytest.approx(math.exp(sum(got["nll_per_window"]) / n), rel=1e-6)


def test_a_reader_that_leaves_ends_it(wina_bin: Path, endless_model: Path) -> None:
    process = _start(
        wina_bin, "run", "-m", endless_model, "-p", "the", "-c", 100000, "--ignore-eos"
    )
    assert process.stdout is not None and process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=20) != 0
    assert process.stderr is not None
    process.stderr.close()
