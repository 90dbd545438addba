import ast
import sysconfig
from pathlib import Path

import pytest

from whet.evaluate.demo import LONGEST, PIECE, choose, modules, parts, pieces, source

LIBRARY = Path(sysconfig.get_path("stdlib"))


def test_pieces_lose_no_line_and_keep_to_the_length():
    lines = [f"line {i} " + "x" * (i % 90) + "\n" for i in range(300)]
    made = list(pieces("name", lines))
    assert "\n".join(piece.text for piece in made) == "".join(lines).strip()
    assert all(len(piece.text) <= PIECE for piece in made)
    assert len({piece.id for piece in made}) == len(made) > 3


def test_a_line_too_long_is_a_piece_of_its_own_and_blank_pieces_are_none():
    made = [p.text for p in pieces("n", ["a\n", "b" * 2 * PIECE + "\n", "c\n"])]
    assert [text[0] for text in made] == ["a", "b", "c"]
    assert list(pieces("n", ["\n", "  \n"])) == []


def test_a_module_comes_whole_and_by_definition():
    path = LIBRARY / "bisect.py"
    made = {document.id: document.text for document in parts(path, LIBRARY)}
    defined = {n.name for n in ast.parse(source(path)).body if isinstance(n, ast.FunctionDef)}
    assert {f"bisect.py:{name}" for name in defined} <= made.keys() and "bisect.py" in made


def test_the_same_files_are_held_out_every_time():
    once, twice = choose(LIBRARY, 12), choose(LIBRARY, 12)
    assert once == twice and len(set(once)) == 12
    assert all(len(source(path)) >= LONGEST // 2 for path in once)
    assert not any("test" in path.parts for path in modules(LIBRARY))
    with pytest.raises(ValueError, match="files is 0: expected 1 to"):
        choose(LIBRARY, 0)
