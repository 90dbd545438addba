"""Layers import only from lower layers, folders stay small, and `import whet` loads little."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
from support.paths import ROOT

import whet
from whet.errors import EXTRAS, MissingDependencyError, require

SOURCE = Path(whet.__file__).parent
LAYERS = [  # from the lowest to the highest
    {"errors", "compat"},
    {"locks"},
    {"io", "hub", "config", "_version"},
    {"maths"},
    {"data"},
    {"select"},
    {"adapt"},
    {"embed"},
    {"space"},
    {"engine"},
    {"evaluate", "serve"},
    {"integrations"},
    {"whet"},  # the package itself: no module imports the public names from it
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


@pytest.fixture(scope="module")
def graph():
    """All imports, including those inside functions and for type checkers."""
    return grimp.build_graph("whet", cache_dir=None)


def layer_of(module):
    return [*module.split("."), "whet"][1]


def test_every_module_belongs_to_a_layer(graph):
    assert {layer_of(module) for module in graph.modules} <= LEVEL.keys()


def test_layers_import_only_from_lower_layers(graph):
    upward = [
        f"{importer} imports {imported}"
        for importer in sorted(graph.modules)
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if layer_of(importer) != layer_of(imported)
        and LEVEL[layer_of(importer)] <= LEVEL[layer_of(imported)]
    ]
    assert not upward, "\n".join(upward)


def test_there_are_no_import_cycles(graph):
    cycles = {
        tuple(sorted({module, *around}))
        for module in graph.modules
        if (around := graph.find_upstream_modules(module) & graph.find_downstream_modules(module))
    }
    assert not cycles


def test_a_module_has_at_most_430_lines():
    lines = {str(path): len((SOURCE / path).read_text().splitlines()) for path in FILES}
    assert not {path: count for path, count in lines.items() if count > 430}


def test_a_folder_holds_at_most_twelve_modules():
    folders = [path.parent.as_posix() for path in FILES if path.name != "__init__.py"]
    large = {folder: folders.count(folder) for folder in set(folders)}
    assert not {f"{f}: {n}" for f, n in large.items() if n > 12}


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
    with pytest.raises(MissingDependencyError, match=r"no_such_package is not installed: .*\[eval"):
        require("no_such_package", "eval")


def test_the_extra_of_each_package_is_the_one_that_installs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {"faiss-cpu": "faiss", "markdown-it-py": "markdown_it", "scikit-learn": "sklearn"}
    for extra, packages in EXTRAS.items():
        listed = project["optional-dependencies"][extra]
        installed = {re.split(r"[>=\[]", line)[0] for line in listed} - {"whet"}
        assert sorted(packages) == sorted(names.get(i, i.replace("-", "_")) for i in installed)


CORE = """
import sys
from importlib.machinery import PathFinder
allowed = {"whet", "numpy", "jaxtyping", "wadler_lindig", "click", *sys.stdlib_module_names}
class OnlyCore(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return super().find_spec(name, path, target) if name.split(".")[0] in allowed else None
sys.meta_path[:] = [OnlyCore if finder is PathFinder else finder for finder in sys.meta_path]
from whet.cli import main
for words in (["--version"], *(line.split() for line in sys.argv[1:])):
    try: main(words)
    except SystemExit as done: print(words[0], done.code, file=sys.stderr)
"""


def test_without_extras_arrays_are_selected_and_every_command_names_its_extra(tmp_path):
    """`pip install whet` brings NumPy, jaxtyping and click; other packages are hidden here."""
    (tmp_path / "t.jsonl").write_text('{"text": "bees"}\n')
    verbs = {
        "index t.jsonl s.whet": "space",
        "select s.whet bees": "space",
        "space info s.whet": "space",
        "report run": "space",
        "eval s.whet --prompts t.jsonl --out run": "adapt",
        "score s.whet bees --prompt a": "adapt",
        "generate s.whet bees": "adapt",
        "serve s.whet": "serve",
    }
    arrays = "import whet, numpy as np; assert len(whet.sift(np.ones(2), np.eye(2), 2)) == 2"
    code = CORE + arrays
    done = subprocess.run(
        [sys.executable, "-c", code, *verbs], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    found = [re.findall(r"not installed: run `pip install 'whet\[(\w+)\]'`$", e) for e in errors]
    assert found == [[extra] for extra in verbs.values()], done.stderr
