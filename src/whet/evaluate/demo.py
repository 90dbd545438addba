"""The paper's claim on text that every machine has: the source of Python's standard library.

Documents of the space are modules and their top-level definitions, in pieces of about a window;
the prompts are files that were held out, cut at two pieces. The first half of each is the query,
the second half is scored.
"""

import ast
import json
import random
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from whet.data.documents import Document
from whet.evaluate.config import EvalConfig
from whet.evaluate.dataset import EvalData
from whet.evaluate.report.render import curves
from whet.evaluate.results import Run
from whet.evaluate.runner import evaluate
from whet.select.config import SelectionConfig
from whet.space.space import DataSpace

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "__pycache__"}
SHORTEST, LONGEST = 1_500, 3_000  # characters of a prompt
PIECE = 1_500  # characters of a document: about one window


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
    config = EvalConfig(
        model=model, eval_steps=(0, 1, 2, 5, 10, 20), selection=SelectionConfig(n=n)
    )
    library = Path(sysconfig.get_path("stdlib"))
    held_out = choose(library, files)
    out.mkdir(parents=True, exist_ok=True)
    space, prompts = out / f"stdlib-without-{files}.whet", out / "prompts.jsonl"
    if not space.exists():
        kept = (path for path in modules(library) if path not in held_out)
        documents = (part for path in kept for part in parts(path, library))
        DataSpace.build(documents, space, progress=progress)
    with prompts.open("w", encoding="utf-8") as file:
        for path in held_out:
            name = str(path.relative_to(library))
            file.write(json.dumps({"id": name, "text": source(path)[:LONGEST]}) + "\n")
    data = EvalData(space=str(space), prompts=str(prompts))
    evaluate(data, out / "run", config, progress=progress)
    curves(Run.open(out / "run"), out / "curves.png")


def show_picks(out: Path) -> str:
    """Which texts each method picked for the prompt that SIFT won by most, repeats marked."""
    run = Run.open(out / "run")
    at = int(np.argmin(run.bits("sift") / run.bits("nearest")))
    prompt = run.prompts["prompt"][at].as_py()
    lines = [f"What each method picked for {prompt} (× how often, % of base after the last step):"]
    for method in run.methods:
        counts = Counter(run.picks(prompt, method))
        share = run.ratio(method)[at]
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
    if not 1 <= files <= len(known):
        raise ValueError(
            f"files is {files}: expected 1 to {len(known)}, as many as are long enough"
        )
    return sorted(random.Random(0).sample(known, files))


def parts(path: Path, library: Path) -> Iterator[Document]:
    """A module in pieces, then each of its top-level functions and classes, in pieces too."""
    text, name = source(path), str(path.relative_to(library))
    lines = text.splitlines(keepends=True)
    yield from pieces(name, lines)
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    seen: Counter[str] = Counter()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            seen[node.name] += 1
            again = f"#{seen[node.name]}" if seen[node.name] > 1 else ""
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            yield from pieces(f"{name}:{node.name}{again}", lines[first : node.end_lineno])


def pieces(name: str, lines: list[str]) -> Iterator[Document]:
    """`lines` in documents of at most about `PIECE` characters, cut between lines.

    A gradient step reads one context of a text: what is longer would never be learned from.
    """
    start, size, number = 0, 0, 1
    for end, line in enumerate([*lines, ""]):
        if end > start and (size + len(line) > PIECE or end == len(lines)):
            if text := "".join(lines[start:end]).strip():
                yield Document(f"{name}[{number}]" if number > 1 else name, text, {})
            start, size, number = end, 0, number + 1
        size += len(line)


def source(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return path.read_text(encoding="latin-1")
