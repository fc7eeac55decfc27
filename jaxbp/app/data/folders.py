"""Images in folders, a folder for every class; read by Pillow, which comes with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from jaxbp.app.data.dataset import BYTES, Data, Dataset, TestShare, split
from jaxbp.app.data.description import fingerprint
from jaxbp.app.data.labels import seen_once, several
from jaxbp.app.schema import Count, Whole
from jaxbp.layer import InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SHOWN = 3  # files in a note


class Images(Data, frozen=True, kw_only=True):
    """Your own images: a folder with a folder for every class, named after it, with its images."""

    name: str = "images"
    """which data set"""
    path: str = "images"
    """the folder with a folder for every class"""
    test_path: str = ""
    """a second such folder whose images are held out, in the place of a share of the first"""
    size: Annotated[tuple[Count, ...], Meta(max_length=2)] = ()
    """height and width that images are brought to, such as 32 32; empty where all have the same"""
    grey: bool = False
    """one channel in the place of three colours, as where no image has any"""
    test_share: TestShare = 0.2
    """share of the images that is held out, the same of every class"""
    seed: Whole = 0
    """which images are held out"""

    def load(self) -> Dataset:
        if len(self.size) == 1:
            raise InputError(f"data.size: expected a height and a width, got {list(self.size)}")
        names, files, labels, notes = _listed(Path(self.path))
        first = len(files)
        if self.test_path:
            test_names, test_files, test_labels, more = _listed(Path(self.test_path))
            unknown = sorted(set(test_names) - set(names))
            if unknown:
                raise InputError(
                    f"{self.test_path}: expected the classes of {self.path}, {', '.join(names)}, "
                    f"got {unknown[0]}"
                )
            files, notes = files + test_files, notes + more
            labels = labels + [names.index(test_names[k]) for k in test_labels]
        raw = read_images(files, tuple(self.size), True if self.grey else None)
        y = np.asarray(labels, np.int32)
        train, test = np.arange(first), np.arange(first, len(y))
        if not self.test_path:
            train, test = split(y, self.test_share, self.seed)
        x = BYTES.apply(raw)
        return Dataset(
            self.name,
            x[train],
            y[train],
            x[test],
            y[test],
            len(names),
            names,
            scale=BYTES,
            image=raw.shape[1:],
            pixels=True,
            notes=notes + seen_once(y[train], y[test], names),
            fingerprint=fingerprint([raw], [y]),
        )


def _listed(root: Path) -> tuple[tuple[str, ...], list[Path], list[int], tuple[str, ...]]:
    """`(classes, files, the class of each, notes)` of a folder of folders."""
    if not root.is_dir():
        what = "is a file, expected a folder" if root.exists() else "no such folder"
        raise InputError(f"{root}: {what} (with a folder of images for every class)")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = [(p.name, image_files(p)) for p in folders]
    found = [(name, files) for name, files in found if files]
    names = tuple(name for name, _ in found)
    if not names:
        deeper = [p.name for p in folders if any(inner.is_dir() for inner in p.iterdir())]
        found = "the images lie in it without one" if image_files(root) else "there is none"
        if deeper:  # as `train/cat` and `test/cat`
            found = f"{deeper[-1]} has folders itself: data.path is one such, data.test_path another"
        raise InputError(f"{root}: expected a folder for every class, with its images in it; {found}")
    several(names, str(root), sum(len(files) for _, files in found))
    others = [p.name for folder in folders for p in sorted(folder.iterdir()) if _is_other(p)]
    more = ", …" if len(others) > SHOWN else ""
    notes = (f"left out, since they are no images: {', '.join(others[:SHOWN])}{more}",)
    labels = [k for k, (_, files) in enumerate(found) for _ in files]
    return names, [p for _, files in found for p in files], labels, notes if others else ()


def image_files(folder: Path) -> list[Path]:
    """The images right in a folder, by their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES and p.is_file())


def _is_other(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in IMAGES and not path.name.startswith(".")


def read_images(
    files: Sequence[Path], size: tuple[int, ...] = (), grey: bool | None = None
) -> np.ndarray:
    """`[n, height, width, channels]`, bytes, one channel or three.

    Brought to `size` if it is given, and else all of the same. `grey=None` is one channel where no image
    has colours. Turned as their camera says; what is transparent is white.
    """
    pictures = [_opened(path) for path in files]
    if grey is None:
        grey = all(picture.mode in ("1", "L", "LA") for picture in pictures)
    arrays = [_pixels(picture, size, grey) for picture in pictures]
    for path, array in zip(files, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = [" × ".join(map(str, a.shape[:2])) for a in (arrays[0], array)]
            raise InputError(
                f"{path}: has {sizes[1]} pixels, but {files[0]} has {sizes[0]}; "
                "data.size, such as 32 32, brings all to the same"
            )
    return np.stack(arrays)


def _opened(path: Path) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode.startswith(("I", "F")):
                raise InputError(
                    f"{path}: expected an image of 8 bits a channel, got mode {picture.mode}"
                )
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise InputError(f"{path}: is no image that can be read") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: truncated or no image: {error}") from None


def _pixels(picture: Any, size: tuple[int, ...], grey: bool) -> np.ndarray:
    from PIL import Image

    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if grey else "RGB")
    if size and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(picture, np.uint8)
    return array[..., None] if grey else array
