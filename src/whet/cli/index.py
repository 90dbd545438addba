"""Verbs that need no model: make a data space, select from it, ask why."""

from pathlib import Path
from typing import Any

import click

from whet.cli.options import (
    JSON,
    PATH,
    QUIET,
    RAY,
    SELECTION,
    SPACE,
    calibrated_options,
    line,
    read,
    show,
)


@click.command()
@click.argument("source")
@SPACE
@click.option(
    "--embedder",
    default="lsa",
    show_default=True,
    help="lsa, st:NAME, hf:NAME, ntk:NAME or influence:NAME, with options: see docs/embedders.md.",
)
@click.option("--text-field", default="text", show_default=True, help="Field that holds the text.")
@click.option(
    "--chunks",
    default="whole",
    show_default=True,
    help="Cut long texts: tokens:N, or paragraph:N (characters).",
)
@click.option("--label-field", help="Field that says who may read a document.")
@click.option("--public", help="Its value where everybody may: lsa is fitted on these only.")
@RAY
@JSON
@QUIET
def index(
    source: str, space: Path, embedder: str, text_field: str, chunks: str,
    label_field: str | None, public: str | None, ray: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Make a data space of SOURCE: JSONL(.gz, .zst), JSON, CSV, Parquet, folder, hf:DATASET or "-".

    "-" reads JSON lines from stdin.

    Run again, it adds what is new in SOURCE and keeps the rest; one that was killed goes on where
    it stopped. What cannot be added is told in SPACE/failed.jsonl.
    """
    from whet.space.space import counted
    from whet.space.store.manifest import Labels
    from whet.spaces import build_space

    if public is not None and label_field is None:
        raise click.UsageError("--public goes with --label-field FIELD")
    labels = None if label_field is None else Labels(field=label_field, public=public)
    made = build_space(
        source, space, embedder, text_field=text_field, chunks=chunks, labels=labels,
        progress=not quiet, ray=ray,
    )  # fmt: skip
    failed = made.manifest.failed
    record = {"space": str(space), "documents": len(made), "embedder": made.embedder.name}
    record |= {"dimension": made.dimension, "failed": failed}
    told = f"; {failed:,} could not be added: see {space / 'failed.jsonl'}" if failed else ""
    show(record, as_json, f"{space}: {counted(len(made))}, {made.embedder.name}{told}")


@click.command()
@SPACE
@click.argument("prompt", required=False)
@SELECTION
@click.option("--targets", type=PATH, help="Texts to choose for, all at once, in PROMPT's place.")
@click.option("--out", type=PATH, help="File for the JSON lines of --targets [default: stdout].")
@click.option("--no-repeats", is_flag=True, help="With --targets: pick no text twice.")
@JSON
def select(
    space: Path, prompt: str | None, targets: Path | None, out: Path | None, no_repeats: bool,
    as_json: bool, **selection: Any,
) -> None:  # fmt: skip
    """The texts of SPACE that tell most about the answer to PROMPT, in order ("-": stdin).

    With --targets, a training set for all texts of a file (as for `whet index`): a JSON line a
    picked text, the most useful first, with how often it was picked (count), its first pick (rank)
    and by what share it lowered the targets' variance (gain). See docs/targeted.md.
    """
    if (prompt is None) == (targets is None):
        raise click.UsageError("give either PROMPT or --targets FILE")
    if targets is not None:
        _select_targeted(space, targets, out, as_json, not no_repeats, **selection)
        return
    if out is not None or no_repeats:
        raise click.UsageError("--out and --no-repeats go with --targets FILE")
    assert prompt is not None
    from whet.spaces import open_space, retrieve

    opened = open_space(space)
    prompt = read(prompt)
    found = retrieve(opened, prompt, calibrated_options(opened, **selection))
    sigma = found.selection.sigma
    picks: list[dict[str, Any]] = [
        {"id": d.id, "sigma": float(s), "gain": float(g), "cosine": float(c)}
        | {"text": d.text, "meta": d.meta}
        for d, s, g, c in zip(
            found.documents,
            sigma[1:],
            found.selection.gains,
            found.candidates.scores[found.selection.indices],
            strict=True,
        )
    ]
    lines = [f"{p['sigma']:.4f}  {p['id']}  {line(p['text'])}" for p in picks]
    record = {"prompt": prompt, "sigma": sigma.tolist(), "picks": picks}
    show(record, as_json, "\n".join(["σ       id  text", *lines]))


def _select_targeted(
    space: Path, targets: Path, out: Path | None, as_json: bool, repeats: bool,
    *, n: int, k: int | None, lam: Any, selector: str, alpha: Any, where: str | None,
    candidates: str,
) -> None:  # fmt: skip
    if selector not in ("sift", "nearest", "random"):
        raise click.UsageError(f"--selector {selector} is for one PROMPT, not for --targets")
    if alpha is not None or lam == "auto" or candidates != "vectors":
        raise click.UsageError(
            "--alpha, --candidates and auto are for one PROMPT, not for --targets"
        )
    from whet.data.documents import read_documents
    from whet.space.training_set import training_set
    from whet.spaces import open_space

    texts = [document.text for document in read_documents(targets)]
    opened = open_space(space)
    if where is not None:
        opened = opened.filter(where)
    made = training_set(opened, texts, n, k=k, lam=lam, repeats=repeats, selector=selector)
    summary: dict[str, Any] = {
        "targets": len(texts),
        "candidates": len(made.candidates),
        "steps": n,
    }
    summary |= {"documents": len(made), "sigma": float(made.selection.sigma[-1])}
    if out is None:
        record = summary | {"picks": list(made.records())}
        show(record, as_json, "".join(made.lines()).rstrip("\n"))
        return
    made.write(out)
    plain = f"{out}: {len(made):,} texts, {n:,} steps, for {len(texts):,} targets"
    show({"out": str(out), **summary}, as_json, f"{plain}; σ {summary['sigma']:.4f}")


@click.command()
@SPACE
@click.argument("prompt")
@SELECTION
@JSON
def why(space: Path, prompt: str, as_json: bool, **selection: Any) -> None:
    """Why each text was chosen for PROMPT: what it told, and the earlier pick it is most like."""
    from whet.spaces import open_space, retrieve

    opened = open_space(space)
    prompt = read(prompt)
    found = retrieve(opened, prompt, calibrated_options(opened, **selection))
    told = found.explain()
    picks = [
        {"id": document.id, "meta": document.meta, **row}
        for document, row in zip(found.documents, told.rows(), strict=True)
    ]
    show({"prompt": prompt, "sigma": told.sigma, "picks": picks}, as_json, str(told))
