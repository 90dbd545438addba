"""Checks a built wheel: `python tests/wheel.py dist/*.whl` (the build is left to the workflow)."""

import sys
import zipfile

MAX_MB = 25
NEEDED = (
    "whet/__init__.pyi",
    "whet/py.typed",
    "whet/assets/page/index.html",
    "whet/assets/whet-nano/model.safetensors",
    "whet/assets/whet-pico/model.safetensors",
)
FOREIGN = ("tests/", "studies/", "benchmarks/", "docs/", "examples/", "__pycache__")


def faults(path):
    """What is wrong with the wheel, one line for each fault."""
    with zipfile.ZipFile(path) as wheel:
        names, packed = wheel.namelist(), sum(info.compress_size for info in wheel.infolist())
    yield from (f"{name} is missing" for name in NEEDED if name not in names)
    yield from (f"{name} does not belong" for name in names if any(f in name for f in FOREIGN))
    yield from (f"{n} is outside whet/" for n in names if not n.startswith(("whet/", "whet-")))
    if packed > MAX_MB * 1e6:
        yield f"{packed / 1e6:.1f} MB: expected at most {MAX_MB}"


if __name__ == "__main__":
    found = [f"{path}: {fault}" for path in sys.argv[1:] for fault in faults(path)]
    sys.exit("\n".join(found) or (0 if sys.argv[1:] else "usage: wheel.py WHEEL"))
