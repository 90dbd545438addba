"""What a number depends on in addition to its configuration: data space, versions, machine, commit."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whet.space.space import DataSpace


def peak_mib() -> float:
    """Peak memory of this process so far, in MiB; NaN on Windows."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def space_record(space: DataSpace) -> dict[str, Any]:
    """A description that identifies a data space: it changes when documents or embeddings do.

    The hash covers all ids and up to 64 texts; the fingerprint is that of the embedder.
    """
    digest = hashlib.sha256()
    for name in space.ids:
        digest.update(f"{name}\0".encode())
    for text in space.texts(space.rows[:: max(1, len(space) // 64)]):
        digest.update(f"{text}\0".encode())
    return {
        "documents": len(space),
        "embedder": space.embedder.name,
        "fingerprint": space.embedder.fingerprint,
        "sha256": digest.hexdigest()[:16],
    }


def same_space(one: Any, other: Any) -> bool:
    """Whether two descriptions are of one data space.

    Fingerprints are compared if both have one: earlier versions did not record it.

    >>> same_space({"sha256": "0"}, {"sha256": "0", "fingerprint": "1"})
    True
    """
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return bool(one == other)
    if "fingerprint" in one and "fingerprint" in other:
        return one == other
    return {**one, "fingerprint": None} == {**other, "fingerprint": None}


def provenance() -> dict[str, Any]:
    """Versions of packages, the machine, and the commit of whet."""
    packages = ("whet", "numpy", "scikit-learn", "torch", "transformers")
    return {
        "versions": {name: version(name) for name in packages},
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "gpu": _gpu(),
            "system": platform.platform(),
        },
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of whet, if it runs from a clone of its repository."""
    root, git = Path(__file__).parents[3], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    result = subprocess.run(
        [git, "describe", "--always", "--dirty"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None


def _gpu() -> str | None:
    import torch  # not needed to read a run

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")
