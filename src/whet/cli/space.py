"""Verbs that look after a data space, and the one that serves it."""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from whet.cli.options import JSON, PATH, QUIET, SPACE, show
from whet.errors import SpaceError

WHERE = click.option("--where", help='Only what passes, such as `set == "github"`.')


@click.group()
def space() -> None:
    """Look after a data space."""


@space.command()
@SPACE
@JSON
def info(space: Path, as_json: bool) -> None:
    """What SPACE holds, how its index does, and what can be filtered by."""
    from whet.space.maintenance import describe

    told = describe(space)
    shown = told if told["index"]["segments"] else told | {"index": "none: exact search"}
    lines = [f"{name:<10} {_plain(value)}" for name, value in shown.items()]
    show(told, as_json, "\n".join(lines))


@space.command()
@SPACE
@JSON
def verify(space: Path, as_json: bool) -> None:
    """Read every byte of SPACE and name each file that is not as it was written."""
    from whet.space.maintenance import faults

    found = faults(space)
    show({"faults": found}, as_json, "\n".join(found) or f"{space}: every file is as written")
    if found:
        faulty = f"{len(found):,} fault" + ("s" if len(found) > 1 else "")
        raise SpaceError(f"{space} has {faulty}: restore what is named above, or rebuild it")


@space.command()
@SPACE
@JSON
@QUIET
def compact(space: Path, as_json: bool, quiet: bool) -> None:
    """Give the disk back that deleted documents and unfinished additions take."""
    from whet.space.maintenance import size
    from whet.space.progress import bar
    from whet.space.store.writer import SegmentsWriter

    before = size(space)
    with SegmentsWriter(space) as writer, bar("writing", None, show=not quiet) as done:
        writer.compact(done)
    after = size(space)
    record = {"space": str(space), "bytes_before": before, "bytes": after}
    show(record, as_json, f"{space}: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB now")


@space.command()
@SPACE
@click.argument("ids", nargs=-1)
@WHERE
@JSON
def delete(space: Path, ids: tuple[str, ...], where: str | None, as_json: bool) -> None:
    """Delete documents from SPACE by IDS, or those that pass --where."""
    from whet.space.store.writer import delete_documents

    if bool(ids) == (where is not None):
        raise click.UsageError("give either IDS or --where FILTER")
    gone = delete_documents(space, ids, where)
    show({"space": str(space), "deleted": gone}, as_json, f"{space}: {gone:,} deleted")


@space.command()
@SPACE
@click.option("--out", type=PATH, help="File of JSON lines [default: stdout].")
@WHERE
def export(space: Path, out: Path | None, where: str | None) -> None:
    """The documents of SPACE as JSON lines, which `whet index` reads."""
    from whet.io import atomic_write
    from whet.space.maintenance import documents

    lines = documents(space, where)
    if out is None:
        sys.stdout.writelines(lines)
        return
    if out.exists():
        raise SpaceError(f"{out} exists: move it, or name another file")
    with atomic_write(out) as new:
        with new.open("w", encoding="utf-8") as file:
            file.writelines(lines)


@space.command()
@SPACE
@click.option("--prompts", type=PATH, help="Texts that will be asked, as for `whet index`.")
@click.option("-n", default=50, show_default=True, help="Picks a prompt.")
@click.option("-k", default=200, show_default=True, help="Candidates nearest a prompt.")
@click.option("--most", default=200, show_default=True, help="Prompts looked at.")
@WHERE
@JSON
def doctor(
    space: Path, prompts: Path | None, n: int, k: int, most: int, where: str | None, as_json: bool
) -> None:
    """Duplicates, prompts that SPACE holds already, and whether sharpening on it will pay."""
    from whet.space.diagnostics import diagnose
    from whet.spaces import open_space

    opened = open_space(space)
    if where is not None:
        opened = opened.filter(where)
    found = diagnose(opened, list(_texts(prompts, most)), n=n, k=k)
    show({**asdict(found), "verdict": found.verdict()}, as_json, str(found))


@space.command()
@SPACE
@click.option("--ray", "address", required=True, metavar="HOST:PORT|local", help="The cluster.")
@click.option("--shards", type=int, help="Parts of SPACE [default: one a machine].")
@click.option("--replicas", default=1, show_default=True, help="Actors of each part.")
@click.option("--name", help="By which it is found [default: SPACE's].")
@JSON
def serve(
    space: Path, address: str, shards: int | None, replicas: int, name: str | None, as_json: bool
) -> None:
    """Serve SPACE by a Ray cluster until interrupted; other verbs take the address it prints.

    Every machine must see SPACE at the same path. A token is asked of all: see docs/scale.md.
    """
    from whet.space.ray.cluster import serve as start

    with closing(start(space, address, shards=shards, replicas=replicas, name=name)) as served:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        show({"address": served.address}, as_json, served.address)
        sys.stdout.flush()
        stop.wait()


def _texts(prompts: Path | None, most: int) -> Iterator[str]:
    from whet.data.documents import read_documents

    if prompts is not None:
        for _, document in zip(range(most), read_documents(prompts), strict=False):
            yield document.text


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return json.dumps(value)
    number = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if number else str(value)
