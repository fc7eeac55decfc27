"""Scripts that need several devices: run by themselves, on four that XLA makes of one CPU."""

import os
import subprocess
import sys


def on_four_devices(script: str, flags: str = "") -> subprocess.CompletedProcess[str]:
    """What the script printed; its own process, because the number of devices is fixed at the start."""
    flags = f"--xla_force_host_platform_device_count=4 {flags}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "-c", script]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
