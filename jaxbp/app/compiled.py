"""How the commands compile: what is worth it, and into a cache that outlives the process."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

LARGEST_CACHE = 1 << 30  # bytes; the programs that were longest unused make room


def options() -> dict[str, Any] | None:
    """For XLA on a CPU: no third level of LLVM's optimisations.

    They take a third of a small network's compile time, most of it in unrolled random numbers. Six
    networks of `configs/` had the same bits without them, as fast.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def compiled(fn: Callable[..., Any]) -> Any:
    """`jax.jit(fn)` with these options."""
    return jax.jit(fn, compiler_options=options())


def cache_folder() -> Path:
    """The user's own, one a machine: programs are for its processor."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "jaxbp" / (platform.node() or "here")


def use_cache() -> None:
    """Keep compiled programs in `cache_folder`, unless the user has told JAX where, or that it shall not.

    Whoever has set `JAX_COMPILATION_CACHE_DIR` (to nothing, too) or `JAX_ENABLE_COMPILATION_CACHE` wins,
    as does a program that has configured JAX itself before it calls a command.
    """
    told = {"JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"} & os.environ.keys()
    if told or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written: compile every time
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if find_spec("filelock"):  # which JAX needs to hold it to a size
        jax.config.update("jax_compilation_cache_max_size", LARGEST_CACHE)
