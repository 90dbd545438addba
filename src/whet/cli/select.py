"""`whet select` and `whet explain`: select documents for a prompt; no model is needed."""

import sys
from pathlib import Path
from typing import Any

import click

from whet.cli.options import (
    JSON,
    PATH,
    SELECTION,
    SPACE,
    Command,
    emit,
    read_text,
    resolve_selection,
    shorten,
    take_config,
)
from whet.select.config import SelectionConfig


@click.command(cls=Command)
@SPACE
@click.argument("prompt", required=False)
@click.option("--targets", type=PATH, help="File of target texts to select a training set for.")
@click.option(
    "--out",
    type=PATH,
    help="With --targets: file for JSON lines, or .parquet for a table [default: stdout].",
)
@click.option("--no-repeats", is_flag=True, help="With --targets: select no document twice.")
@JSON
@SELECTION
def select(
    space: Path | str, prompt: str | None, targets: Path | None, out: Path | None,
    no_repeats: bool, as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Select the most informative documents for PROMPT.

    They are printed in the order of selection. A PROMPT of "-" is read from stdin.

    With --targets, select one training set for all texts of a file (a source, as for
    `whet index`). It is printed as one JSON line per document, most useful first, with the number
    of times it was selected (count), the step of its first selection (first_picked_at), and its
    share of the reduction of the targets' variance (gain_share). See docs/training-sets.md.
    """
    if (prompt is None) == (targets is None):
        raise click.UsageError("pass either PROMPT or --targets FILE")
    config = take_config(SelectionConfig, values)
    if targets is not None:
        _select_training_set(space, targets, config, out, as_json, repeats=not no_repeats)
        return
    if out is not None or no_repeats:
        raise click.UsageError("--out and --no-repeats require --targets FILE")
    assert prompt is not None
    prompt = read_text(prompt)
    retrieval = _retrieve(space, prompt, config)
    selection = retrieval.selection
    cosines = retrieval.candidates.scores[selection.indices]
    picks: list[dict[str, Any]] = [
        {"id": document.id, "sigma": float(sigma), "gain": float(gain), "cosine": float(cosine)}
        | {"text": document.text, "meta": document.meta}
        for document, sigma, gain, cosine in zip(
            retrieval.documents, selection.sigma[1:], selection.gains, cosines, strict=True
        )
    ]
    lines = [f"{pick['sigma']:.4f}  {pick['id']}  {shorten(pick['text'])}" for pick in picks]
    record = {"prompt": prompt, "sigma": selection.sigma.tolist(), "picks": picks}
    emit(record, as_json, "\n".join(["σ       id  text", *lines]))


@click.command(cls=Command)
@SPACE
@click.argument("prompt")
@JSON
@SELECTION
def explain(space: Path | str, prompt: str, as_json: bool, **values: Any) -> None:
    """Explain why each document is selected for PROMPT.

    Prints the gain of each document and the earlier one that it is most similar to. A PROMPT of "-"
    is read from stdin.
    """
    prompt = read_text(prompt)
    retrieval = _retrieve(space, prompt, take_config(SelectionConfig, values))
    explanation = retrieval.explain()
    picks = [
        {"id": document.id, "meta": document.meta, **row}
        for document, row in zip(retrieval.documents, explanation.rows(), strict=True)
    ]
    record = {"prompt": prompt, "sigma": explanation.sigma, "picks": picks}
    emit(record, as_json, str(explanation))


def _retrieve(space: Path | str, prompt: str, config: SelectionConfig) -> Any:
    from whet.space.retrieve import Retriever
    from whet.space.space import DataSpace

    opened = DataSpace.open(space)
    return Retriever(opened, resolve_selection(opened, config)).select(prompt)


def _select_training_set(
    space: Path | str, targets: Path, config: SelectionConfig, out: Path | None, as_json: bool,
    *, repeats: bool,
) -> None:  # fmt: skip
    if config.selector not in ("sift", "nearest", "random"):
        raise click.UsageError(
            f"--selector {config.selector} requires one PROMPT: with --targets, use sift, "
            "nearest or random"
        )
    if config.stop_alpha is not None or config.has_auto or config.retriever != "dense":
        raise click.UsageError("--stop-alpha, --retriever and auto cannot be used with --targets")
    from whet.data.documents import read_documents
    from whet.space.space import DataSpace
    from whet.space.training_set import check_output, training_set

    if out is not None:
        check_output(out)
    texts = [document.text for document in read_documents(targets)]
    opened = DataSpace.open(space)
    if config.where is not None:
        opened = opened.filter(config.where)
    selected = training_set(
        opened, texts, config.n, k=config.k, repeats=repeats, selector=config.selector,
        lam=None if config.lam == "embedder" else float(config.lam),
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    sigma = float(selected.selection.sigma[-1])
    record: dict[str, Any] = {"targets": len(texts), "candidates": len(selected.candidates)}
    record |= {"steps": config.n, "documents": len(selected), "sigma": sigma}
    if out is None:
        lines = "".join(selected.lines()).rstrip("\n")
        emit(record | {"picks": list(selected.records())}, as_json, lines)
        return
    selected.write(out)
    counts = f"{len(selected):,} documents, {config.n:,} steps, for {len(texts):,} targets"
    emit({"out": str(out), **record}, as_json, f"{out}: {counts}; σ {sigma:.4f}")
