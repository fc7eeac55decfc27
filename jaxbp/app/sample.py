"""`jaxbp sample RUN --prompt TEXT`: text from a trained network, one byte after another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxbp.app.data.files import require
from jaxbp.app.results import Arguments
from jaxbp.app.run import keep_programs, reload
from jaxbp.app.text import VOCABULARY, decode, encode
from jaxbp.layer import InputError, require_whole
from jaxbp.models.generate import make_generator


def sample(argv: Sequence[str]) -> int:
    """Print the prompt and what the network makes of it; every token is computed once."""
    parser = Arguments("sample", "let a trained network go on with a text")
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/gpt")
    parser.add_argument("--prompt", default="def ", help="how the text begins (default: 'def ')")
    parser.add_argument("--prompt-file", metavar="FILE", help="a file with how it begins instead")
    parser.add_argument("--length", type=int, default=400, help="bytes to add (default: 400)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest byte (default: 0.8)"
    )
    parser.add_argument("--top", type=int, help="draw among so many likeliest bytes only")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    given = parser.parse_args(argv)
    prompt = _prompt(given)
    require_whole("sample", **{"--length": given.length})
    keep_programs(given.run)
    task, params = reload(given.run)
    if task.data.outputs != VOCABULARY or not np.issubdtype(task.data.x.dtype, np.integer):
        raise InputError(f"{given.run}: is no network for text (data {task.data.name})")
    total = len(prompt) + given.length
    generate = make_generator(task.net, total, given.temperature, given.top)
    print(decode(np.asarray(generate(params, prompt[None], jax.random.key(given.seed)))[0]))
    return 0


def _prompt(given: argparse.Namespace) -> np.ndarray:
    """The prompt's bytes, whatever they are: every byte is a token."""
    if given.prompt_file is None:
        if not given.prompt:
            raise InputError("--prompt: expected at least one character, got none")
        return encode(given.prompt)
    raw = require(Path(given.prompt_file)).read_bytes()
    if not raw:
        raise InputError(f"--prompt-file: expected at least one byte in {given.prompt_file}, got none")
    return np.frombuffer(raw, np.uint8)
