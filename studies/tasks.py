"""The tables of docs/tasks.md: completing lines of repositories, and answering questions.

python -m studies.tasks repositories CORPUS... --out FOLDER    # one folder of files per repository
python -m studies.tasks collect RUN...                         # copy runs, without generated texts
python -m studies.tasks page                                   # write the tables into docs/tasks.md
"""

import argparse
import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from rich.table import Table

from whet.evaluate.report.answers import BITS, TITLES, AnswerResults
from whet.evaluate.report.render import markdown, text_table
from whet.evaluate.results import Run
from whet.evaluate.run_storage import META, PROMPTS, ROWS, tables

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
    verb = verbs.add_parser("collect", help="copy runs to benchmarks/results/tasks")
    verb.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    verbs.add_parser("page", help="write the tables into docs/tasks.md")
    arguments = parser.parse_args()
    if arguments.verb == "repositories":
        repositories(arguments.corpus, arguments.out)
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
