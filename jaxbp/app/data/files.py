"""Arrays from files: IDX, .npy, .npz and .csv, each fault a line that names the file."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxbp.app.data.cells import read_cells
from jaxbp.layer import InputError

TABLES = (".csv", ".tsv", ".txt")  # whatever separates their cells
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def require(path: Path) -> Path:
    """`path` if it is a file that can be there, else an `InputError`."""
    if not path.is_file():
        what = "is a folder, expected a file" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}")
    return path


def read_idx(path: Path) -> np.ndarray:
    """An IDX file: two zero bytes, a type, the number of axes, their sizes (big-endian), the data."""
    raw = require(path).read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(f"{path}: truncated or not gzip: {error}") from None
    if len(raw) < 4:
        raise InputError(f"{path}: truncated: expected an IDX header of 4 bytes, got {len(raw)}")
    if raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES or not raw[3]:
        raise InputError(
            f"{path}: not an IDX file: expected a magic number such as 00000803, got {raw[:4].hex()}"
        )
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise InputError(f"{path}: truncated: expected a header of {start} bytes, got {len(raw)}")
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    dtype = np.dtype(IDX_TYPES[raw[2]])
    expected, got = math.prod(shape) * dtype.itemsize, len(raw) - start
    if got != expected:
        fault = "truncated" if got < expected else "too long"
        raise InputError(
            f"{path}: {fault}: expected {expected} bytes of data for shape {shape}, got {got}"
        )
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_named(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz by their names."""
    require(path)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("one array without a name, as in an .npy")
            return {name: loaded[name] for name in loaded.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    if "Object arrays" in str(error):
        return (
            f"{path}: holds Python objects, which are pickles and are not read; save arrays of numbers, "
            "and labels as text: y.astype(str)"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: truncated or not a NumPy file: {reason}"


def read_arrays(path: Path, names: Sequence[str] = ()) -> list[np.ndarray]:
    """The named arrays of an .npz; or the one array of an .npy, a table, or an .npz that has no other."""
    require(path)
    if path.suffix.lower() in TABLES:
        cells = read_cells(path)
        return [cells.numbers(range(cells.width))]
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path}: expected a .csv, .tsv, .npy or .npz file")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return [loaded]
            wanted = names or (loaded.files if len(loaded.files) == 1 else ("x",))
            for name in wanted:
                if name not in loaded.files:
                    raise InputError(
                        f"{path}: expected an array {name!r}, got {', '.join(loaded.files) or 'none'}"
                    )
            return [loaded[name] for name in wanted]
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(_unreadable(path, error)) from None
