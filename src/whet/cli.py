"""The command line: a verb parses, calls one function, prints; results on stdout, all else not.

Exit code 2 is for a wrong call, 1 for a world that is not as it must be.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

import whet
from whet.adapt.adaptation import MODES
from whet.errors import WhetError, naming_extras
from whet.evaluate.protocol import Switches
from whet.select.table import SELECTORS


class OneLine(click.ClickException):
    """An error as its user sees it."""

    def __init__(self, message: str, usage: bool) -> None:
        super().__init__(message)
        self.exit_code = 2 if usage else 1  # type: ignore[misc]  # click declares it as a constant


class Verbs(click.Group):
    """Turns whet's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with naming_extras():
                return super().invoke(ctx)
        except (WhetError, OSError, ValueError) as error:
            if ctx.params["debug"]:
                raise
            raise OneLine(" ".join(str(error).split()), isinstance(error, ValueError)) from error


def number_or_auto(value: Any) -> Any:
    return value if value == "auto" else click.FLOAT.convert(value, None, None)


Verb = Callable[..., Any]
AUTO: dict[str, Any] = {"type": number_or_auto, "metavar": "NUMBER|auto"}
PATH = click.Path(path_type=Path)
SPACE = click.argument("space", type=PATH)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
QUIET = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def options(*decorators: Callable[[Verb], Verb]) -> Callable[[Verb], Verb]:
    def apply(verb: Verb) -> Verb:
        for decorator in reversed(decorators):
            verb = decorator(verb)
        return verb

    return apply


SELECTION = options(
    click.option("-n", default=50, show_default=True, help="Texts to select, repeats included."),
    click.option("-k", default=200, show_default=True, help="Candidates nearest the prompt."),
    click.option(
        "--lam", default=0.01, show_default=True, help="λ', the noise: small is diverse.", **AUTO
    ),
    click.option(
        "--selector", type=click.Choice(list(SELECTORS)), default="sift", show_default=True
    ),
    click.option("--alpha", help="Stop before the first step with σ > 1 / (α n).", **AUTO),
)
ADAPTATION = options(
    click.option("--model", default="whet-nano", show_default=True, help="Name, folder or hub id."),
    click.option("--mode", type=click.Choice(list(MODES)), default="full", show_default=True),
    click.option("--lr", type=float, help="Learning rate [default: the model's, or the mode's]."),
    click.option("--rank", type=int, help="Rank of LoRA [default: 32]."),
)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(whet.__version__, prog_name="whet")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Sharpen a language model on every prompt.

    \b
    whet index texts.jsonl my.whet          make a data space
    whet select my.whet "a prompt" -n 10    the texts that tell most about its answer
    whet generate my.whet "a prompt"        sharpen on them, answer, put the weights back
    """


@main.command()
@click.argument("source")
@SPACE
@click.option("--embedder", default="lsa", show_default=True, help="lsa, st:NAME or hf:NAME.")
@click.option("--text-field", default="text", show_default=True, help="Field that holds the text.")
@JSON
@QUIET
def index(
    source: str, space: Path, embedder: str, text_field: str, as_json: bool, quiet: bool
) -> None:
    """Make a data space of SOURCE: JSONL(.gz), Parquet, a folder of texts, or hf:DATASET.

    Run again, it adds what is new in SOURCE and keeps the rest.
    """
    from whet.spaces import build_space

    made = build_space(source, space, embedder, text_field=text_field, progress=not quiet)
    record = {"space": str(space), "documents": len(made), "embedder": made.embedder.name}
    record |= {"dimension": made.dimension}
    _show(record, as_json, f"{space}: {len(made):,} documents, {made.embedder.name}")


@main.command()
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
    found = retrieve(opened, _read(prompt), _calibrated(opened, **selection))
    sigma = found.selection.sigma
    picks: list[dict[str, Any]] = [
        {"id": d.id, "sigma": float(s), "gain": float(g), "text": d.text}
        for d, s, g in zip(found.documents, sigma[1:], found.selection.gains, strict=True)
    ]
    lines = [f"{p['sigma']:.4f}  {p['id']}  {_line(p['text'])}" for p in picks]
    record = {"prompt": prompt, "sigma": sigma.tolist(), "picks": picks}
    _show(record, as_json, "\n".join(["σ       id  text", *lines]))


def _select_targeted(
    space: Path, targets: Path, out: Path | None, as_json: bool, repeats: bool,
    *, n: int, k: int, lam: Any, selector: str, alpha: Any,
) -> None:  # fmt: skip
    if selector != "sift" or alpha is not None or lam == "auto":
        raise click.UsageError("--selector, --alpha and auto are for one PROMPT, not for --targets")
    from whet.space.documents import read_documents
    from whet.space.targeted import training_set
    from whet.spaces import open_space

    texts = [document.text for document in read_documents(targets)]
    made = training_set(open_space(space), texts, n, k=k, lam=lam, repeats=repeats)
    summary: dict[str, Any] = {
        "targets": len(texts),
        "candidates": len(made.candidates),
        "steps": n,
    }
    summary |= {"documents": len(made), "sigma": float(made.selection.sigma[-1])}
    if out is None:
        record = summary | {"picks": list(made.records())}
        _show(record, as_json, "".join(made.lines()).rstrip("\n"))
        return
    made.write(out)
    plain = f"{out}: {len(made):,} texts, {n:,} steps, for {len(texts):,} targets"
    _show({"out": str(out), **summary}, as_json, f"{plain}; σ {summary['sigma']:.4f}")


@main.command()
@SPACE
@click.argument("prompt")
@SELECTION
@JSON
def why(space: Path, prompt: str, as_json: bool, **selection: Any) -> None:
    """Why each text was chosen for PROMPT: what it told, and the earlier pick it is most like."""
    from whet.select.explain import explain
    from whet.spaces import open_space, retrieve

    opened = open_space(space)
    found = retrieve(opened, _read(prompt), _calibrated(opened, **selection))
    names = [f"{d.id}  {_line(d.text)}" for d in opened.documents(found.candidates.rows)]
    told = explain(found.selection, found.query, found.candidates.vectors, names=names)
    ids = [document.id for document in found.documents]
    picks = [{"id": name, **row} for name, row in zip(ids, told.rows(), strict=True)]
    _show({"prompt": prompt, "sigma": told.sigma, "picks": picks}, as_json, str(told))


@main.command()
@SPACE
@click.argument("prompt")
@ADAPTATION
@SELECTION
@click.option("--max-tokens", default=128, show_default=True, help="Length of the answer.")
@click.option("--temperature", default=0.0, show_default=True, help="0 is the likeliest answer.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sampling.")
@JSON
def generate(
    space: Path,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    as_json: bool,
    **rest: Any,
) -> None:
    """Sharpen the model on SPACE for PROMPT, continue it, put the weights back ("-": stdin)."""
    prompt = _read(prompt)
    answer = _engine(space, **rest).generate(
        prompt, max_tokens=max_tokens, temperature=temperature, seed=seed
    )
    _show({"prompt": prompt, **_record(answer)}, as_json, answer.text)


@main.command()
@SPACE
@click.argument("text")
@click.option("--prompt", help="What comes before TEXT [default: the first half of TEXT].")
@ADAPTATION
@SELECTION
@JSON
def score(space: Path, text: str, prompt: str | None, as_json: bool, **rest: Any) -> None:
    """Bits per byte of TEXT before and after sharpening on what comes before it ("-": stdin)."""
    from whet.evaluate.protocol import Task

    text = _read(text)
    if prompt is None:
        task = Task.of(text, Switches())
        prompt, text = task.context, task.text
    answer = _engine(space, **rest).score(text, prompt=prompt)
    before, after = answer.base.bits_per_byte, answer.score.bits_per_byte
    record = {"base": before, "sharpened": after, **_record(answer)}
    plain = f"{before:.4f} bits per byte, sharpened {after:.4f} ({100 * after / before:.1f} %)"
    _show(record, as_json, plain)


@main.command(name="eval")
@SPACE
@click.option("--prompts", required=True, type=PATH, help="Documents to score.")
@click.option("--out", required=True, type=PATH, help="Folder of the run.")
@click.option("--per-set", type=click.IntRange(1), help="First documents a set [default: all].")
@click.option("--workers", default=1, show_default=True, help="Processes, of one thread each.")
@click.option("--config", type=PATH, help="Switches in TOML: see docs/protocol.md.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One switch.")
@JSON
@QUIET
def evaluate(
    space: Path, prompts: Path, out: Path, per_set: int | None, workers: int, config: Path | None,
    overrides: tuple[str, ...], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Every method on every prompt, in bits per byte; a run cut short goes on where it stopped."""
    from whet.evaluate.run import evaluate

    switches = Switches.read(config, overrides)
    evaluate(space, prompts, out, switches, per_set=per_set, workers=workers, progress=not quiet)
    _report(out, None, as_json)


@main.command()
@click.argument("run", type=PATH)
@click.option("--step", type=int, help="Gradient steps [default: the last scored].")
@click.option("--plot", type=PATH, help="Also draw the curves (.png, .svg).")
@JSON
def report(run: Path, step: int | None, plot: Path | None, as_json: bool) -> None:
    """The table of a run: bits per byte in % of the base model's, set by set."""
    if plot:
        from whet.evaluate.render import curves
        from whet.evaluate.run import finished

        curves(finished(run), plot)
        print(f"wrote {plot}", file=sys.stderr)
    _report(run, step, as_json)


@main.command()
@click.option("--out", default="runs/demo", show_default=True, type=PATH)
@click.option("--model", default="whet-nano", show_default=True, help="Name, folder or hub id.")
@click.option("--files", default=12, show_default=True, help="Held-out files of the library.")
@click.option("-n", default=20, show_default=True, help="Gradient steps a file.")
@JSON
@QUIET
def demo(out: Path, model: str, files: int, n: int, as_json: bool, quiet: bool) -> None:
    """The paper's claim on Python's standard library as found on this machine, in three minutes."""
    from whet.evaluate.demo import demo, show_picks

    demo(out, model=model, files=files, n=n, progress=not quiet)
    print(f"wrote {out / 'curves.png'}", file=sys.stderr)
    if not as_json:
        print(show_picks(out))
    _report(out / "run", None, as_json)


def _engine(
    space: Path, *, model: str, mode: str, lr: float | None, rank: int | None, **rest: Any
) -> Any:
    from whet.adapt.model import LanguageModel
    from whet.engine import Engine
    from whet.spaces import open_space

    loaded, opened = LanguageModel.load(model), open_space(space)
    return Engine(
        opened,
        loaded,
        loaded.adaptation(mode, lr=lr, rank=rank),
        options=_calibrated(opened, **rest),
    )


def _calibrated(space: Any, **selection: Any) -> Any:
    """Options with numbers for `auto`, which are told, so that the next call may name them."""
    from whet.spaces import Options, calibrated

    asked = Options(**selection)
    found = calibrated(space, asked)
    if found is not asked:
        alpha = "" if found.alpha is None else f" --alpha {found.alpha:.3g}"
        print(f"chosen on the data space: --lam {found.lam:g}{alpha}", file=sys.stderr)
    return found


def _record(answer: Any) -> dict[str, Any]:
    trace = [asdict(step) for step in answer.trace]
    return {"text": answer.text, "trace": trace, "seconds": answer.seconds}


def _report(run: Path, step: int | None, as_json: bool) -> None:
    from whet.evaluate.render import caption, table
    from whet.evaluate.report import report

    made = report(run, step)
    if as_json:
        print(json.dumps(made.record()))
        return
    console = Console(width=200 if not sys.stdout.isatty() else None, highlight=False)
    console.print(table(made))
    console.print(escape(caption(made)), soft_wrap=True)


def _read(prompt: str) -> str:
    return sys.stdin.read() if prompt == "-" else prompt


def _line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else flat[:79] + "…"


def _show(record: dict[str, Any], as_json: bool, plain: str) -> None:
    print(json.dumps(record) if as_json else plain)
