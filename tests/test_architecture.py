"""The house stands: a floor imports only from floors below, and `import whet` needs little."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import whet
from whet.errors import MissingDependencyError, require

SOURCE = Path(whet.__file__).parent
FLOORS = [
    {"errors", "compat"},
    {"io", "config", "_version"},
    {"maths"},
    {"data"},
    {"select"},
    {"adapt"},
    {"embed"},
    {"space"},
    {"spaces"},
    {"engine"},
    {"evaluate", "serve"},
    {"integrations"},
    {"whet"},  # the package's root: nothing below may import it
    {"cli"},
    {"__main__"},
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
KNOWN = {  # imports that break a rule today, as importer: imported; the fewer the better
    ("whet.adapt.batch_decoding", "whet.adapt.model"),
    ("whet.adapt.sampling", "whet.adapt.model"),
}
FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


@pytest.fixture(scope="module")
def graph():
    """All imports, those inside functions and for type checking too, but for the known ones."""
    graph = grimp.build_graph("whet", cache_dir=None)
    for importer, imported in KNOWN:
        graph.remove_import(importer=importer, imported=imported)
    return graph


def floor_of(module):
    return [*module.split("."), "whet"][1]


def test_every_module_stands_on_a_floor(graph):
    assert {floor_of(module) for module in graph.modules} <= HEIGHT.keys()


def test_floors_point_down(graph):
    upward = [
        f"{importer} imports {imported}"
        for importer in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if floor_of(importer) != floor_of(imported)
        and HEIGHT[floor_of(importer)] <= HEIGHT[floor_of(imported)]
    ]
    assert not upward, "\n".join(upward)


def test_no_module_imports_itself_by_others(graph):
    cycles = {
        tuple(sorted({module, *around}))
        for module in graph.modules
        if (around := graph.find_upstream_modules(module) & graph.find_downstream_modules(module))
    }
    assert not cycles


def test_the_known_exceptions_are_all_still_there():
    graph = grimp.build_graph("whet", cache_dir=None)
    gone = [(a, b) for a, b in KNOWN if not graph.direct_import_exists(importer=a, imported=b)]
    assert not gone, "take these off the list"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_fits(path):
    assert len((SOURCE / path).read_text().splitlines()) <= 400


def test_import_whet_loads_numpy_and_jaxtyping_only():
    code = (
        "import sys, whet, numpy as np; whet.sift(np.ones(2), np.eye(2), 2);"
        "loaded = {name.split('.')[0] for name in sys.modules if not name.startswith('_')};"
        "print(sorted(loaded - {*sys.stdlib_module_names, 'whet'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['jaxtyping', 'numpy']"


def test_every_public_name_loads_and_is_all_that_completion_offers():
    assert dir(whet) == sorted(whet.__all__)
    assert all(getattr(whet, name) is not None for name in whet.__all__)


def test_every_error_is_public_and_ends_in_error():
    kinds = [kind for kind in vars(whet.errors).values() if isinstance(kind, type)]
    errors = {kind.__name__ for kind in kinds if issubclass(kind, Exception)}
    assert errors == {name for name in whet.__all__ if name.endswith("Error")}


@pytest.mark.parametrize(
    "old, new",
    [("Options", "SelectionConfig"), ("Query", "Request"), ("open_space", "DataSpace.open")],
)
def test_an_old_public_name_raises_an_error_that_gives_the_new_one(old, new):
    with pytest.raises(AttributeError, match=rf"whet\.{old} is now whet\.{new}"):
        getattr(whet, old)


def test_the_former_package_compat_names_the_new_one():
    for code in ("import whet.compat.activeft", "from whet.compat import activeft"):
        with pytest.raises(ImportError, match="is now whet.integrations"):
            exec(code, {})


def test_a_missing_dependency_is_named_with_its_extra():
    with pytest.raises(
        MissingDependencyError, match=r"no_such_package is not installed: .*\[eval\]"
    ):
        require("no_such_package", "eval")
