import ast
import sysconfig
from pathlib import Path

import pytest

from whet.evaluate.demo import LONGEST, choose, modules, parts, source

LIBRARY = Path(sysconfig.get_path("stdlib"))


def test_a_module_comes_whole_and_by_definition():
    path = LIBRARY / "bisect.py"
    made = {document.id: document.text for document in parts(path, LIBRARY)}
    defined = {n.name for n in ast.parse(source(path)).body if isinstance(n, ast.FunctionDef)}
    assert {f"bisect.py:{name}" for name in defined} == made.keys() - {"bisect.py"}
    assert made["bisect.py"] == source(path) and made["bisect.py:insort_left"] in source(path)


def test_the_same_files_are_held_out_every_time():
    once, twice = choose(LIBRARY, 12), choose(LIBRARY, 12)
    assert once == twice and len(set(once)) == 12
    assert all(len(source(path)) >= LONGEST // 2 for path in once)
    assert not any("test" in path.parts for path in modules(LIBRARY))
    with pytest.raises(ValueError, match="files is 0: expected 1 to"):
        choose(LIBRARY, 0)
