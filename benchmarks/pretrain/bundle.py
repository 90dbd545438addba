"""Copy a trained model into the package and write its model card.

    python benchmarks/pretrain/bundle.py WORK nano valid.jsonl.gz --lr full=5e-4 --lr lora=2e-3

Copies WORK/NAME to src/whet/assets/whet-NAME, adds the learning rates that were tuned on `valid` to
its config.json, and writes README.md: data, steps, bits per byte by set.
"""

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from whet.adapt.model import LanguageModel, Score
from whet.data.documents import read_documents

ASSETS = Path(__file__).parents[2] / "src" / "whet" / "assets"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
CARD = """# whet-{name}

A language model small enough to be part of the package: GPT-2's architecture, {layers} layers ×
{width}, {heads} heads, {parameters:,} parameters, context 512, byte-level BPE of 8,192 tokens,
bfloat16, {megabytes:.1f} MB. It lets whet run without a download. It knows little and is not
an assistant.

**Data.** {documents:,} documents, {corpus_tokens:,} tokens of permissively licensed or
public-domain English text and code: {sets}. Licenses: public domain, CC0, CC BY, MIT, Apache-2.0,
BSD. Excluded are non-commercial, share-alike and copyleft texts, and comments whose authors
granted no license. None of it is in the benchmark corpus's space, valid or test split.

**Training.** {steps:,} steps of 8,192 tokens ({tokens:,} tokens, less than one pass), Muon for
hidden matrices, AdamW for the rest, peak rate {lr}, on one thread of a shared two-core machine in
{hours:.1f} hours. Made by `benchmarks/pretrain/`, seed 0.

**Learning rates at test time**, tuned on `valid`: {rates}. They are in `config.json` as
`whet_learning_rates`.

**Bits per byte** on `valid` (30 documents per set, byte-weighted):

| set | bits per byte |
|---|---|
{table}
"""


@click.command(help=__doc__)
@click.argument("work", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name")
@click.argument("valid", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--lr", "rates", multiple=True, metavar="MODE=RATE")
def main(work: Path, name: str, valid: Path, rates: tuple[str, ...]) -> None:
    target = ASSETS / f"whet-{name}"
    target.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        shutil.copy(work / name / file, target / file)
    config: dict[str, Any] = json.loads((target / "config.json").read_text())
    tuned = {mode: float(rate) for mode, _, rate in (line.partition("=") for line in rates)}
    config["whet_learning_rates"] = tuned
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    meta = json.loads((work / "meta.json").read_text())
    training = json.loads((work / name / "training.json").read_text())
    card = CARD.format(
        name=name,
        megabytes=sum((target / file).stat().st_size for file in FILES) / 1e6,
        documents=meta["documents"],
        corpus_tokens=meta["tokens"],
        sets=", ".join(f"{s} {n / 1e6:.1f} MB" for s, n in meta["sets"].items() if n > 1e5),
        hours=training["seconds"] / 3600,
        rates=", ".join(f"{mode} {rate:g}" for mode, rate in tuned.items()) or "none",
        table=table(target, valid),
        **training,
    )
    (target / "README.md").write_text(card)
    click.echo(card)


def table(folder: Path, valid: Path) -> str:
    model = LanguageModel.from_pretrained(folder)
    scores: dict[str, list[Score]] = defaultdict(list)
    for document in read_documents(valid):
        scores[document.meta["set"]].append(model.score(document.text))
    lines = [f"| {name} | {bits_per_byte(values):.3f} |" for name, values in sorted(scores.items())]
    everything = [score for values in scores.values() for score in values]
    return "\n".join([*lines, f"| all | {bits_per_byte(everything):.3f} |"])


def bits_per_byte(scores: list[Score]) -> float:
    return sum(s.bits for s in scores) / sum(s.num_bytes for s in scores)


if __name__ == "__main__":
    main()
