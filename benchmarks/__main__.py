"""Every benchmark, one after the other: `python -m benchmarks`. Each has options of its own as a module."""

import subprocess
import sys

for name in ("kernels", "engine", "mixtures", "loading", "serving", "scheduling", "rollouts", "audit"):
    print(f"\n== benchmarks.{name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
