"""Opening, sharing and closing in every order: only exceptions or defined results, and no growth.

``PYWINA_LIFECYCLES`` is the number of open/close rounds (default 300; 10000 for a release).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pywina

N_ROUNDS = int(os.environ.get("PYWINA_LIFECYCLES", "300"))
PROMPT = "Hello the world and"
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0, "ignore_eog": True}
LONG: dict[str, Any] = {"max_tokens": None, "temperature": 0.0, "ignore_eog": True}
Load = Callable[..., pywina.Model]
Write = Callable[..., Path]

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")


def _resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _no_growth(work: Callable[[int], None], rounds: int = N_ROUNDS) -> None:
    """Runs work rounds times; the second half must take no memory, descriptors or threads."""
    for i in range(rounds // 2):
        work(i)
    gc.collect()
    before = _resident(), _descriptors(), threading.active_count()
    tasks = len(os.listdir("/proc/self/task"))
    for i in range(rounds - rounds // 2):
        work(i)
    gc.collect()
    assert _descriptors() == before[1]
    assert threading.active_count() == before[2]
    assert len(os.listdir("/proc/self/task")) <= tasks
    # 8 KiB a round would be a model's smallest part; 4 MiB is what allocators wander;
    # ThreadSanitizer takes more, for it books what was freed and which threads ended.
    wander = (16 if "libtsan" in os.environ.get("LD_PRELOAD", "") else 4) << 20
    assert _resident() - before[0] < wander + 256 * rounds


def _run(script: str, *arguments: object, code: int = 0) -> str:
    """Output of a Python script that must end by itself with this code, and say no more."""
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONDEVMODE": "1"},
    )
    assert (result.returncode, result.stderr) == (code, ""), result.stdout
    return result.stdout


# ---- growth -----------------------------------------------------------------------------------


@needs_proc
@pytest.mark.parametrize("kind", ["close", "with", "drop", "stream", "share"])
def test_open_and_close_do_not_grow(tiny_model: Path, kind: str) -> None:
    def work(i: int) -> None:
        model = pywina.load(tiny_model, n_ctx=32, n_threads=1 + i % 2)
        if kind == "with":
            with model:
                model.tokenize("a")
        elif kind == "stream":
            stream = model.stream(PROMPT, **LONG)
            next(stream)
            (model if i % 2 else stream).close()
            model.close()
        elif kind == "share":
            other = model.share()
            model.close()
            other.generate("a", **SHORT)
            other.close()
        elif kind == "close":
            model.close()

    _no_growth(work, max(N_ROUNDS // 5, 20))


@needs_proc
def test_failed_loads_do_not_grow(tiny_model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_model.read_bytes()[:-64])

    def work(_i: int) -> None:
        with pytest.raises(pywina.WinaError):
            pywina.load(bad)

    _no_growth(work, max(N_ROUNDS // 5, 20))


@needs_proc
def test_dropped_streams_and_failed_processors_do_not_grow(tiny: pywina.Model) -> None:
    def fail(_tokens: Any, _logits: Any) -> Any:
        raise ValueError("no")

    def work(i: int) -> None:
        stream = tiny.stream(PROMPT, logits_processors=lambda t, x: x, **LONG)
        next(stream)
        del stream
        with pytest.raises(ValueError, match="no"):
            tiny.generate(PROMPT, logits_processors=fail, **SHORT)

    _no_growth(work)


# ---- closing ----------------------------------------------------------------------------------


def _uses(model: pywina.Model) -> dict[str, Callable[[], object]]:
    return {
        "tokenize": lambda: model.tokenize("a"),
        "detokenize": lambda: model.detokenize([65]),
        "is_eog": lambda: model.is_eog(1),
        "generate": lambda: model.generate(PROMPT, **SHORT),
        "generate ids": lambda: model.generate([65, 66], **SHORT),
        "stream": lambda: next(model.stream([65, 66], **SHORT)),
        "chat": lambda: model.chat([{"role": "user", "content": "a"}], **SHORT),
        "batch": lambda: model.generate_batch([[65], [66]], **SHORT),
        "completion": lambda: model.create_completion("a", max_tokens=2),
        "logits": lambda: model.logits([65, 66]),
        "hidden": lambda: model.hidden([65, 66]),
        "embed": lambda: model.embed([65, 66]),
        "stats": lambda: model.stats,
        "save_state": lambda: model.save_state(),
        "share": lambda: model.share(),
        "tensors": lambda: model.tensors,
        "metadata": lambda: model.metadata,
        "keep_counts": lambda: model.keep_counts(0.5),
    }


def test_double_close_and_use_after_close(load_tiny: Load, tmp_path: Path) -> None:
    model = load_tiny()
    state = model.save_state()
    begun, fresh = model.stream(PROMPT, **LONG), model.stream(PROMPT, **LONG)
    next(begun)
    for _ in range(3):
        model.close()
    assert model.closed and "closed" in repr(model)
    uses = _uses(model) | {
        "load_state": lambda: model.load_state(state),
        "write_packed": lambda: model.write_packed(tmp_path / "a.packed"),
        "begun": lambda: next(begun),
        "fresh": lambda: next(fresh),
        "with": lambda: model.__enter__().tokenize("a"),
    }
    for name, use in uses.items():
        with pytest.raises(pywina.StateError, match="closed"):
            pytest.fail(f"{name} gave {use()!r}")
    for stream in (begun, fresh):
        stream.cancel()
        stream.close()
        assert list(stream) == []


def test_every_order_of_closing_shared_models(tiny_model: Path) -> None:
    for order in itertools.permutations(range(4)):
        first = pywina.load(tiny_model, n_ctx=64, n_threads=1)
        models = [first, first.share(), first.share()]
        models.append(models[1].share())
        text = first.generate(PROMPT, **SHORT)
        streams = [model.stream(PROMPT, **SHORT) for model in models]
        parts = [next(stream).text for stream in streams]
        for n, i in enumerate(order):
            rest = "".join(chunk.text for chunk in streams[i])
            assert parts[i] + rest == text
            models[i].close()
            with pytest.raises(pywina.StateError, match="closed"):
                models[i].share()
            for j in order[n + 1 :]:
                assert models[j].tokenize("a")


@pytest.mark.parametrize("work", ["generate", "logits", "hidden", "stream", "batch"])
def test_close_during_work_of_another_thread(write_model: Write, work: str) -> None:
    """A close between two batches of one call was once forgotten: the others were computed."""
    path = write_model(n_ctx=100_000)
    for delay in (0.0, 0.002, 0.05):
        model = pywina.load(path, n_ctx=20_000, n_threads=1)
        errors: list[BaseException] = []
        started = threading.Event()

        def use(model: pywina.Model = model, started: Any = started, errors: Any = errors) -> None:
            started.set()
            try:
                if work == "generate":
                    model.generate([65] * 15_000, **LONG)
                elif work == "logits":
                    model.logits([65] * 15_000, start=14_999)
                elif work == "hidden":
                    model.hidden([65] * 15_000)
                elif work == "stream":
                    for _ in model.stream([65], **LONG):
                        pass
                else:
                    model.generate_batch([[65] * 9000, [66] * 9000], **SHORT)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=use)
        thread.start()
        started.wait()
        time.sleep(delay)
        begun = time.perf_counter()
        model.close()
        assert time.perf_counter() - begun < 5
        thread.join(10)
        assert not thread.is_alive()
        assert [type(e) for e in errors] in ([pywina.CancelledError], [pywina.StateError]), errors


# ---- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_read", [0, 1, 5])
@pytest.mark.parametrize("processor", [None, lambda _tokens, logits: logits])
def test_a_dropped_stream_frees_the_model_at_once(
    tiny: pywina.Model, n_read: int, processor: Any
) -> None:
    """With logits processors, too: their closures once held the stream in a cycle."""
    text = tiny.generate(PROMPT, **SHORT)
    gc.disable()
    try:
        for _ in range(3):
            stream = tiny.stream(PROMPT, logits_processors=processor or (), **LONG)
            for _ in range(n_read):
                next(stream)
            del stream
            assert tiny.generate(PROMPT, **SHORT) == text
    finally:
        gc.enable()


def test_exceptions_in_logits_processors(tiny: pywina.Model) -> None:
    text = tiny.generate(PROMPT, **SHORT)

    def raising(error: BaseException, after: int) -> Any:
        left = iter(range(after))

        def process(_tokens: Any, logits: Any) -> Any:
            if next(left, None) is None:
                raise error
            return logits

        return process

    for after, kind in itertools.product((0, 2), (ValueError, KeyboardInterrupt, StopIteration)):
        stream = tiny.stream(PROMPT, logits_processors=raising(kind("x"), after), **LONG)
        got = []
        with pytest.raises((kind, RuntimeError)) if kind is StopIteration else pytest.raises(kind):
            while True:
                got.append(next(stream))
        assert len(got) == after and list(stream) == []
        assert tiny.generate(PROMPT, **SHORT) == text
    for value in (None, "a", np.zeros(3), np.zeros((2, 2)), [[]]):
        with pytest.raises((pywina.WinaError, ValueError, TypeError)):
            tiny.generate(PROMPT, logits_processors=lambda _t, _x, v=value: v, **SHORT)
        assert tiny.generate(PROMPT, **SHORT) == text
    for fill in (np.nan, np.inf, -np.inf):
        for temperature in (0.0, 1.0):
            options = SHORT | {"temperature": temperature}
            with contextlib.suppress(pywina.WinaError):
                tiny.generate(PROMPT, logits_processors=lambda _t, x, f=fill: x * 0 + f, **options)
            assert tiny.generate(PROMPT, **SHORT) == text


def test_a_processor_cannot_pull_away_what_it_runs_on(tiny: pywina.Model) -> None:
    """Closing the stream inside its own native call once freed it under the library's feet."""
    text = tiny.generate(PROMPT, **SHORT)
    streams: list[pywina.Stream] = []
    for use in (
        lambda: streams[-1].close(),
        lambda: next(streams[-1]),
        lambda: tiny.close(),
        lambda: tiny.generate("a"),
        lambda: tiny.logits("a"),
        lambda: tiny.load_state(b""),
        lambda: tiny.save_state(),
    ):

        def process(_tokens: Any, logits: Any, use: Any = use) -> Any:
            use()
            return logits

        streams.append(tiny.stream(PROMPT, logits_processors=process, **LONG))
        with pytest.raises((pywina.StateError, pywina.FormatError)):
            next(streams[-1])
        assert list(streams[-1]) == [] and not tiny.closed
        assert tiny.generate(PROMPT, **SHORT) == text

    def cancels(_tokens: Any, logits: Any) -> Any:
        streams[-1].cancel()
        return logits

    streams.append(tiny.stream(PROMPT, logits_processors=cancels, **LONG))
    with pytest.raises(pywina.CancelledError):
        list(streams[-1])
    assert tiny.generate(PROMPT, **SHORT) == text


def test_a_late_cancel_hits_nobody_else(tiny: pywina.Model) -> None:
    text = tiny.generate(PROMPT, **SHORT)
    stream = tiny.stream(PROMPT, **LONG)
    next(stream)
    stream.cancel()
    with pytest.raises(pywina.CancelledError):
        next(stream)
    stream.cancel()
    assert tiny.generate(PROMPT, **SHORT) == text


def test_a_stream_read_and_closed_by_many_threads(load_tiny: Load) -> None:
    """A reader that waited while another one closed the stream once went on with a freed one."""
    model = load_tiny(n_threads=1)
    text = model.generate(PROMPT, **SHORT)
    for i in range(60):
        stream = model.stream(PROMPT, max_tokens=20, temperature=0.0, ignore_eog=True)
        next(stream)
        errors: list[BaseException] = []

        def read(stream: pywina.Stream = stream, errors: Any = errors) -> None:
            try:
                for _ in stream:
                    pass
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(4)]
        threads.append(threading.Thread(target=stream.close))
        for thread in threads[i % 5 :] + threads[: i % 5]:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert errors == []
        assert model.generate(PROMPT, **SHORT) == text


# ---- threads, processes, signals --------------------------------------------------------------


def test_eight_threads_on_one_model(load_tiny: Load) -> None:
    model = load_tiny(n_threads=1)
    uses = _uses(model)
    wanted = {name: str(use()) for name, use in uses.items() if name not in _UNSTEADY}
    wrong: list[object] = []

    def work(first: int) -> None:
        names = list(wanted)
        for k in range(3 * len(names)):
            name = names[(first * 5 + k) % len(names)]
            try:
                if (got := str(uses[name]())) != wanted[name]:
                    wrong.append((name, got))
            except pywina.StateError as error:  # another one's stream is unfinished
                if "unfinished" not in str(error):
                    wrong.append((name, error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []


#: results that name an object or a time, or depend on what came before
_UNSTEADY = {"completion", "stats", "save_state", "share"}

INTERRUPTED = """
import os, signal, sys, threading, pywina
model = pywina.load(sys.argv[1], n_ctx=20_000, n_threads=1)
other = model.share()
text = model.generate("a", max_tokens=4, temperature=0.0)
for i in range(6):
    use = [lambda: model.generate([65], max_tokens=None, ignore_eog=True),
           lambda: model.generate([65] * 15_000, logits_processors=lambda t, x: x),
           lambda: model.generate_batch([[65] * 9_000] * 9)][i % 3]
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        use()
    except KeyboardInterrupt:
        assert model.generate("a", max_tokens=4, temperature=0.0) == text
        continue
    sys.exit("not interrupted")
model.close()
assert other.generate("a", max_tokens=4, temperature=0.0) == text
"""


def test_interrupts_leave_the_model_usable(write_model: Write) -> None:
    _run(INTERRUPTED, write_model(n_ctx=100_000))


FORKED = """
import os, sys, threading, warnings, pywina
warnings.simplefilter("ignore")
model = pywina.load(sys.argv[1], n_ctx=64, n_threads=2)
other = model.share()
text = other.generate("a", max_tokens=4, temperature=0.0)
stream = model.stream("a", max_tokens=9, temperature=0.0, ignore_eog=True)
next(stream)
held, go = threading.Event(), threading.Event()
def hold():  # what a thread of the parent may hold at the moment of the fork
    with model._handle._idle, other._handle._lock:
        held.set()
        go.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    uses = [lambda: model.tokenize("a"), lambda: next(stream), lambda: model.share(),
            lambda: other.generate([65]), lambda: other.logits([65]), lambda: model.stats]
    for use in uses:
        try:
            use()
        except pywina.StateError as error:
            assert "forked" in str(error), error
        else:
            os._exit(1)
    stream.cancel()
    stream.close()
    model.close()
    model.close()
    del stream, model, other
    with pywina.load(sys.argv[1], n_ctx=64, n_threads=2) as own:
        os._exit(0 if own.generate("a", max_tokens=4, temperature=0.0) == text else 2)
go.set()
thread.join()
assert os.waitpid(child, 0)[1] == 0
assert len(list(stream)) >= 1
assert model.generate("a", max_tokens=4, temperature=0.0) == text
model.close()
assert other.generate("a", max_tokens=4, temperature=0.0) == text
"""


def test_a_forked_child_is_refused_and_harms_nobody(tiny_model: Path) -> None:
    _run(FORKED, tiny_model)


LEAVE = """
import sys, threading, time, pywina
model = pywina.load(sys.argv[1], n_ctx=20_000, n_threads=2)
how = sys.argv[2]
if how in ("handles", "exit"):
    keep = [model, model.share()]
    keep += [m.stream("a", logits_processors=lambda t, x: x) for m in list(keep)]
    next(keep[2]), next(keep[3])
    keep.append(keep)  # only the interpreter's end lets go of it
elif how == "thread":
    def run():
        model.generate([65], max_tokens=None, ignore_eog=True, logits_processors=lambda t, x: x)
    threading.Thread(target=run, daemon=True).start()
    time.sleep(0.1)
elif how == "prompt":
    threading.Thread(target=model.logits, args=([65] * 19_000,), daemon=True).start()
    time.sleep(0.1)
if how == "exit":
    sys.exit(3)
"""


@pytest.mark.parametrize("how", ["handles", "exit", "thread", "prompt"])
def test_leaving_the_interpreter_with_live_objects(write_model: Write, how: str) -> None:
    _run(LEAVE, write_model(n_ctx=100_000), how, code=3 if how == "exit" else 0)
