"""What a step frees is there for the next one: counted in page faults."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from jaxbp.app.memory import keep_memory
kept = keep_memory() if sys.argv[1] == "keep" else None
import jax, jax.numpy as jnp
x = jnp.ones((1000, 999))
w = jnp.ones((999, 15001))  # a product of 60 MB between two, in 15,000 pages
step = jax.jit(lambda x, w: jnp.tanh(x @ w) @ w.T)
count, faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
for _ in range(11):
    before = count()
    step(x, w).block_until_ready()
    faults.append(count() - before)
print(kept, sorted(faults)[5])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc than glibc's")
def test_steps_take_no_new_memory():
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env["JAX_PLATFORMS"] = "cpu"

    def faults(word, **more):
        ran = subprocess.run(
            [sys.executable, "-c", STEPS, word],
            env=env | more,
            capture_output=True,
            text=True,
            check=True,
        )
        kept, count = ran.stdout.split()
        return kept, float(count)

    kept, few = faults("keep")
    assert kept == "True"
    assert few < 1500  # without, 15,000
    told, _ = faults("keep", MALLOC_ARENA_MAX="2")
    assert told == "False"  # whoever has said how malloc shall go is obeyed
