"""The house stands: a floor imports only from floors below, and `import whet` needs little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import whet

SOURCE = Path(whet.__file__).parent
FLOORS = [
    "errors",
    "settings",
    "maths",
    "select",
    ("space", "adapt"),
    "embedders",
    "spaces",
    "engine",
    ("evaluate", "serve"),
    "cli",
]
HEIGHT = {
    name: height
    for height, floor in enumerate(FLOORS)
    for name in ([floor] if isinstance(floor, str) else floor)
}
FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def floor_of(path):
    return path.parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse((SOURCE / path).read_text())):
        names = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        yield from (name.split(".")[1] for name in names if name.startswith("whet."))


@pytest.mark.parametrize("path", [p for p in FILES if floor_of(p) in HEIGHT], ids=str)
def test_floors_point_down(path):
    own = floor_of(path)
    for other in imported(path):
        assert other == own or HEIGHT[other] < HEIGHT[own], f"{path} imports whet.{other}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_stands_on_a_floor_and_fits(path):
    assert floor_of(path) in {*HEIGHT, "__init__", "__main__", "compat", "assets"}
    assert len((SOURCE / path).read_text().splitlines()) <= 400


def test_import_whet_loads_numpy_and_jaxtyping_only():
    code = (
        "import sys, whet, numpy as np; whet.sift(np.ones(2), np.eye(2), 2);"
        "loaded = {name.split('.')[0] for name in sys.modules if not name.startswith('_')};"
        "print(sorted(loaded - {*sys.stdlib_module_names, 'whet'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['jaxtyping', 'numpy']"


def test_every_public_name_completes_and_loads():
    assert set(whet.__all__) <= set(dir(whet))
    assert all(getattr(whet, name) is not None for name in whet.__all__)
