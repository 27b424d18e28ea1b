"""Build hook of the wheel: runs make, and puts the library, its header and the program into
pywina/lib. They depend on the platform but not on the Python version, and the tag says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class WinaBuildHook(BuildHookInterface):
    """Adds the native part. An editable install uses it where make leaves it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        make = shutil.which(os.environ.get("MAKE", "make").split()[0]) or shutil.which("make")
        if make is None:
            raise RuntimeError("pywina needs make and a C compiler to be built; install them")
        # This may run under another make, whose job server and variables are not ours.
        environment = {
            k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
        }
        jobs = str(os.cpu_count() or 1)
        build = os.environ.get("PYWINA_BUILD", "build")
        # tools/make_wheels.py builds for other processors and knows which systems a wheel suits.
        cross = os.environ.get("PYWINA_CROSS")
        command = [make, "-j", jobs, f"BUILD={build}", "native"] + (
            [f"CROSS={cross}"] * bool(cross)
        )
        subprocess.run(command, cwd=root, check=True, env=environment)
        build_data["pure_python"] = False
        platform = os.environ.get("PYWINA_PLATFORM") or next(platform_tags())
        build_data["tag"] = f"py3-none-{platform}"
        if version == "editable":
            return
        build_data["force_include"].update(
            {
                str(root / build / "lib" / "libwina.so"): "pywina/lib/libwina.so",
                str(root / build / "bin" / "wina"): "pywina/lib/wina",
                str(root / "native" / "include" / "wina.h"): "pywina/lib/wina.h",
            }
        )
