"""Loads a model in this process, fills its context, and tells what memory that took.

    python memory_probe.py MODEL '{"n_ctx": 256}' [hold]

One JSON object on stdout: the plan, and the largest resident memory less that before the load. With
`hold` it then waits for the end of its standard input, the model being loaded.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pywina


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """See the module's text."""
    path, options = sys.argv[1], json.loads(sys.argv[2])
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the imports
    before = _status("VmRSS")
    model = pywina.load(path, **options)
    text = "It was a bright cold day in April, and the clocks were striking thirteen. "
    prompt = (model.tokenize(text) * model.info.n_ctx)[: model.info.n_ctx - 4]
    model.generate(prompt, max_tokens=4, temperature=0, ignore_eog=True)
    peak = _status("VmHWM") - before
    plan = dataclasses.asdict(model.plan_memory())
    print(json.dumps({"peak_bytes": peak, "plan": plan}), flush=True)
    if len(sys.argv) > 3:
        sys.stdin.read()
    model.close()


if __name__ == "__main__":
    main()
