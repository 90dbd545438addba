"""What users see: the server's description, help, the form of JSON output, and public names."""

import difflib
import inspect
import json
import re
import tempfile
from pathlib import Path

from click.testing import CliRunner

import whet
from whet.cli import main
from whet.serve.config import ServeConfig
from whet.serve.main import build_app

from .made import AFTER, HERE, MODEL, PROMPT, SPACE, TEXTS, whet_json

REMAKE = "python -m tests.golden"
LINES = 40  # of a difference
NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?")
OF_THE_MACHINE = ("commit", "gpu")  # there or not
PLACE = re.compile(r"\b(?:whet|numpy|torch|jaxtyping|pathlib|collections|typing)(?:\.\w+)*\.(\w+)")


def openapi():
    """The server's own description of itself, but for whet's version."""
    described = build_app(ServeConfig(spaces={"docs": SPACE}, model=MODEL, name="model")).openapi()
    described["info"]["version"] = ""
    return pretty(described)


def helps():
    """What `--help` says of every command."""
    return "\n".join(
        f"$ {' '.join(['whet', *words])}\n{invoked([*words, '--help'])}"
        for words in commands(main, [])
    )


def commands(command, words):
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, [*words, name])


def invoked(words):
    return CliRunner().invoke(main, words, prog_name="whet", terminal_width=100).output


def json_keys():
    """Keys and types of what `--json` prints; of lists, those of all entries together.

    Not those that take minutes or a cluster: demo, which prints a report, and space serve.
    """
    with tempfile.TemporaryDirectory() as folder:
        return pretty({name: shape(whet_json(*words)) for name, words in calls(Path(folder))})


def calls(folder):
    """Every verb with `--json`, in an order in which each finds what it needs."""
    texts, space = folder / "texts.jsonl", folder / "space"
    records = [{"id": f"d{i}", "text": text, "n": i} for i, text in enumerate(TEXTS)]
    texts.write_text("".join(json.dumps(record) + "\n" for record in records))
    few, model = ["-n", 2, "-k", 4], ["--model", MODEL, "--device", "cpu"]
    answer = [*few, *model, "--json"]
    yield "index", ["index", texts, space, "--quiet", "--json"]
    yield "select", ["select", space, PROMPT, *few, "--json"]
    yield "select --targets", ["select", space, "--targets", texts, *few, "--json"]
    out = ["--out", folder / "picks.jsonl", "--json"]
    yield "select --targets --out", ["select", space, "--targets", texts, *few, *out]
    yield "explain", ["explain", space, PROMPT, *few, "--json"]
    more = ["--compare", "--max-tokens", 2]
    yield "generate", ["generate", space, PROMPT, *answer, "--max-tokens", 2]
    yield "generate --compare", ["generate", space, PROMPT, *answer, *more]
    yield "score", ["score", space, AFTER, "--prompt", PROMPT, *answer]
    run = folder / "run"
    switches = [f"model='{MODEL}'", "device='cpu'", "n=2", "k=4", "methods=['nearest', 'sift']"]
    switches = [word for switch in switches for word in ("--set", switch)]
    yield "eval", ["eval", SPACE, "--prompts", texts, "--out", run, *switches, "--quiet", "--json"]
    yield "report", ["report", run, "--json"]
    for view in ("uncertainty", "cost"):
        yield f"report --view {view}", ["report", run, "--view", view, "--json"]
    yield "space info", ["space", "info", space, "--json"]
    yield "space verify", ["space", "verify", space, "--json"]
    yield "space doctor", ["space", "doctor", space, "--prompts", texts, *few, "--json"]
    yield "space delete", ["space", "delete", space, "d1", "--json"]
    yield "space compact", ["space", "compact", space, "--quiet", "--json"]


def shape(value):
    """`value` with the name of its type in every leaf's place."""
    if isinstance(value, dict):
        return {
            # a title, which tells numbers that were measured, is a key with spaces
            NUMBER.sub("#", name) if " " in name else name: "str or null"
            if name in OF_THE_MACHINE
            else shape(part)
            for name, part in value.items()
        }
    if isinstance(value, list):
        merged = None
        for part in value:
            merged = shape(part) if merged is None else both(merged, shape(part))
        return [] if merged is None else [merged]
    return "null" if value is None else type(value).__name__


def both(one, other):
    """The shape of values of which some are like `one`, some like `other`."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = list(dict.fromkeys([*one, *other]))
        return {n: both(one[n], other[n]) if n in one and n in other else one.get(n, other.get(n))
                for n in names}  # fmt: skip
    if isinstance(one, list) and isinstance(other, list):
        return [both(one[0], other[0])] if one and other else one or other
    if isinstance(one, str) and isinstance(other, str):
        return " or ".join(sorted({*one.split(" or "), *other.split(" or ")}))
    return one if one == other else f"{json.dumps(one)} or {json.dumps(other)}"


def public():
    """Every public name with its signature, every public class with its attributes."""
    lines = ["whet.__all__:"]
    for name in whet.__all__:
        thing = getattr(whet, name)
        lines.append(f"{name}{signature(thing)}" if callable(thing) else f"{name} = {thing!r}")
        if inspect.isclass(thing):
            lines += [f"    .{member}" for member in members(thing)]
    return "\n".join(lines) + "\n"


def members(kind):
    """The public attributes that whet gave to a class, functions with their signatures."""
    ours = [each for each in kind.__mro__ if each.__module__.partition(".")[0] == "whet"]
    names = {
        name for each in ours for name in [*vars(each), *vars(each).get("__annotations__", {})]
    }
    for name in sorted(name for name in names if not name.startswith("_")):
        found = inspect.getattr_static(kind, name, None)
        found = getattr(found, "__func__", found)
        yield name + (signature(found) if inspect.isroutine(found) else "")


def signature(thing):
    """Its signature without the modules in which types are defined, which may move."""
    try:
        shown = PLACE.sub(r"\1", str(inspect.signature(thing)))
        return re.sub(r"<function (.+?) at \w+>", r"\1", shown)
    except (TypeError, ValueError):
        return ""


def pretty(record):
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


SNAPSHOTS = {"openapi.json": openapi, "help.txt": helps, "json_keys.json": json_keys,
             "public.txt": public}  # fmt: skip


def make():
    for name, shown in SNAPSHOTS.items():
        (HERE / name).write_text(shown(), encoding="utf-8")


def difference(name):
    """How what is shown now differs from the snapshot `name`, in a few lines; empty if not."""
    kept = (HERE / name).read_text(encoding="utf-8").splitlines()
    now = SNAPSHOTS[name]().splitlines()
    lines = list(difflib.unified_diff(kept, now, f"{name} kept", f"{name} now", "", "", 1, ""))
    more = [f"… and {len(lines) - LINES} lines more"] if len(lines) > LINES else []
    return "\n".join([*lines[:LINES], *more])
