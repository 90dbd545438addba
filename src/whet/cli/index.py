"""`whet index`: build a data space, or add to it."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from whet.cli.options import JSON, QUIET, RAY, SPACE, Command, config_options, emit, take_config
from whet.data.walk import FileOptions, LeftOut
from whet.errors import SourceError, SpaceError
from whet.io import count_of, printable

WATCH_S = 2.0  # between two looks at the source


@click.command(cls=Command)
@click.argument("source")
@SPACE
@click.option(
    "--embedder",
    help="lsa, minilm, st:NAME, hf:NAME, ntk:NAME or influence:NAME, with options: see "
    "docs/embedders.md [default: that of an existing SPACE, otherwise lsa].",
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
@click.option("--keep-missing", is_flag=True, help="Keep documents of files that are gone.")
@click.option("--watch", is_flag=True, help="Index SOURCE again whenever it changes, until Ctrl-C.")
@RAY
@JSON
@QUIET
def index(
    source: str, space: Path, watch: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any
) -> None:
    """Build a data space from SOURCE, or bring it in step.

    SOURCE is a folder, a file (Markdown, HTML, PDF, DOCX, notebook, code, text, JSONL, JSON, CSV,
    Parquet; also .gz, .bz2, .xz or .zst), hf:DATASET, or "-" for JSON lines on stdin.

    Left out of a folder are hidden and binary files, and what .gitignore names.

    Running it again adds new documents. Of a folder or file, it also replaces the documents of
    changed files and deletes those of files that are gone; documents of other sources stay.
    An interrupted run resumes. Documents that cannot be added are listed in SPACE/failed.jsonl.
    """
    from whet.space.store.manifest import Labels

    label_field, public_label = options.pop("label_field"), options.pop("public_label")
    if public_label is not None and label_field is None:
        raise click.UsageError("--public-label requires --label-field FIELD")
    if watch and not Path(source).exists():
        raise click.UsageError("--watch requires a folder or a file")
    labels = None if label_field is None else Labels(field=label_field, public=public_label)
    options |= {"labels": labels, "progress": not quiet}
    options["files"] = take_config(FileOptions, options)
    show = {"as_json": as_json, "verbose": verbose}
    embedder = _index(source, space, show, **options)
    while watch:
        time.sleep(WATCH_S)
        try:
            embedder = _index(source, space, show, only_changes=True, **options | embedder)
        except (SourceError, SpaceError) as error:  # such as a file that is being written
            print(printable(f"not indexed, trying again: {error}"), file=sys.stderr)


def _index(
    source: str, space: Path, show: dict[str, bool], *, only_changes: bool = False, **options: Any
) -> dict[str, Any]:
    """Index once and print the result; returns the loaded embedder, as an option for next time."""
    from whet.space.build import unchanged
    from whet.space.indexing.addition import Addition
    from whet.space.long_texts import count_long_texts
    from whet.space.space import DataSpace
    from whet.space.store.manifest import MANIFEST_FILE

    existed, left_out = (space / MANIFEST_FILE).exists(), list[LeftOut]()
    if existed and Path(source).exists():
        how = {name: options[name] for name in ("text_field", "chunks", "keep_missing", "files")}
        addition = Addition(docs=source, on_left_out=left_out.append, **how)
        changes = unchanged(addition, space, options["embedder"], options["labels"])
        if changes is not None:
            if not only_changes:
                _print(space, changes, left_out, existed=True, **show)
            return {"embedder": options["embedder"]}
        left_out.clear()
    built = DataSpace.build(source, space, on_left_out=left_out.append, **options)
    if line := str(count_long_texts(built)):
        print(printable(line), file=sys.stderr)
    _print(space, built.changes, left_out, existed=existed, **show)
    return {"embedder": built.embedder}


def _print(
    space: Path, changes: Any, left_out: list[LeftOut], *, existed: bool, as_json: bool,
    verbose: bool,
) -> None:  # fmt: skip
    """Print what the data space holds and what changed; what was left out on stderr."""
    from whet.space.store.manifest import read_manifest
    from whet.space.store.reader import DiskReader

    manifest = read_manifest(space)
    documents = DiskReader.open(space).count()
    record = {"space": str(space), "documents": documents, "embedder": manifest.embedder}
    record |= {"dimension": manifest.dimension, "failed": manifest.failed}
    record |= {"updated": changes.updated, "changes": changes.record()}
    record |= {"left_out": [{"path": each.path, "reason": each.reason} for each in left_out]}
    plain = f"{space}: {count_of(documents, 'document')}, {manifest.embedder}"
    if changes.updated:
        plain += f"; {changes.updated:,} updated with other metadata"
    if manifest.failed:
        plain += f"; {manifest.failed:,} could not be added: see {space}/failed.jsonl"
    if existed and any(changes.record()["files"].values()):
        plain += "\n" + _table(changes)
    for line in _reasons(left_out, names=verbose):
        print(printable(line), file=sys.stderr)
    emit(record, as_json, plain)


def _table(changes: Any) -> str:
    """What changed: files and documents."""
    counts = changes.record()
    rows = [("", "files", "documents")]
    for state, files in counts["files"].items():
        documents = counts["documents"].get(state)
        rows.append((state, f"{files:,}", "" if documents is None else f"{documents:,}"))
    return "\n".join(f"{a:<9} {b:>7} {c:>10}".rstrip() for a, b, c in rows)


def _reasons(left_out: list[LeftOut], *, names: bool) -> list[str]:
    """One line that counts what was left out by reason; with `names`, also one for each."""
    if not left_out:
        return []
    counts = Counter(each.reason for each in left_out).most_common()
    lines = [f"left out: {each.path}: {each.reason}" for each in left_out] if names else []
    listed = ", ".join(f"{count:,} {reason}" for reason, count in counts)
    hint = "" if names else " (--verbose names them)"
    return [*lines, f"{len(left_out):,} files and folders were left out: {listed}{hint}"]
