"""The evaluation of a GPU: the steps of many prompts and methods share each pass, with LoRA.

`prepare` selects the documents on any machine and writes them to one file, so that the machine with
the GPU needs neither the data space nor its embedder. `train` writes the same run as `whet eval`:
`whet report` reads it, and it resumes.

    python -m studies.batched prepare my.whet --prompts test.jsonl --config studies/smollm2.toml \
        --protocol paper picks.jsonl.gz
    python -m studies.batched train picks.jsonl.gz --out runs/gpu --slots 64 --limit-s 540
"""

import gzip
import json
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import click

from studies.__main__ import PATH, Command
from whet.adapt.checkpoints.loading import DTYPES
from whet.adapt.config import LoRA, TrainingConfig
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import AdaptationSession
from whet.adapt.slots import Slots
from whet.adapt.updates import Update
from whet.data.documents import Document
from whet.data.messages import MESSAGES, messages_of
from whet.errors import AdaptationError, ModelError
from whet.evaluate.config import EvalConfig, MethodConfig
from whet.evaluate.contamination import find_contamination
from whet.evaluate.dataset import Experiment
from whet.evaluate.picks import Picker, Picks
from whet.evaluate.provenance import peak_mib, space_record
from whet.evaluate.run_storage import FORMAT, append, pack, repair
from whet.evaluate.runner import auto_values, begin, with_auto_values
from whet.evaluate.steps import Row, ScoredSteps, Steps, remaining_rows
from whet.evaluate.tasks import ScoringTask
from whet.io import progress_bar
from whet.locks import exclusive_lock
from whet.space.space import DataSpace

Record = dict[str, Any]
Job = Generator[Update, list[float], None]
"""The training of one prompt by one method: yields each update and is sent its losses."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Evaluate many prompts at once on a GPU."""


@main.command(cls=Command)
@click.argument("space")
@click.argument("out", type=PATH)
@click.option("--prompts", required=True, help="Documents to score.")
@click.option("--config", type=PATH, required=True, help="TOML file, as for `whet eval`.")
@click.option("--protocol", type=click.Choice(["paper", "held-out"]), default="paper",
              show_default=True, help="As for `whet eval`.")  # fmt: skip
@click.option("--per-set", type=click.IntRange(0), help="Prompts per set; 0 for all.")
@click.option("--set", "overrides", multiple=True, help="KEY=VALUE, as for `whet eval`.")
def prepare(
    space: str, out: Path, prompts: str, config: Path, protocol: str, per_set: int | None,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Select the documents of every prompt and method, and write them to OUT (gzip, JSON lines)."""
    lines = [f"protocol={protocol}", f"data.space={json.dumps(space)}",
             f"data.prompts={json.dumps(prompts)}", *overrides]  # fmt: skip
    if per_set is not None:
        lines.append(f"data.per_set={per_set}")
    experiment = Experiment.read(config, lines)
    count = write_picks(experiment, out)
    click.echo(f"wrote {count} prompts to {out}, {out.stat().st_size / 2**20:.1f} MiB", err=True)


@main.command(cls=Command)
@click.argument("picks", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder of the run.")
@click.option("--model", help="Model [default: that of the configuration].")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True,
              help="Precision of the model's computations.")  # fmt: skip
@click.option("--slots", default=48, show_default=True, help="Trainings that share a pass.")
@click.option("--limit-s", type=float, help="Stop after this many seconds; call again to go on.")
def train(
    picks: Path, out: Path, model: str | None, dtype: str, slots: int, limit_s: float | None
) -> None:
    """Train and score every prompt of PICKS, and write the run to OUT; an interrupted run resumes."""
    started = time.monotonic()
    with gzip.open(picks, "rt", encoding="utf-8") as file:
        head = json.loads(next(file))
        config = EvalConfig.from_table(head["config"])
        loaded = LanguageModel.from_pretrained(model or config.model, dtype=DTYPES[dtype])
        batched = Batched(loaded, EvalConfig.from_table(head["resolved"]), slots)
        adapters = {m.name: {"name": "lora"} | asdict(batched.adapter) for m in batched.methods}
        meta = {key: head[key] for key in ("config", "space", "prompts")}
        if head["auto"]:
            meta["auto"] = head["auto"]
        begin(out, {"format": FORMAT, "adapters": adapters, **meta})
        with exclusive_lock(out):
            finished = repair(out)
            prompts = _read_prompts(file)
            remaining = (prompt for prompt in prompts if prompt["prompt"] not in finished)
            deadline = math.inf if limit_s is None else started + limit_s
            with progress_bar("train", None, show=True) as advance:
                for record in batched.records(remaining, deadline):
                    append(out, record)
                    advance(1)
            pack(out)
            click.echo(f"{len(repair(out))} prompts are finished", err=True)


def write_picks(experiment: Experiment, out: Path) -> int:
    """Write what the methods of `experiment` train on for every prompt; return their number.

    The first line has the configuration, with numbers for `auto`; each further line has a prompt,
    the ids and σ of its picks by method, and the texts that no line before it has.
    """
    space, prompts = experiment.data.open_space(), experiment.data.read_prompts()
    chosen = auto_values(space, experiment.config)
    resolved = with_auto_values(experiment.config, chosen)
    head = {
        "config": experiment.config.to_table(), "resolved": resolved.to_table(),
        "space": space_record(space), "auto": chosen, "prompts": prompts.fingerprint,
    }  # fmt: skip
    picker, written = Picker(space, resolved), set[str]()
    with gzip.open(out, "wt", encoding="utf-8") as file:
        file.write(json.dumps(head) + "\n")
        with progress_bar("select", len(prompts.prompts), show=True) as advance:
            for prompt in prompts.prompts:
                record = _picks_of(space, picker, prompt.document, resolved)
                texts = record.pop("texts", {})
                record["texts"] = {n: text for n, text in texts.items() if n not in written}
                written |= texts.keys()
                file.write(json.dumps(record | {"set": prompt.set}) + "\n")
                advance(1)
    return len(prompts.prompts)


def _picks_of(space: DataSpace, picker: Picker, document: Document, config: EvalConfig) -> Record:
    """The picks of every method for one prompt; if that fails, the error."""
    record: Record = {"prompt": document.id, "text": document.text}
    try:
        [task] = ScoringTask.of(document.text, config)
        found = find_contamination(space, task.query, task.text, document.text, config)
        picks = {m.name: picker.pick(m, document, task) for m in config.method_configs}
    except ValueError as error:
        return record | {"error": str(error)}
    contamination = asdict(found) | {"cosines": found.cosines.tolist()}
    methods = {
        name: {"ids": [d.id for d in each.documents], "sigma": each.sigma,
               "seconds": each.seconds, "seed": each.training.seed, "n": each.n,
               "learned_ratio": each.learned_ratio}
        for name, each in picks.items()
    }  # fmt: skip
    documents = {d.id: d for each in picks.values() for d in each.documents}
    texts = {name: _as_record(document) for name, document in documents.items()}
    return record | {"contamination": contamination, "methods": methods, "texts": texts}


def _as_record(document: Document) -> str | Record:
    """What is trained on of a document: its text, and its messages if it is a conversation."""
    messages = messages_of(document.meta, document.text)
    return {"text": document.text, MESSAGES: messages} if messages else document.text


def _as_document(name: str, record: str | Record) -> Document:
    if isinstance(record, str):
        return Document(name, record, {})
    return Document(name, record["text"], {MESSAGES: record[MESSAGES]})


def _read_prompts(lines: Iterator[str]) -> Iterator[Record]:
    """The prompts of a file of `prepare`, with the texts of their picks."""
    texts = dict[str, str | Record]()
    for line in lines:
        record = json.loads(line)
        texts |= record.pop("texts")
        ids = {name for method in record.get("methods", {}).values() for name in method["ids"]}
        yield record | {"texts": {name: texts[name] for name in ids}}


@dataclass(slots=True)
class _Prompt:
    """A prompt in training: what is known of it, and the methods that are not finished."""

    record: Record
    task: ScoringTask
    missing: int
    rows: list[Row] = field(default_factory=list)
    base: Score | None = None
    """Score of the base model; LoRA changes nothing before its first step."""
    query: Score | None = None
    """Score of the query by the base model."""
    base_s: float = 0.0
    error: str = ""


class Batched:
    """Trains and scores the picks of many prompts and methods, each in its own slot."""

    def __init__(self, model: LanguageModel, config: EvalConfig, slots: int) -> None:
        """Check that all methods train one LoRA adapter in the same way.

        Raises:
            ValueError: If they do not, or do more than take steps on documents.
        """
        self._model, self._config, self.methods = model, config, config.method_configs
        made = {
            (model.adapter_config(m.adapter.name, **m.adapter.options), m.optimizer)
            for m in self.methods
        }
        plain = all(m.use == "steps" and m.train_on == "documents" for m in self.methods)
        if len(made) > 1 or not plain or config.leakage == "score-first":
            raise ValueError("expected methods that take steps with the same adapter and optimizer")
        [(self.adapter, optimizer)] = made
        if not isinstance(self.adapter, LoRA):
            raise ValueError(f"adapter is {self.adapter}: expected lora, which shares passes")
        self._slots = Slots(model, self.adapter, optimizer, count=slots)

    def records(self, prompts: Iterator[Record], deadline: float = math.inf) -> Iterator[Record]:
        """The record of every prompt, as `Evaluator.record` makes it, in the order of finishing.

        After the deadline (of `time.monotonic`), prompts that have not been finished are dropped.
        """
        jobs = self._jobs(prompts)
        active = dict[int, tuple[Job, Update, _Prompt]]()
        with self._slots.attached():
            while time.monotonic() < deadline:
                for slot in set(range(len(self._slots))) - active.keys():
                    if (following := next(jobs, None)) is None:
                        break
                    prompt, method = following
                    if method is None:
                        yield _finished(prompt)
                        continue
                    job = self._job(slot, prompt, method)
                    self._advance(active, slot, job, None, prompt)
                    if not prompt.missing:
                        yield _finished(prompt)
                if not active:
                    return
                for prompt in self._take_step(active):
                    yield _finished(prompt)

    def _jobs(self, prompts: Iterator[Record]) -> Iterator[tuple[_Prompt, MethodConfig | None]]:
        """Every method of every prompt, in turn; a prompt that failed has no method."""
        for record in prompts:
            text = record.pop("text")
            if "error" in record:
                yield _Prompt(record, ScoringTask("", "", text), 0, error=record["error"]), None
                continue
            [task] = ScoringTask.of(text, self._config)
            prompt = _Prompt(record, task, len(self.methods))
            for method in self.methods:
                yield prompt, method

    def _take_step(self, active: dict[int, tuple[Job, Update, _Prompt]]) -> list[_Prompt]:
        """One update of every slot; the prompts that are finished."""
        updates = {slot: update for slot, (_, update, _) in active.items()}
        fresh = {s: [e.text for e in u.examples] for s, u in updates.items() if not u.reused}
        losses = self._slots.step(fresh)
        self._slots.repeat_step([slot for slot, update in updates.items() if update.reused])
        prompts = []
        for slot in sorted(updates):
            job, _, prompt = active.pop(slot)
            before = prompt.missing
            self._advance(active, slot, job, losses.get(slot, []), prompt)
            if before and not prompt.missing:
                prompts.append(prompt)
        return prompts

    def _advance(
        self,
        active: dict[int, tuple[Job, Update, _Prompt]],
        slot: int,
        job: Job,
        losses: list[float] | None,
        prompt: _Prompt,
    ) -> None:
        """Run a job to its next update, or to its end, after which the slot is free."""
        try:
            update = next(job) if losses is None else job.send(losses)
        except StopIteration:
            prompt.missing -= 1
        except (AdaptationError, ModelError, ValueError) as error:
            prompt.missing, prompt.error = prompt.missing - 1, str(error)
        else:
            active[slot] = job, update, prompt

    def _job(self, slot: int, prompt: _Prompt, method: MethodConfig) -> Job:
        """The rows of one method on one prompt, which are added to the prompt at the end."""
        chosen, texts = prompt.record["methods"][method.name], prompt.record["texts"]
        made = {name: _as_document(name, texts[name]) for name in set(chosen["ids"])}
        documents = [made[name] for name in chosen["ids"]]
        training = _with_seed(method, chosen["seed"])
        picks = Picks(
            documents, chosen["sigma"], chosen["seconds"], training, chosen["n"],
            chosen["learned_ratio"],
        )  # fmt: skip
        session, task = AdaptationSession(self._slots, slot, training=training), prompt.task
        if prompt.base is None:
            start = time.perf_counter()
            prompt.base = session.score(task.text, context=task.context)  # before any step
            prompt.base_s = time.perf_counter() - start
            is_scored = task.query == task.text
            prompt.query = prompt.base if is_scored else session.score(task.query)
        base = prompt.base
        blank = Row(method.name, 0, base.num_bytes, base.bits)
        steps = Steps(blank, picks)
        first = replace(blank, bits=base.bits, sigma=picks.sigma[0], **picks.seconds)
        scores = ScoredSteps(
            steps,
            self._config.steps,
            lambda _: session.score(task.text, context=task.context),
            session,
        )
        yield from session.run(
            picks.updates(self._model, task.query),
            limit=picks.n,
            before_update=scores.before_update,
            after_update=scores.after_update,
        )
        scores.finish()
        rows = [first, *steps.rows]
        prompt.rows += rows + remaining_rows(blank, rows[-1], self._config.steps)


def _with_seed(method: MethodConfig, seed: int) -> TrainingConfig:
    return replace(method.training, seed=seed)


def _finished(prompt: _Prompt) -> Record:
    """The record of a prompt, as `Evaluator.record` makes it."""
    record: Record = {key: prompt.record[key] for key in ("prompt", "set")}
    if prompt.error:
        return record | {"error": prompt.error}
    assert prompt.query is not None
    order = {name: i for i, name in enumerate(prompt.record["methods"])}
    rows = sorted(prompt.rows, key=lambda row: (order[row.method], row.step))
    return {
        **record,
        **prompt.record["contamination"],
        "parts": 1,
        "bytes": rows[0].bytes,
        "base_bits": rows[0].base_bits,
        "base_s": prompt.base_s,
        "query_bytes": prompt.query.num_bytes,
        "query_bits": prompt.query.bits,
        "peak_mib": peak_mib(),
        "rows": {f.name: [getattr(row, f.name) for row in rows] for f in fields(Row)},
    }


if __name__ == "__main__":
    main(prog_name="python -m studies.batched")
