"""The paper's claim on text that every machine has: the source of Python's standard library.

Documents of the space are top-level definitions and what is left of each module; the prompts are
whole files that were held out. The first half of a file is the query, the second half is scored.
"""

import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from whet.evaluate.protocol import Switches
from whet.evaluate.render import curves
from whet.evaluate.run import evaluate, finished
from whet.space.documents import Document
from whet.space.space import DataSpace

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "__pycache__"}
SHORTEST, LONGEST = 1_500, 3_000  # characters of a prompt: a few windows of the bundled model


def demo(
    out: Path,
    *,
    model: str = "whet-nano",
    files: int = 12,
    n: int = 20,
    progress: bool = True,
) -> None:
    """Index the library without `files` of its modules, then sharpen on it for each of them.

    Leaves a data space, the prompts, a run and its curves in `out`; goes on where it stopped.
    """
    library = Path(sysconfig.get_path("stdlib"))
    held_out = set(choose(library, files))
    out.mkdir(parents=True, exist_ok=True)
    space, prompts = out / "stdlib.whet", out / "prompts.jsonl"
    if not space.exists():
        documents = (
            d for path in modules(library) if path not in held_out for d in parts(path, library)
        )
        DataSpace.build(documents, space, progress=progress)
    with prompts.open("w", encoding="utf-8") as file:
        for path in sorted(held_out):
            name = str(path.relative_to(library))
            file.write(json.dumps({"id": name, "text": source(path)[:LONGEST]}) + "\n")
    switches = Switches(model=model, n=n, score_at=(0, 1, 2, 5, 10, 20))
    evaluate(space, prompts, out / "run", switches, progress=progress)
    curves(finished(out / "run"), out / "curves.png")


def show_picks(out: Path) -> str:
    """Which texts each method picked for the prompt that SIFT won by most, repeats marked."""
    rows = finished(out / "run")
    row = min(
        rows, key=lambda r: r["methods"]["sift"]["bits"][-1] / r["methods"]["nearest"]["bits"][-1]
    )
    lines = [
        f"What each method picked for {row['prompt']} (× how often, % of base after the last step):"
    ]
    for method, tried in row["methods"].items():
        counts: dict[str, int] = {}
        for pick in tried["picks"]:
            counts[pick] = counts.get(pick, 0) + 1
        share = 100 * tried["bits"][-1] / row["base_bits"]
        lines.append(f"\n{method}: {share:.1f} %, {len(counts)} different texts")
        lines += [
            f"  {count:>2}× {name}" if count > 1 else f"     {name}"
            for name, count in list(counts.items())[:6]
        ]
        if len(counts) > 6:
            lines.append(f"     … {len(counts) - 6} more")
    return "\n".join(lines) + "\n"


def modules(library: Path) -> Iterator[Path]:
    """The library's source files, tests and bundled applications left out, sorted."""
    for path in sorted(library.rglob("*.py")):
        if not SKIPPED & set(path.relative_to(library).parts):
            yield path


def choose(library: Path, files: int) -> list[Path]:
    """`files` modules to hold out: the same ones every time on the same library."""
    known = [path for path in modules(library) if len(source(path)) >= SHORTEST]
    return random.Random(0).sample(known, files)


def parts(path: Path, library: Path) -> Iterator[Document]:
    """The top-level functions and classes of a module, and the module without them."""
    text, name = source(path), str(path.relative_to(library))
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    lines, rest = text.splitlines(keepends=True), 0
    kept: list[str] = []
    seen: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            kept += lines[rest:first]
            rest = node.end_lineno or first
            seen[node.name] = seen.get(node.name, 0) + 1
            suffix = f"#{seen[node.name]}" if seen[node.name] > 1 else ""
            yield Document(f"{name}:{node.name}{suffix}", "".join(lines[first:rest]), {})
    kept += lines[rest:]
    if text_left := "".join(kept).strip():
        yield Document(name, text_left, {})


def source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return path.read_text(encoding="latin-1")
