"""Folders of the repository, for tests that read its files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BENCHMARKS = ROOT / "benchmarks"
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared"
"""Large files outside the repository: tests that read them skip where it is missing."""
