"""python -m pywina: the same as the `pywina` program."""

import sys

from .cli import main

sys.exit(main())
