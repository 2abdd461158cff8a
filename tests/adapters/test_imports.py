"""The package serves a control plane without torch and an engine without Django."""

import subprocess
import sys
from pathlib import Path

import adapters

FORBIDDEN = ("torch", "transformers", "peft", "django", "safetensors")


def test_no_module_of_the_package_brings_torch_or_django_in() -> None:
    folder = Path(adapters.__file__).parent
    paths = (path.relative_to(folder.parent).with_suffix("") for path in folder.rglob("*.py"))
    names = sorted(".".join(path.parts) for path in paths if path.stem != "__init__")
    assert len(names) > 8
    script = f"import sys, {', '.join(names)}; print([name for name in {FORBIDDEN!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
