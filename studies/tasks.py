"""The tables of docs/tasks.md: completing lines of repositories, and answering questions.

python -m studies.tasks repositories CORPUS... --out FOLDER    # one folder of files per repository
python -m studies.tasks run FOLDER STDLIB --out RUNS           # both tasks in rounds; resumes
python -m studies.tasks collect RUN...                         # copy runs, without generated texts
python -m studies.tasks page                                   # write the tables into docs/tasks.md
"""

import argparse
import gzip
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from rich.table import Table

from whet.errors import WhetError
from whet.evaluate.dataset import Experiment
from whet.evaluate.report.answers import BITS, TITLES, AnswerResults
from whet.evaluate.report.render import markdown, text_table
from whet.evaluate.results import Run
from whet.evaluate.run_storage import META, PROMPTS, ROWS, strings, tables
from whet.evaluate.runner import evaluate

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "tasks", ROOT / "docs" / "tasks.md"
REPOSITORIES = {
    "httpx": "encode/httpx",
    "rich": "Textualize/rich",
    "peft": "huggingface/peft",
    "redis": "redis/redis",
    "gson": "google/gson",
    "caddy": "caddyserver/caddy",
}
FEW_FILES = {"httpx": ("data.held_out=13", "data.lines_per_file=2")}
"""Settings of a repository that has too few files of code to hold out one per line."""


@dataclass(frozen=True, slots=True)
class Part:
    """One run of the study, and how many prompts it is to have."""

    name: str
    experiment: Experiment
    prompts: int
    """Prompts of each of its sets."""

    def extend(self, folder: Path, prompts: int) -> int:
        """Evaluate its first prompts, so many of each set, as far as they are not finished.

        Returns how many prompts are finished.
        """
        data, config = replace(self.experiment.data, per_set=prompts), self.experiment.config
        out = folder / self.name
        data.open_space(task=config.task)  # built first: prompts may be held out of it
        wanted = {prompt.document.id for prompt in data.read_prompts(config.task).prompts}
        finished = set(strings(tables(out)[1], "prompt"))
        if not wanted <= finished:  # loading the model takes seconds
            evaluate(data, out, config, progress=False)
        return len(wanted | finished)


def parts(repositories: Path, stdlib: Path, folder: Path, lines: int, questions: int) -> list[Part]:
    """The runs of both tasks on the files of `repositories` and `stdlib_questions`."""
    here = Path(__file__).parent
    made = []
    for name in REPOSITORIES:
        where = [
            f"data.space={folder / 'spaces' / name}.whet",
            f"data.source={repositories / name}",
        ]
        lines_of = Experiment.read(here / "tasks-lines.toml", [*where, *FEW_FILES.get(name, ())])
        made.append(Part(f"lines-{name}", lines_of, lines))
    where = [f"data.space={folder / 'spaces' / 'stdlib'}.whet",
             f"data.source={stdlib / 'documentation.jsonl'}",
             f"data.prompts={stdlib / 'questions.jsonl'}"]  # fmt: skip
    return [*made, Part("qa", Experiment.read(here / "tasks-qa.toml", where), questions)]


def at_least_one(text: str) -> int:
    """A number of at least 1 on the command line: 0 prompts would mean all of them."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def rounds(parts: list[Part], count: int) -> Iterator[tuple[Part, int]]:
    """What to extend to how many prompts, so that all parts grow together.

    >>> [(part.name, prompts) for part, prompts in rounds([Part("a", None, 5)], 2)]
    [('a', 3), ('a', 5)]
    """
    for number in range(1, count + 1):
        for part in parts:
            yield part, -(-part.prompts * number // count)


def run(parts: list[Part], folder: Path, count: int, limit_s: float | None) -> None:
    """Evaluate the parts in `count` rounds; after `limit_s` seconds, nothing more is begun."""
    (folder / "spaces").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for part, prompts in rounds(parts, count):
        if limit_s is not None and time.monotonic() - started > limit_s:
            print(f"stopped before {part.name}: the same command goes on", file=sys.stderr)
            return
        finished = part.extend(folder, prompts)
        print(f"{time.monotonic() - started:.0f} s: {part.name} has {finished} prompts",
              file=sys.stderr, flush=True)  # fmt: skip


def repositories(corpus: list[Path], folder: Path) -> None:
    """Write the files of `REPOSITORIES` as they are named in `meta.source` (OWNER/NAME:PATH)."""
    names = {repository: name for name, repository in REPOSITORIES.items()}
    for path in corpus:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for record in map(json.loads, lines):
                repository, _, file = record["meta"].get("source", "").partition(":")
                if repository in names and file and ".." not in file:
                    target = folder / names[repository] / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(record["text"], encoding="utf-8")


def collect(runs: list[Path]) -> None:
    """Copy the tables of runs to the committed results, without what was generated."""
    for run in runs:
        target = RESULTS / run.resolve().name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / META, target / META)
        rows, prompts = tables(run)
        pq.write_table(rows.drop_columns(["answer"]), target / ROWS, compression="zstd")
        pq.write_table(prompts, target / PROMPTS, compression="zstd")


def page() -> str:
    """The tables of both tasks as Markdown."""
    present = [name for name in REPOSITORIES if (RESULTS / f"lines-{name}" / ROWS).exists()]
    parts = {name: AnswerResults.of(Run.open(RESULTS / f"lines-{name}")) for name in present}
    lines = AnswerResults.pooled(list(parts.values()), list(parts))
    questions = AnswerResults.of(Run.open(RESULTS / "qa"))
    by_set = {name: questions.of_set(name) for name in sorted(set(questions.sets))}
    alone = parts["httpx"].seconds  # measured with nothing else on the machine
    blocks = [f"## Next lines of {len(parts)} repositories\n"]
    blocks += section(replace(lines, seconds=alone), "repository", parts)
    blocks += ["## Questions about Python's standard library\n"]
    blocks += section(questions, "questions", by_set)
    return "\n".join(blocks)


def section(results: AnswerResults, heading: str, parts: dict[str, AnswerResults]) -> list[str]:
    """The tables of one task: one per metric, then one row per part."""
    tables = [*results.tables(), by_part(heading, parts)]
    return [f"{results.caption()}\n", *(f"{markdown(table)}\n" for table in tables)]


def by_part(heading: str, parts: dict[str, AnswerResults]) -> Table:
    """The first metric and bits per byte of every method, one row per part of the prompts."""
    first = next(iter(parts.values()))
    metric = next(iter(first.values))
    methods = [name for name in first.config.method_names if "samples" not in name]
    title = f"{heading}: {TITLES[metric]} / bits, % of base"
    rows = []
    for name, part in parts.items():
        pairs = zip(part.lines(metric), part.lines(BITS), strict=True)
        cells = {m.method: f"{m.value.value:.0f} / {b.value.value:.0f}" for m, b in pairs}
        rows.append([name, str(part.n), *(cells[method] for method in methods)])
    return text_table([title, "n", *methods], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables of tasks with an answer.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("repositories", help="write files of repositories from a corpus")
    verb.add_argument("corpus", type=Path, nargs="+", help="JSON lines, packed by gzip")
    verb.add_argument("--out", type=Path, required=True, help="folder to write")
    verb = verbs.add_parser("run", help="evaluate both tasks; resumes")
    verb.add_argument("repositories", type=Path, help="folder that `repositories` wrote")
    verb.add_argument("stdlib", type=Path, help="folder that studies.stdlib_questions wrote")
    verb.add_argument("--out", type=Path, required=True, help="folder of the runs")
    verb.add_argument("--lines", type=at_least_one, default=26, help="lines per repository")
    verb.add_argument(
        "--questions", type=at_least_one, default=16, help="questions of each of three kinds"
    )
    verb.add_argument("--rounds", type=at_least_one, default=6, help="visits of each run, in turn")
    verb.add_argument("--limit-s", type=float, help="begin nothing after so many seconds")
    verb = verbs.add_parser("collect", help="copy runs to benchmarks/results/tasks")
    verb.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    verbs.add_parser("page", help="write the tables into docs/tasks.md")
    arguments = parser.parse_args()
    if arguments.verb == "repositories":
        repositories(arguments.corpus, arguments.out)
    elif arguments.verb == "run":
        wanted = parts(
            arguments.repositories, arguments.stdlib, arguments.out, arguments.lines,
            arguments.questions,
        )  # fmt: skip
        try:
            run(wanted, arguments.out, arguments.rounds, arguments.limit_s)
        except (WhetError, ValueError) as error:
            raise SystemExit(f"Error: {error}") from error
    elif arguments.verb == "collect":
        collect(arguments.runs)
    else:
        write_between(PAGE, page())


def write_between(path: Path, tables: str) -> None:
    """Put `tables` between the markers of a page."""
    start, end = "<!-- tables -->\n", "<!-- end of tables -->"
    before, _, rest = path.read_text("utf-8").partition(start)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{start}\n{tables}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    main()
