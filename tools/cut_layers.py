"""Writes the first layers of a GGUF model as a smaller file: same weights, fewer blocks.

    python tools/cut_layers.py model.gguf cut.gguf --layers 2

Tests use it: with real weights but only a few layers, two implementations of a sparse forward
pass can be compared closely, before rounding has flipped choices between nearly equal inputs.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import gguf

_BLOCK = re.compile(r"blk\.(\d+)\.")


def _copy_field(writer: gguf.GGUFWriter, field: gguf.ReaderField) -> None:
    """Adds a metadata field as it stands."""
    kind = field.types[0]
    item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, field.contents(), kind, sub_type=item)


def cut_layers(source: str | Path, target: str | Path, n_layers: int) -> None:
    """Copies metadata and tensors, less the blocks from n_layers on.

    Raises ValueError if the model has fewer blocks than that.
    """
    reader = gguf.GGUFReader(str(source))
    arch = str(reader.fields["general.architecture"].contents())
    count = f"{arch}.block_count"
    n_blocks = int(reader.fields[count].contents())
    if not 1 <= n_layers <= n_blocks:
        raise ValueError(f"{source} has {n_blocks} layers, {n_layers} were asked for")
    writer = gguf.GGUFWriter(str(target), arch)
    writer.data_alignment = reader.alignment
    for name, field in reader.fields.items():
        if name == count:
            writer.add_block_count(n_layers)
        elif not name.startswith("GGUF.") and name != "general.architecture":
            _copy_field(writer, field)
    for tensor in reader.tensors:
        block = _BLOCK.match(tensor.name)
        if block is None or int(block[1]) < n_layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    cut_layers(args.source, args.target, args.layers)


if __name__ == "__main__":
    main()
