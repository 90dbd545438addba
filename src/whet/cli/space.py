"""`whet space` and `whet ray`: maintain a data space, copy it, serve it on a Ray cluster."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from whet.cli.options import JSON, PATH, QUIET, SPACE, WHERE, Command, emit
from whet.errors import SpaceError
from whet.io import count_of

FOLDER = click.argument("space", type=PATH)


class SpaceGroup(click.Group):
    """The group, which names the new name of an old command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "serve":
            raise click.UsageError("`whet space serve` is now `whet ray serve`", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=SpaceGroup)
def space() -> None:
    """Maintain a data space."""


@space.command(cls=Command)
@FOLDER
@JSON
def info(space: Path, as_json: bool) -> None:
    """Describe SPACE: documents, embedder, index, metadata fields."""
    from whet.space.maintenance.inspection import describe

    record = describe(space)
    shown = record if record["index"]["segments"] else record | {"index": "none: exact search"}
    hidden = "source" if record["sources"] else "sources"  # the files of folders are recorded
    shown = {name: value for name, value in shown.items() if name != hidden}
    lines = [f"{name:<12}{_plain(value)}" for name, value in shown.items()]
    emit(record, as_json, "\n".join(lines))


@space.command(cls=Command)
@FOLDER
@JSON
def verify(space: Path, as_json: bool) -> None:
    """Read every byte of SPACE and list each damaged file."""
    from whet.space.maintenance.inspection import verify as find_damage

    damaged = find_damage(space)
    emit({"faults": damaged}, as_json, "\n".join(damaged) or f"{space}: no file is damaged")
    if damaged:
        faults = count_of(len(damaged), "fault")
        raise SpaceError(f"{space} has {faults}: restore the files listed above, or rebuild it")


@space.command(cls=Command)
@FOLDER
@JSON
@QUIET
def compact(space: Path, as_json: bool, quiet: bool) -> None:
    """Free the disk space of deleted and unfinished documents."""
    from whet.io import progress_bar
    from whet.space.maintenance.inspection import size
    from whet.space.store.writer import DiskWriter

    before = size(space)
    with DiskWriter(space) as writer, progress_bar("writing", None, show=not quiet) as progress:
        writer.compact(progress)
    after = size(space)
    record = {"space": str(space), "bytes_before": before, "bytes": after}
    emit(record, as_json, f"{space}: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB now")


@space.command(cls=Command)
@FOLDER
@JSON
@QUIET
def refit(space: Path, as_json: bool, quiet: bool) -> None:
    """Fit the lsa embedder of SPACE again, on its present documents.

    It then forgets the words of deleted documents and learns those of added ones. Ids, metadata and
    labels stay.
    """
    from whet.space.maintenance.refit import refit as fit_again

    version = fit_again(space, progress=not quiet)
    record = {"space": str(space), "version": version}
    emit(record, as_json, f"{space}: fitted again, version {version}")


@space.command(cls=Command)
@FOLDER
@click.argument("ids", nargs=-1)
@WHERE
@JSON
def delete(space: Path, ids: tuple[str, ...], where: str | None, as_json: bool) -> None:
    """Delete documents of SPACE, by IDS or with --where.

    The id of a file or document that was cut into passages deletes all of these.
    """
    from whet.space.store.writer import delete_documents

    if bool(ids) == (where is not None):
        raise click.UsageError("pass either IDS or --where FILTER")
    deleted = delete_documents(space, ids, where)
    unknown = f"; no document has the id {' or '.join(ids)}" if ids and not deleted else ""
    plain = f"{space}: {deleted:,} deleted{unknown}"
    emit({"space": str(space), "deleted": deleted}, as_json, plain)


@space.command(cls=Command, short_help="Write the documents of SPACE as JSON lines.")
@FOLDER
@click.option("--out", type=PATH, help="File to write [default: stdout].")
@WHERE
def export(space: Path, out: Path | None, where: str | None) -> None:
    """Write the documents of SPACE as JSON lines, which `whet index` reads."""
    from whet.io import atomic_write, translate_disk_errors
    from whet.space.maintenance.inspection import export as export_lines

    lines = export_lines(space, where)
    if out is None:
        sys.stdout.writelines(lines)
        return
    if out.exists():
        raise SpaceError(f"{out} exists: move it, or choose another file")
    with translate_disk_errors(out), atomic_write(out) as new:
        with new.open("w", encoding="utf-8") as file:
            file.writelines(lines)


@space.command(cls=Command)
@SPACE
@click.option("--prompts", type=PATH, help="Expected prompts: a source, as for `whet index`.")
@click.option("-n", "--n", "n", default=50, show_default=True, help="Picks per prompt.")
@click.option("-k", "--k", "k", default=200, show_default=True, help="Candidates per prompt.")
@click.option("--max-prompts", default=200, show_default=True, help="Most prompts to look at.")
@WHERE
@JSON
def doctor(
    space: Path | str, prompts: Path | None, n: int, k: int, max_prompts: int, where: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Estimate whether fine-tuning on SPACE will help.

    Also counts duplicates, documents without content, and prompts that SPACE contains.
    """
    from whet.space.maintenance.diagnostics import diagnose
    from whet.space.space import DataSpace

    opened = DataSpace.open(space)
    if where is not None:
        opened = opened.filter(where)
    diagnosis = diagnose(opened, list(_texts(prompts, max_prompts)), n=n, k=k)
    record = {**asdict(diagnosis), "verdict": diagnosis.verdict()}
    emit(record, as_json, str(diagnosis))


@space.command(cls=Command)
@FOLDER
@click.argument("address")
@click.option("--lists", default=0, show_default=True,
              help="Number of lists of the index; 0 searches all vectors.")  # fmt: skip
@JSON
@QUIET
def copy(space: Path, address: str, lists: int, as_json: bool, quiet: bool) -> None:
    """Copy SPACE to a Milvus collection.

    ADDRESS is milvus:FILE.db#NAME, or milvus:http://HOST:PORT#NAME for a server. Copying again
    brings the collection up to date, also after an interruption.
    """
    from whet.io import progress_bar
    from whet.space.milvus.writer import copy_space

    with progress_bar("copying", None, show=not quiet) as progress:
        count = copy_space(space, address, lists=lists, progress=progress)
    record = {"space": str(space), "address": address, "documents": count}
    emit(record, as_json, f"{address}: {count:,} documents")


@click.group()
def ray() -> None:
    """Serve a data space on a Ray cluster."""


@ray.command(cls=Command)
@FOLDER
@click.option("--ray", "address", required=True, metavar="HOST:PORT|local", help="The cluster.")
@click.option("--shards", type=int, help="Number of shards [default: one per machine].")
@click.option("--replicas", default=1, show_default=True, help="Actors per shard.")
@click.option("--name", help="Name in the address [default: the folder's].")
@JSON
def serve(
    space: Path, address: str, shards: int | None, replicas: int, name: str | None, as_json: bool
) -> None:
    """Serve SPACE on a Ray cluster until interrupted.

    Prints the address, which other commands accept as SPACE. Every machine must see SPACE at the
    same path. Clients need the cluster's token: see docs/scale.md.
    """
    from whet.space.ray.cluster import serve as start

    with closing(start(space, address, shards=shards, replicas=replicas, name=name)) as served:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        emit({"address": served.address}, as_json, served.address)
        sys.stdout.flush()
        stop.wait()


def _texts(prompts: Path | None, limit: int) -> Iterator[str]:
    from whet.data.documents import read_documents

    if prompts is not None:
        for _, document in zip(range(limit), read_documents(prompts), strict=False):
            yield document.text


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
