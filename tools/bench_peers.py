"""Speed of libwina and of llama.cpp, side by side: same file, machine, threads and tokens.

    python tools/bench_peers.py --setup                        builds llama.cpp (10-20 minutes)
    python tools/bench_peers.py                                every model, to build/bench/*.json
    python tools/bench_peers.py --models 1b-Q4_0,smollm2-135m --threads 2 --quick
    python tools/bench_peers.py --models 1b-Q8_0 --depth 8000  decoding behind a long context
    python tools/bench_peers.py --table [build/bench ...]      tables of what was measured
    python tools/bench_peers.py --plot speed.png [build/bench ...]
    python tools/bench_peers.py --clean                        removes the synthetic models

Both programs are processes that stay alive with the model loaded and take turns: llama.cpp before
and after every run of ours, and the machine's read bandwidth is measured in every round. So the
machine's drift hits both alike, and ratios are taken between neighbours (bench_report.py). Rounds
in which other programs took more than --quiet of the processors are repeated and do not count.

A model is a name that pywina knows, SIZE-TYPE of make_synthetic.py (1b-Q4_0: random weights,
written on first use), or a path. Each model has its own file of results, so that a long run can be
split, and --resume leaves out what is there. --against LIBWINA.SO compares two builds of ours.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bench_report
import make_synthetic
import numpy as np
from bench_report import OURS, PEER
from bench_worker import OthersLoad, Worker, drop_from_page_cache

import pywina
from pywina.hub.fetch import cache_dir, resolve

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
HOME = cache_dir().parent
SYNTHETIC = HOME / "synthetic"
PEER_VENV = HOME / "peers" / "venv"
PEER_PYTHON = PEER_VENV / "bin" / "python"
DEFAULT_OUT = ROOT / "build" / "bench"
MODELS = "smollm2-135m,qwen2.5-coder-0.5b,1b-Q4_0,1b-Q8_0,1b-F16,1b-Q4_K,8b-Q4_0"
ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "asimddp", "i8mm", "sve")
MAX_ATTEMPTS = 2  # so many times --rounds are tried for quiet ones
PAUSE_S = 0.02  # between runs: threads of the program that is to wait stop spinning


def synthetic_shape(name: str) -> tuple[str, str] | None:
    """(size, type) of a name such as 1b-Q4_0."""
    size, _, kind = name.partition("-")
    found = size in make_synthetic.SIZES and kind in make_synthetic.TYPES
    return (size, kind) if found else None


def model_path(name: str) -> Path:
    """The file of a model, which is fetched or written if it is not there."""
    shape = synthetic_shape(name)
    if shape is None or Path(name).exists():
        return resolve(name)
    path = SYNTHETIC / f"{name}.gguf"
    if not path.exists():
        SYNTHETIC.mkdir(parents=True, exist_ok=True)
        print(f"writing {path}", file=sys.stderr)
        make_synthetic.write_synthetic(path, make_synthetic.SIZES[shape[0]], shape[1])
    return path


def setup_peer(venv: Path = PEER_VENV) -> None:
    """Builds llama-cpp-python from its sources for this machine's processor."""
    print(f"building llama.cpp in {venv}: 10-20 minutes", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "cmake", "ninja", "numpy"], check=True)
    env = os.environ | {
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    name = "llama-cpp-python"
    subprocess.run([*pip, "--no-cache-dir", "--no-binary", name, name], check=True, env=env)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "cpu": fields.get("model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in ISA if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "huge_pages": pages.read_text().strip() if pages.exists() else None,
    }


def revision() -> str:
    """The commit of this checkout, with a + if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    done = subprocess.run(
        [*git, "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "?"


class Bench:
    """One model measured on both programs."""

    def __init__(self, args: argparse.Namespace, name: str, title: str) -> None:
        self.args = args
        self.title = title
        self.path = model_path(name)
        self.n_ctx = args.depth + max(args.prompt, args.gen)
        self.programs = [OURS] if args.peer == "none" else [PEER, OURS]

    def start(self, program: str) -> Worker:
        """Starts a program, which loads the model."""
        args = self.args
        common = ["-m", str(self.path), "-t", str(max(args.threads)), "-c", str(self.n_ctx)]
        if program == PEER and args.against is None:
            command = [args.peer, str(TOOLS / "peer_llama.py"), "serve", *common]
            return Worker([*command, "--flash", args.flash])
        env = {}
        if program == PEER:
            env["PYWINA_LIBRARY"] = str(args.against.resolve())
        command = [sys.executable, str(TOOLS / "bench_wina.py"), *common]
        return Worker([*command, "--method", args.method, "--mask", args.mask], env)

    def loads(self) -> Iterator[dict[str, Any]]:
        """Loads of each program from a cold and from a warm page cache, and peak memory. The
        first token is the time from the start of the load to its logits: what one program does
        at load, another may do when it first reads a weight."""
        for _ in range(self.args.loads):
            for program in self.programs:
                for cache in ("cold", "warm"):
                    resident = 1.0
                    if cache == "cold":
                        resident = drop_from_page_cache(self.path)
                        if resident > 0.01:
                            continue  # another program holds it: no cold load can be measured
                    with self.start(program) as worker:
                        first = worker.run("pp", 1)
                        if self.args.prompt:
                            worker.run("pp", self.args.prompt)
                        worker.run("tg", min(16, self.args.gen))
                        yield {
                            "program": program,
                            "cache": cache,
                            "load_s": worker.hello["load_s"],
                            "first_token_s": worker.hello["load_s"] + first["seconds"],
                        } | worker.ask("memory")

    def bandwidth(self) -> dict[str, float]:
        """GB/s that each number of threads reads, right now."""
        done = subprocess.run(
            [self.args.bandwidth, "-t", str(max(2, *self.args.threads)), "-m", "512", "-r", "3"],
            stdout=subprocess.PIPE,
            check=True,
        )
        return {str(row["n_threads"]): row["gb_s"] for row in json.loads(done.stdout)}

    def order(self) -> Iterator[tuple[str, str, int, float]]:
        """(program, test, tokens, sparsity) of one round: the peer around each run of ours."""
        peer = len(self.programs) > 1
        for test, n, sparsities in (
            ("pp", self.args.prompt, [0.0]),
            ("tg", self.args.gen, self.args.sparsity),
        ):
            if n == 0:
                continue
            for sparsity in sparsities:
                if peer:
                    yield PEER, test, n, 0.0
                yield OURS, test, n, sparsity
            if peer:
                yield PEER, test, n, 0.0

    def samples(self, workers: dict[str, Worker], warm: bool = False) -> list[dict[str, Any]]:
        """Runs of one round, in order; warm: each kind of run once, to warm up."""
        taken, seen = [], set()
        for run in self.order():
            if warm and run in seen:
                continue
            seen.add(run)
            program, test, n, sparsity = run
            time.sleep(PAUSE_S)
            answer = workers[program].run(test, n, self.args.depth, sparsity)
            taken.append(
                {
                    "program": program,
                    "test": f"{test}{n}",
                    "sparsity": sparsity,
                    "tok_s": n / answer["seconds"],
                }
                | answer
            )
        return taken

    def rounds(self, workers: dict[str, Worker]) -> Iterator[dict[str, Any]]:
        """For each number of threads, rounds until enough were quiet or too many were not."""
        for n_threads in self.args.threads:
            for worker in workers.values():
                worker.ask("threads", n=n_threads)
            self.samples(workers, warm=True)
            n_quiet = 0
            for _ in range(self.args.rounds * MAX_ATTEMPTS):
                others = OthersLoad(workers.values())
                bandwidth = self.bandwidth()
                taken = self.samples(workers)
                share = others.share()
                n_quiet += share <= self.args.quiet
                yield {
                    "n_threads": n_threads,
                    "others_load": share,
                    "bandwidth": bandwidth,
                    "samples": taken,
                }
                if n_quiet == self.args.rounds:
                    break

    def agreement(self, workers: dict[str, Worker]) -> dict[str, Any] | None:
        """How near the two programs' logits are after the same tokens, dense: same work done."""
        if len(workers) < 2:
            return None
        logits = []
        with tempfile.TemporaryDirectory() as folder:
            for program, worker in workers.items():
                worker.run("tg", self.args.gen or 1, self.args.depth)
                path = Path(folder) / f"{program}.npy"
                worker.ask("logits", path=str(path))
                logits.append(np.load(path).astype(np.float64))
        a, b = logits
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        return {"cosine": cosine, "same_best": bool(a.argmax() == b.argmax())}

    def measure(self) -> Iterator[dict[str, Any]]:
        """The result, whenever a round has been added to it."""
        args = self.args
        result: dict[str, Any] = {
            "name": self.title,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": shlex.join(["tools/bench_peers.py", *sys.argv[1:]]),
            "revision": revision(),
            "machine": machine(),
            "settings": {
                "threads": args.threads,
                "sparsities": args.sparsity,
                "rounds": args.rounds,
                "quiet": args.quiet,
                "prompt": args.prompt,
                "gen": args.gen,
                "depth": args.depth,
                "method": args.method,
                "mask": args.mask,
            },
            "loads": list(self.loads()),
        }
        with ExitStack() as stack:
            workers = {p: stack.enter_context(self.start(p)) for p in self.programs}
            result["programs"] = {program: w.hello for program, w in workers.items()}
            facts = ("tensor_bytes", "tensor_bytes_per_token", "kv_bytes_per_token", "n_params")
            result["model"] = {key: workers[OURS].hello[key] for key in facts}
            result["agreement"] = self.agreement(workers)
            result["rounds"] = []
            for block in self.rounds(workers):
                result["rounds"].append(block)
                result["rows"] = bench_report.row_json(result)
                yield result


def build_bandwidth(folder: Path) -> Path:
    """Compiles tools/bandwidth.c if it is newer than its program."""
    source, program = TOOLS / "bandwidth.c", folder / "bandwidth"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        cc = shlex.split(os.environ.get("CC", "cc"))
        flags = ["-O3", "-march=native", "-pthread"]
        subprocess.run([*cc, *flags, str(source), "-o", str(program)], check=True)
    return program


def run(args: argparse.Namespace) -> None:
    """Measures all models; the tables of what was measured go to stdout."""
    args.out.mkdir(parents=True, exist_ok=True)
    args.bandwidth = build_bandwidth(args.out)
    results = []
    for name in args.models.split(","):
        title = Path(name).stem if Path(name).exists() else name
        suffix = f"-depth{args.depth}" if args.depth else ""
        file = args.out / f"{title}{suffix}{args.tag}.json"
        if args.resume and file.exists():
            continue
        start, result = time.perf_counter(), {}
        part = file.with_suffix(".part")
        for result in Bench(args, name, title).measure():
            part.write_text(json.dumps(result, indent=1), encoding="utf-8")
            block = result["rounds"][-1]
            print(
                f"{title}: round {len(result['rounds'])}, {block['n_threads']} threads, other "
                f"programs took {100 * block['others_load']:.0f}%",
                file=sys.stderr,
            )
        part.replace(file)
        print(f"{file}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        results.append(result)
    if results:
        print(bench_report.markdown(results))


def clean() -> None:
    """Removes the synthetic models."""
    for path in SYNTHETIC.glob("*.gguf*"):
        print(f"removing {path}", file=sys.stderr)
        path.unlink()


def _numbers(kind: type[int] | type[float], high: float) -> Any:
    def parse(text: str) -> list[Any]:
        values = [kind(part) for part in text.split(",")]
        if not all(0 <= value < high for value in values):
            raise ValueError
        return values

    parse.__name__ = f"list of {kind.__name__}"
    return parse


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--setup", action="store_true", help="build llama.cpp, and nothing else")
    mode.add_argument("--table", action="store_true", help="tables of existing results")
    mode.add_argument("--plot", type=Path, metavar="PNG", help="plot of existing results")
    mode.add_argument("--clean", action="store_true", help="remove the synthetic models")
    parser.add_argument("results", type=Path, nargs="*", help="files or folders of results")
    parser.add_argument("--models", default=MODELS, help="names and paths, with commas between")
    parser.add_argument("--threads", type=_numbers(int, 257), default=[2, 1], metavar="N,N")
    parser.add_argument("--sparsity", type=_numbers(float, 1), default=[0.0, 0.4, 0.5, 0.65])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt; 0: none")
    parser.add_argument("--gen", type=int, default=64, help="tokens decoded in a run; 0: none")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the context before a run")
    parser.add_argument("--loads", type=int, default=3, help="loads of each kind; 0: none")
    parser.add_argument("--quiet", type=float, default=0.1, help="share of others that is quiet")
    parser.add_argument("--quick", action="store_true", help="2 rounds, 32 tokens, 1 load")
    parser.add_argument("--method", choices=("wina", "teal"), default="wina")
    parser.add_argument("--mask", choices=("group", "projection"), default="group")
    parser.add_argument("--flash", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--peer", default=os.environ.get("PYWINA_PEER_PYTHON"), metavar="PYTHON")
    parser.add_argument("--setup-if-missing", action="store_true", help="build it if needed, run")
    parser.add_argument("--against", type=Path, metavar="LIBWINA.SO", help="instead of llama.cpp")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--tag", default="", help="put behind the names of result files")
    parser.add_argument("--resume", action="store_true", help="skip models that have results")
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.gen, args.loads = 2, min(args.gen, 32), min(args.loads, 1)
    if args.rounds < 1 or min(args.threads) < 1 or args.prompt + args.gen < 1:
        parser.error("--rounds, --threads and one of --prompt and --gen must be at least 1")
    args.peer = args.peer or str(PEER_PYTHON)
    return args


def require_peer(args: argparse.Namespace) -> None:
    """Ends with a message, or builds llama.cpp, if its interpreter is needed and not there."""
    if args.peer == "none" or args.against is not None or Path(args.peer).exists():
        return
    if not args.setup_if_missing or Path(args.peer) != PEER_PYTHON:
        sys.exit(f"{args.peer} is not there: run --setup first, or use --peer or --peer none")
    setup_peer()


def main() -> None:
    """Runs, or does what the mode says."""
    args = parse_arguments()
    if args.setup:
        setup_peer()
    elif args.clean:
        clean()
    elif args.table:
        print(bench_report.markdown(bench_report.load(args.results or [DEFAULT_OUT])))
    elif args.plot:
        import bench_plot  # matplotlib is needed for nothing else

        bench_plot.plot(bench_report.load(args.results or [DEFAULT_OUT]), args.plot)
    else:
        require_peer(args)
        try:
            run(args)
        except (pywina.WinaError, RuntimeError, ValueError) as error:
            sys.exit(f"bench_peers: {error}")


if __name__ == "__main__":
    main()
