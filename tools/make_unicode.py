"""Writes native/src/unicode_data.c: the class of every code point, as a two-stage table.

The Unicode version is fixed (see VERSION): it is the one that the regular expression library
behind Hugging Face's `tokenizers` uses, so that the same text splits in the same places. Python's
own tables are used if they have that version, else those of the package `unicodedata2`:

    pip install unicodedata2==16.0.0
    python tools/make_unicode.py [--check]
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from pathlib import Path
from types import ModuleType

VERSION = "16.0.0"
LIMIT = 0x110000
BLOCK = 128
OUTPUT = Path(__file__).resolve().parent.parent / "native" / "src" / "unicode_data.c"

OTHER, UPPER, LOWER, LETTER, MARK, NUMBER, PUNCTUATION, SYMBOL, SPACE = range(9)
# White_Space of PropList.txt beyond the separators (Z*): tab to carriage return, and next line.
SPACE_CONTROLS = {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85}


def tables() -> ModuleType:
    """The module with the tables of VERSION; exits with a hint if there is none."""
    if unicodedata.unidata_version == VERSION:
        return unicodedata
    try:
        import unicodedata2
    except ImportError:
        sys.exit(f"needs Unicode {VERSION}: pip install unicodedata2=={VERSION}")
    if unicodedata2.unidata_version != VERSION:
        sys.exit(f"needs Unicode {VERSION}, unicodedata2 has {unicodedata2.unidata_version}")
    return unicodedata2


def class_of(data: ModuleType, cp: int) -> int:
    """The class of one code point, as wina_unicode_class numbers them."""
    if cp in SPACE_CONTROLS:
        return SPACE
    category = data.category(chr(cp))
    by_category = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "L": LETTER, "M": MARK, "N": NUMBER}
    by_category |= {"P": PUNCTUATION, "S": SYMBOL, "Z": SPACE}
    return by_category.get(category, by_category.get(category[0], OTHER))


def lines(values: list[int]) -> list[str]:
    """Numbers separated by commas, in lines of at most 100 columns."""
    out, line = [], "   "
    for value in values:
        item = f" {value},"
        if len(line) + len(item) > 100:
            out.append(line)
            line = "   "
        line += item
    return [*out, line]


def generate() -> str:
    """The text of unicode_data.c."""
    data = tables()
    classes = [class_of(data, cp) for cp in range(LIMIT)]
    rows: dict[tuple[int, ...], int] = {}
    blocks = []
    for start in range(0, LIMIT, BLOCK):
        blocks.append(rows.setdefault(tuple(classes[start : start + BLOCK]), len(rows)))
    if len(rows) > 256:
        sys.exit(f"{len(rows)} different rows do not fit a byte")
    out = [
        f"/* unicode_data: classes of the code points of Unicode {VERSION}. Made by",
        " * tools/make_unicode.py; do not edit. */",
        '#include "unicode.h"',
        "",
        "/* clang-format off */",
        f"const uint8_t wina_unicode_block[WINA_UNICODE_LIMIT / {BLOCK}] = {{",
        *lines(blocks),
        "};",
        "",
        f"const uint8_t wina_unicode_rows[][{BLOCK}] = {{",
    ]
    for row in rows:
        text = "".join(map(str, row))
        out.append("    {" + ",".join(text[:48]) + ",")
        out.append("     " + ",".join(text[48:96]) + ",")
        out.append("     " + ",".join(text[96:]) + "},")
    return "\n".join([*out, "};", ""])


def main() -> None:
    """Writes the file, or with --check compares it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the file is not up to date")
    text = generate()
    if parser.parse_args().check:
        if OUTPUT.read_text() != text:
            sys.exit(f"{OUTPUT.name} is not what this script writes")
        return
    OUTPUT.write_text(text)


if __name__ == "__main__":
    main()
