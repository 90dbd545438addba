"""A demonstration of the paper's claim on the source of Python's standard library.

The documents are modules and their top-level definitions, in pieces of about one context window.
The prompts are held-out files, cut after two pieces. In the paper's protocol each is both the query
and what is scored; in the held-out one, the first half is the query and the second half is scored.
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
    protocol: str = "paper",
    progress: bool = True,
) -> Run:
    """Index the library without `files` of its modules, then evaluate on each of those.

    Writes a data space, the prompts, a run for each protocol and its curves to `out`; an interrupted
    demo resumes.
    """
    config = EvalConfig.from_table(
        {"model": model, "n": n, "eval_steps": [0, 1, 2, 5, 10, 20], "protocol": protocol}
    )
    library = Path(sysconfig.get_path("stdlib"))
    held_out = choose(library, files)
    out.mkdir(parents=True, exist_ok=True)
    space, prompts = out / f"stdlib-without-{files}.whet", out / "prompts.jsonl"
    if not space.exists():
        indexed = (path for path in modules(library) if path not in held_out)
        documents = (part for path in indexed for part in parts(path, library))
        DataSpace.build(documents, space, chunks="whole", progress=progress)
    with prompts.open("w", encoding="utf-8") as file:
        for path in held_out:
            name = str(path.relative_to(library))
            file.write(json.dumps({"id": name, "text": source(path)[:LONGEST]}) + "\n")
    data = EvalData(space=str(space), prompts=str(prompts))
    folder = out / f"run-{protocol}"
    evaluate(data, folder, config, progress=progress)
    run = Run.open(folder)
    curves(run, folder / "curves.png")
    return run


def show_picks(run: Run) -> str:
    """The documents that each method picked for the prompt on which SIFT gains most over nearest."""
    index = int(np.argmin(run.bits("sift") / run.bits("nearest")))
    prompt = run.prompts["prompt"][index].as_py()
    lines = [f"Picks of each method for {prompt} (× repeats; % of base after the last step):"]
    for method in run.methods:
        counts = Counter(run.picks(prompt, method))
        percent = run.ratio(method)[index]
        lines.append(f"\n{method}: {percent:.1f} %, {len(counts)} distinct documents")
        lines += [
            f"  {count:>2}× {name}" if count > 1 else f"     {name}"
            for name, count in list(counts.items())[:6]
        ]
        if len(counts) > 6:
            lines.append(f"     … {len(counts) - 6} more")
    return "\n".join(lines) + "\n"


def modules(library: Path) -> Iterator[Path]:
    """The source files of the library without tests and bundled applications, sorted."""
    for path in sorted(library.rglob("*.py")):
        if not SKIPPED & set(path.relative_to(library).parts):
            yield path


def choose(library: Path, files: int) -> list[Path]:
    """`files` modules to hold out, always the same ones for the same library."""
    candidates = [path for path in modules(library) if len(source(path)) >= SHORTEST]
    if not 1 <= files <= len(candidates):
        raise ValueError(
            f"files is {files}: expected 1 to {len(candidates)}, the number of long enough modules"
        )
    return sorted(random.Random(0).sample(candidates, files))


def parts(path: Path, library: Path) -> Iterator[Document]:
    """A module in pieces, followed by the pieces of its top-level functions and classes."""
    text, name = source(path), str(path.relative_to(library))
    lines = text.splitlines(keepends=True)
    yield from pieces(name, lines)
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    counts: Counter[str] = Counter()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            counts[node.name] += 1
            suffix = f"#{counts[node.name]}" if counts[node.name] > 1 else ""
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            yield from pieces(f"{name}:{node.name}{suffix}", lines[first : node.end_lineno])


def pieces(name: str, lines: list[str]) -> Iterator[Document]:
    """`lines` as documents of at most about `PIECE` characters, cut between lines.

    A gradient step uses one context of a document, so the rest of a longer one would be lost.
    """
    start, size, number = 0, 0, 1
    for end, line in enumerate([*lines, ""]):
        if end > start and (size + len(line) > PIECE or end == len(lines)):
            if text := "".join(lines[start:end]).strip():
                yield Document(f"{name}[{number}]" if number > 1 else name, text, {})
            start, size, number = end, 0, number + 1
        size += len(line)


def source(path: Path) -> str:
    """The text of a source file, in UTF-8 or Latin-1."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return path.read_text(encoding="latin-1")
