"""A GGUF checkpoint written again with its matrices in float16, which every peer can read and quantise in its own
way."""

from __future__ import annotations

from pathlib import Path

_FLOAT16 = 1  # general.file_type


def write_float16(source: Path, target: Path) -> Path:
    """Makes `target` where it is missing: the same metadata, vectors in float32. A float16 holds 4- and 8-bit weights
    within a relative 5e-4."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        _write(source, partial)
        partial.rename(target)
    return target


def _write(source: Path, target: Path) -> None:
    import numpy as np
    from gguf import GGUFReader, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            of = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], of)
    writer.add_file_type(_FLOAT16)
    for tensor in reader.tensors:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        writer.add_tensor(tensor.name, values if values.ndim == 1 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
