"""What llama.cpp makes of our bad files, each in a process of its own with limits.

    ~/.cache/pywina/peers/venv/bin/python tools/bad_peers.py FOLDER [--json FILE]

FOLDER is what tests/bad/make_bad.py writes. Needs llama-cpp-python, nothing of pywina. A file is
loaded whole, without memory mapping tricks or a GPU; what loads evaluates one token. Outcomes:
refused, loads, killed by signal N, over 10 s; besides, the highest memory and time of a refusal.
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

os.environ["GGML_NO_BACKTRACE"] = "1"  # an assertion need not start a debugger

import llama_cpp

SECONDS, MEMORY = 10, 4 << 30


@llama_cpp.llama_log_callback
def silent(_level: int, _text: bytes, _user: object) -> None:
    pass


def load(path: Path) -> int:
    """In the child: 0 if the file is refused, 3 if it loads."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        return 0
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_threads = 16, 1
    context = llama_cpp.llama_init_from_model(model, options)
    if context:
        token = (ctypes.c_int32 * 1)(1)
        llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1))
    return 3


def judge(path: Path) -> tuple[str, float, float]:
    """Outcome, seconds of processor time and MB beyond those of the process that forks."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os._exit(load(path))
    end = time.monotonic() + 60
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done or time.monotonic() > end:
            break
        time.sleep(0.002)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    more = max(0, usage.ru_maxrss - before) / 1e3
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        limit = number in (signal.SIGXCPU, signal.SIGKILL)
        return ("over the time limit" if limit else signal.Signals(number).name), seconds, more
    return {0: "refused", 3: "loads"}.get(os.WEXITSTATUS(status), "ends the process"), seconds, more


def main() -> None:
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    results = {p.stem: judge(p) for p in sorted(Path(sys.argv[1]).glob("*.gguf"))}
    good = results.pop("good")
    print(f"llama-cpp-python {llama_cpp.__version__}; the valid file: {good[0]}")
    groups: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, (outcome, _, _) in results.items():
        groups[name.split("-")[0]][outcome] += 1
    for group, counts in groups.items():
        print(f"{group}: {sum(counts.values())} files: {dict(counts)}")
    for name, (outcome, _, _) in results.items():
        if outcome not in ("refused", "loads"):
            print(f"{name}: {outcome}")
    refused = [r for r in results.values() if r[0] == "refused"]
    print(
        f"refused: at most {max(r[1] for r in refused):.3f} s, {max(r[2] for r in refused):.0f} MB"
    )
    if "--json" in sys.argv:
        Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
