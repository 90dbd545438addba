"""How long does a gradient step take in slots, beside a PEFT loop, a full loop and bare products?

    python benchmarks/adapt_latency.py --json benchmarks/results/adapt_latency.json --case lora
    python benchmarks/adapt_latency.py --render benchmarks/results/adapt_latency.json

Prompts are of the corpus's valid split, texts their nearest by `lsa`; the corpus is the folder that
WHET_CORPUS_FOLDER names. Cases add to the JSON file one by one. Losses are compared before any
timing.
"""

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from whet.adapt.config import FullFineTuning, LMHead, LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots
from whet.adapt.tuners.lora import DOWN, linear_layers, widths
from whet.data.documents import read_documents
from whet.select.config import SelectionConfig
from whet.space.retrieve import retrieve
from whet.space.space import DataSpace

ROOT = Path(__file__).parents[1]
CORPUS = Path(os.environ.get("WHET_CORPUS_FOLDER", "corpus"))
LENGTHS = (32, 128, 256)
P, RANK = 8, 32
Plan = list[Tensor]  # the texts of one prompt


def workload(model: LanguageModel, space: Path, prompts: int, texts: int) -> list[Plan]:
    """The nearest `texts` of each of the first `prompts` of valid, as tokens, uncut."""
    opened = DataSpace.build(CORPUS / "space.jsonl.gz", space)
    options = SelectionConfig(selector="nearest", n=texts, k=max(texts, 20))
    asked = list(read_documents(CORPUS / "valid.jsonl.gz"))[:prompts]
    return [
        [model.lesson(found.text) for found in retrieve(opened, prompt.text, options).documents]
        for prompt in asked
    ]


def plain(model: LanguageModel) -> LanguageModel:
    """The same model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    source = ROOT / "src" / "whet" / "assets" / model.name
    network = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return LanguageModel(network, model.tokenizer, model.name)


def cut(plans: Sequence[Plan], length: int) -> list[Plan]:
    """Texts of exactly `length` tokens: a shorter one is repeated up to it."""
    return [[text.repeat(-(-length // len(text)))[:length] for text in plan] for plan in plans]


def uncut(plans: Sequence[Plan]) -> list[Plan]:
    return [[text[:256] for text in plan] for plan in plans]


def in_slots(slots: Slots) -> Callable[[list[Plan]], list[list[float]]]:
    """Prompts in lock-step, `len(slots)` at a time; gives the losses."""

    def work(plans: list[Plan]) -> list[list[float]]:
        losses: list[list[float]] = []
        for first in range(0, len(plans), len(slots)):
            part = plans[first : first + len(slots)]
            own: list[list[float]] = [[] for _ in part]
            for slot, plan in enumerate(part):
                slots.reset(slot)
                slots.prepare(plan)
            for step in range(len(part[0])):
                lessons = {slot: [plan[step]] for slot, plan in enumerate(part)}
                for slot, loss in slots.step(lessons).items():
                    own[slot] += loss
            losses += own
        return losses

    return work


def loop(
    network: Any, start: int, vocabulary: int, parameters: list[Tensor], lr: float
) -> Callable[[list[Plan]], list[list[float]]]:
    """What one writes without whet: batch 1, no padding, weights copied back for each prompt."""
    saved = [parameter.detach().clone() for parameter in parameters]

    def work(plans: list[Plan]) -> list[list[float]]:
        losses: list[list[float]] = []
        for plan in plans:
            with torch.no_grad():
                for parameter, old in zip(parameters, saved, strict=True):
                    parameter.copy_(old)
            optimizer = torch.optim.Adam(parameters, lr, fused=True)
            own = []
            for text in plan:
                optimizer.zero_grad()
                text = text.to(parameters[0].device)
                ids = functional.pad(text, (1, 0), value=start)[None, :-1]
                logits = network(input_ids=ids, use_cache=False).logits[0, :, :vocabulary].float()
                loss = functional.cross_entropy(logits, text)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                own.append(loss.item())
            losses.append(own)
        return losses

    return work


def peft_loop(model: LanguageModel, start: dict[str, Tensor]) -> Any:
    """The same LoRA by the peft library, A as whet has it."""
    import peft

    targets = sorted({name.rpartition(".")[2] for name in linear_layers(model.network)})
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Conv1D is transposed, which peft then sees to
        wrapped = peft.get_peft_model(model.network, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_A" in name:
                layer = name.removeprefix("base_model.model.").partition(".lora_A")[0]
                parameter.copy_(start[layer + DOWN])
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    return loop(wrapped, model.start, model.vocabulary, trained, 5e-4)


def floor(model: LanguageModel, length: int) -> float:
    """Seconds of the bare products of one text's LoRA step, and of one pass of the optimiser."""
    layers = [widths(module) for module in linear_layers(model.network).values()]
    config = model.network.config
    heads, inner = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    shapes: list[tuple[int, ...]] = []  # rows, inner, columns, and a batch
    for wide_in, wide_out in layers:
        shapes += [(length, wide_in, wide_out), (length, wide_out, wide_in)]
        shapes += [(length, wide_in, RANK), (length, RANK, wide_out), (length, wide_out, RANK)]
        shapes += [(wide_out, length, RANK), (RANK, length, wide_in), (length, RANK, wide_in)]
    for _ in range(config.num_hidden_layers):
        shapes += 3 * [(length, inner, length, heads), (length, length, inner, heads)]
    shapes += [
        (length, config.hidden_size, model.vocabulary),
        (length, model.vocabulary, config.hidden_size),
    ]
    products = sum(_product(shape) * shapes.count(shape) for shape in set(shapes))
    n = sum(RANK * sum(pair) for pair in layers)
    source = torch.randn(2**23)
    goal = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _median(lambda: goal.copy_(source))
    return products + 7 * 4 * n / bandwidth  # reads θ, g, m, v; writes θ, m, v


def _product(shape: tuple[int, ...]) -> float:
    rows, inner, columns, *batch = shape
    left, right = torch.randn(*batch, rows, inner), torch.randn(*batch, inner, columns)
    out = torch.empty(*batch, rows, columns)
    return _median(lambda: torch.matmul(left, right, out=out))


def _median(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(12):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def rounds(
    plans: list[Plan], a: Callable[..., Any], b: Callable[..., Any], count: int, together: int = 1
) -> dict[str, Any]:
    """`together` prompts by a, then by b, then the next: seconds a text, and a ÷ b of each pair."""
    groups = [plans[first : first + together] for first in range(0, len(plans), together)]
    for work in (a, b):
        work(groups[-1])  # to warm up
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for group in groups:
            for work, kept in zip((a, b), seconds, strict=True):
                start = time.perf_counter()
                work(group)
                kept.append((time.perf_counter() - start) / sum(map(len, group)))
    ratios = [first / second for first, second in zip(*seconds, strict=True)]
    return {
        "ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios),
        "peer_ms": 1e3 * statistics.median(seconds[0]), "ms": 1e3 * statistics.median(seconds[1]),
        "pairs": len(ratios), "texts": sum(map(len, plans)),
    }  # fmt: skip


def compared(a: Callable[..., Any], b: Callable[..., Any], plans: list[Plan]) -> None:
    """The same losses within 1e-3, or no timing."""
    np.testing.assert_allclose(a(plans), b(plans), rtol=1e-3)


def lora(model: LanguageModel, plans: list[Plan], count: int) -> dict[str, Any]:
    slots = Slots(model, LoRA(lr=5e-4, r=RANK, lora_alpha=2 * RANK), count=P)
    peer = plain(model)
    theirs, ours, found = peft_loop(peer, dict(slots.start)), in_slots(slots), {}
    with slots.attached():
        compared(theirs, ours, [plan[:2] for plan in cut(plans, 64)])
        for length in LENGTHS:
            found[f"lora T={length}"] = rounds(cut(plans, length), theirs, ours, count, P)
        found["lora uncut"] = rounds(uncut(plans), theirs, ours, count, P)
        mean = floor(model, 256)
        found["floor T=256"] = {
            "ratio": found["lora T=256"]["ms"] / (1e3 * mean), "floor_ms": 1e3 * mean,
            "ms": found["lora T=256"]["ms"],
        }  # fmt: skip
        whole = 20 * found["lora T=128"]["ms"]  # a query of 20 texts
        reset = 1e3 * _median(lambda: slots.reset(0))
        found["reset share"] = {"percent": 100 * reset / whole, "ms": reset}
    return found


def full(model: LanguageModel, plans: list[Plan], count: int) -> dict[str, Any]:
    peer = plain(model)
    slots, trained = Slots(model, FullFineTuning()), list(peer.network.parameters())
    made = Slots(LanguageModel.from_pretrained(model.name), FullFineTuning(), compiled=True)
    theirs = loop(peer.network, peer.start, peer.vocabulary, trained, 5e-5)
    found, plans = {}, uncut(plans)
    for name, own in (("full", slots), ("full, compiled", made)):
        with own.attached():
            ours = in_slots(own)
            compared(theirs, ours, [plan[:2] for plan in plans])
            found[f"{name} uncut"] = rounds(plans, theirs, ours, count)
    return found


def head(model: LanguageModel, plans: list[Plan], count: int) -> dict[str, Any]:
    peer, found = LanguageModel.from_pretrained(model.name), {}
    whole, plans = Slots(peer, FullFineTuning()), uncut(plans)
    for name, room in (("not cached", 0), ("cached", 2**30)):  # 0 holds one prompt's texts
        slots = Slots(model, LMHead(), cache_bytes=room)
        with whole.attached(), slots.attached():
            ours = in_slots(slots)
            ours(plans)  # fills the cache
            found[f"head, trunk {name}"] = rounds(plans, in_slots(whole), ours, count)
    return found


CASES = {"lora": lora, "full": full, "head": head}
ASKED = {
    "lora T=32": "2.5× / 5×", "lora T=128": "1.5× / 3×", "lora T=256": "1.2× / 2×",
    "full uncut": "1.2× / 1.6×", "full, compiled uncut": "1.2× / 1.6×",
    "floor T=256": "≤ 2.5 / ≤ 1.7", "reset share": "< 1 %",
    "head, trunk not cached": "1.6× / 2×", "head, trunk cached": "2.5× / 3×",
}  # fmt: skip
TITLES = {
    "lora": "LoRA, P=8: PEFT loop ÷ slots", "full": "full, one prompt: full loop ÷ slot",
    "full, compiled": "full, one prompt, compiled: full loop ÷ slot",
    "head": "full in a slot ÷ head in a slot", "floor": "LoRA, P=8: slots ÷ bare products",
    "reset": "reset's share of a query of 20 texts",
}  # fmt: skip


def rendered(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, transformers "
        f"{about['transformers']}, peft {about['peft']}; commit {about['commit']}. "
        "Median (least–greatest).",
        "",
        "| case | ratio | ms a text, peer or floor → whet | target: minimum / stretch |",
        "|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        kind = max((known for known in TITLES if name.startswith(known)), key=len)
        title = f"{TITLES[kind]}, {name.removeprefix(kind).lstrip(', ')}"
        asked = ASKED.get(name, "–")
        if "percent" in row:
            lines.append(f"| {title} | **{row['percent']:.2f} %** | {row['ms']:.2f} | {asked} |")
            continue
        span = f" ({row['least']:.2f}–{row['greatest']:.2f})" if "least" in row else ""
        before = row.get("peer_ms", row.get("floor_ms"))
        lines.append(
            f"| {title} | **{row['ratio']:.2f}×**{span} "
            f"| {before:.1f} → {row['ms']:.1f} | {asked} |"
        )
    return "\n".join(lines)


def into_readme(name: str, table: str) -> None:
    """Put the table between the marks called `name` in the README beside this file."""
    readme = ROOT / "benchmarks" / "README.md"
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = readme.read_text().split(f"{first}\n")
    readme.write_text(f"{before}{first}\n{table}\n{last}{rest.split(last, 1)[1]}")


def machine() -> dict[str, Any]:
    known = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in known if "model name" in x), platform.machine())
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, text=True, capture_output=True, check=False).stdout
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"cpu": cpu, "threads": torch.get_num_threads(), "commit": commit.strip(), **versions}


@click.command()
@click.option("--case", type=click.Choice(list(CASES)), multiple=True, default=list(CASES))
@click.option("--json", "path", type=Path, help="Where results are added.")
@click.option("--render", type=Path, help="Put this file's table into the README, time nothing.")
@click.option("--space", type=Path, help="The corpus's data space; made here if there is none.")
@click.option("--prompts", default=32, show_default=True)
@click.option("--texts", default=20, show_default=True, help="Texts of a prompt.")
@click.option("--rounds", "count", default=1, show_default=True, help="Over all prompts.")
def main(
    case: tuple[str, ...], path: Path | None, render: Path | None, space: Path | None,
    prompts: int, texts: int, count: int,
) -> None:  # fmt: skip
    if render:
        into_readme("adapt_latency", rendered(json.loads(render.read_text())))
        return
    model = LanguageModel.from_pretrained("whet-nano")
    with tempfile.TemporaryDirectory() as folder:
        plans = workload(model, space or Path(folder) / "space", prompts, texts)
    found = json.loads(path.read_text()) if path and path.exists() else {"rows": {}}
    for name in case:
        rows = CASES[name](model, plans, count)
        found["rows"] |= {key: row | {"prompts": prompts} for key, row in rows.items()}
        found["machine"] = machine()
        if path:
            path.write_text(json.dumps(found, indent=1) + "\n")
    click.echo(rendered(found))


if __name__ == "__main__":
    main()
