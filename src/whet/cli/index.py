"""`whet index`: build a data space, or add to it."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from whet.cli.options import JSON, QUIET, RAY, SPACE, Command, config_options, emit, take_config
from whet.data.walk import FileOptions, LeftOut
from whet.io import printable


@click.command(cls=Command)
@click.argument("source")
@SPACE
@click.option(
    "--embedder",
    default="lsa",
    show_default=True,
    help="lsa, st:NAME, hf:NAME, ntk:NAME or influence:NAME, with options: see docs/embedders.md.",
)
@click.option("--text-field", default="text", show_default=True, help="Field with the text.")
@click.option(
    "--chunks",
    default="auto",
    show_default=True,
    help="How long texts are cut: whole, passages:N (words), tokens:N or paragraph:N (characters); "
    "auto is the rule of an existing SPACE, and for a new one passages of at most 300 words that "
    "the embedder reads entirely.",
)
@click.option("--label-field", help="Metadata field with a document's access label.")
@click.option("--public-label", help="Label of public documents; `lsa` is fitted on these only.")
@config_options(FileOptions, "Files of a folder")
@click.option("--verbose", is_flag=True, help="Name each file that is left out.")
@RAY
@JSON
@QUIET
def index(
    source: str, space: Path, as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Build a data space from SOURCE, or add to it.

    SOURCE is a folder, a file (Markdown, HTML, PDF, DOCX, notebook, code, text, JSONL, JSON, CSV,
    Parquet; also .gz, .bz2, .xz or .zst), hf:DATASET, or "-" for JSON lines on stdin.

    Left out of a folder are hidden and binary files, and what .gitignore names.

    Running it again adds new documents and keeps existing ones, with their metadata as it is now;
    an interrupted run resumes.
    Documents that cannot be added are listed in SPACE/failed.jsonl.
    """
    from whet.space.long_texts import count_long_texts
    from whet.space.space import DataSpace, format_count
    from whet.space.store.manifest import Labels

    label_field, public_label = options.pop("label_field"), options.pop("public_label")
    if public_label is not None and label_field is None:
        raise click.UsageError("--public-label requires --label-field FIELD")
    labels = None if label_field is None else Labels(field=label_field, public=public_label)
    embedder = options.pop("embedder")
    left_out: list[LeftOut] = []
    options["files"] = take_config(FileOptions, options)
    built = DataSpace.build(
        source, space, embedder, labels=labels, progress=not quiet, on_left_out=left_out.append,
        **options,
    )  # fmt: skip
    for line in _reasons(left_out, names=verbose):
        print(printable(line), file=sys.stderr)
    if line := str(count_long_texts(built)):
        print(printable(line), file=sys.stderr)
    failed = built.manifest.failed
    record = {"space": str(space), "documents": len(built), "embedder": built.embedder.name}
    record |= {"dimension": built.dimension, "failed": failed}
    record |= {"updated": built.updated}
    record |= {"left_out": [{"path": each.path, "reason": each.reason} for each in left_out]}
    plain = f"{space}: {format_count(len(built))}, {built.embedder.name}"
    if built.updated:
        plain += f"; {built.updated:,} updated with other metadata"
    if failed:
        plain += f"; {failed:,} could not be added: see {space}/failed.jsonl"
    emit(record, as_json, plain)


def _reasons(left_out: list[LeftOut], *, names: bool) -> list[str]:
    """One line that counts what was left out by reason; with `names`, also one for each."""
    if not left_out:
        return []
    counts = Counter(each.reason for each in left_out).most_common()
    lines = [f"left out: {each.path}: {each.reason}" for each in left_out] if names else []
    listed = ", ".join(f"{count:,} {reason}" for reason, count in counts)
    hint = "" if names else " (--verbose names them)"
    return [*lines, f"{len(left_out):,} files and folders were left out: {listed}{hint}"]
