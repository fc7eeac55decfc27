"""Text as tokens: bytes of a file, a folder, or the interpreter's own standard library.

Every byte is a token, so the vocabulary has 256 entries, any file can be read and any token written
back. A network sees windows of `length` bytes and predicts the byte after each.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np

from jaxbp.layer import InputError

VOCABULARY = 256
ELSEWHERE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def standard_library() -> list[Path]:
    """The interpreter's own Python sources in a fixed order, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (p for p in root.rglob("*.py") if not ELSEWHERE & set(p.relative_to(root).parts))
    return sorted(files, key=lambda p: p.relative_to(root).as_posix())


def text_files(path: str) -> list[Path]:
    """The files of `path`: itself, or all in a folder, in a fixed order; `""` is the standard library."""
    if not path:
        return standard_library()
    root = Path(path)
    if not root.exists():
        raise InputError(f"{root}: no such file or folder")
    return [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())


def read_parts(path: str = "", test_share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """`(training, held-out)` bytes. Whole files are held out, spread evenly; of one file, its end."""
    files = text_files(path)
    texts = [np.frombuffer(p.read_bytes(), np.uint8) for p in files]
    texts = [text for text in texts if text.size]
    if not texts:
        raise InputError(f"{path or 'standard library'}: expected text, got no bytes")
    if len(texts) == 1:
        cut = round((1 - test_share) * texts[0].size)
        return texts[0][:cut], texts[0][cut:]
    held = [int((i + 1) * test_share) > int(i * test_share) for i in range(len(texts))]
    parts = [[t for t, h in zip(texts, held, strict=True) if h == side] for side in (False, True)]
    if not all(parts):
        raise InputError(f"{path}: {len(texts)} files are too few to hold {test_share:.0%} out")
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def windows(text: np.ndarray, length: int, part: str = "of text") -> tuple[np.ndarray, np.ndarray]:
    """`(x, y)`, both `[count, length]`: windows side by side, and the byte after each of their bytes.

    Every byte but the first is predicted once; the rest that fills no window is left out.
    """
    count = (text.size - 1) // length
    if count < 1:
        raise InputError(
            f"text: expected more than {length} bytes {part} for a window (data.length), got {text.size}"
        )
    x, y = text[: count * length], text[1 : count * length + 1]
    return x.reshape(count, length), y.reshape(count, length).astype(np.int32)


def spread(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` of the windows, as far apart as they can be; all for 0 or where there are no more."""
    if not 0 < count < len(x):
        return x, y
    rows = np.arange(count) * len(x) // count
    return x[rows], y[rows]


def encode(text: str) -> np.ndarray:
    """A text as tokens; bytes of the command line that are no UTF-8 come as they are (PEP 383)."""
    try:
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    except UnicodeEncodeError as error:
        raise InputError(
            f"text: expected characters that UTF-8 can write, got {text[error.start]!r} at {error.start}"
        ) from None


def decode(tokens: np.ndarray) -> str:
    """Tokens as text; bytes that are no UTF-8 become `�`."""
    return np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")
