"""How fast does a model that people use get better? SmolLM2-135M on real passages.

    python benchmarks/smollm2.py SPACE valid.jsonl.gz --model smollm2 --piece steps --json FILE
    python benchmarks/smollm2.py --render FILE

SPACE is a data space of passages of about 256 tokens, and the prompts are documents that it does not
contain: the first part of each is the query, what follows it is scored. Pieces: `steps` compares
the PEFT loop with slots, and all layers with the last ones; `quality` follows bits per byte along
the steps of each kind of training; `memory` is the peak of one request. `--clock cpu` counts
processor time instead of the clock's, for a machine that does other work: only with one thread.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from adapt_latency import (
    RANK,
    ROOT,
    P,
    Texts,
    compared,
    cut,
    in_slots,
    into_readme,
    machine,
    peft_loop,
    peft_network,
    plain_step,
)
from torch import Tensor

from whet.adapt.config import AdapterConfig, LMHead, LoRA
from whet.adapt.model import LanguageModel, Score
from whet.adapt.slots import Slots
from whet.data.documents import read_documents
from whet.errors import ModelError
from whet.select.config import SelectionConfig
from whet.space.retrieve import retrieve
from whet.space.space import DataSpace

T, STEPS = 256, 20
SCORED = (0, 1, 2, 3, 4, 6, 8, 10, 15, 20)
CONTEXT, TEXT = 600, 800  # characters of a document that are read, and that are scored after them
Rows = Iterator[tuple[str, Any]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is read and what is scored, and the passages to train on."""

    context: str
    text: str
    passages: Texts


def smollm2(name: str = "smollm2") -> LanguageModel:
    """The model `name`, or random weights of SmolLM2's shape if that cannot be loaded."""
    try:
        return LanguageModel.from_pretrained(name, device="cpu")
    except ModelError:
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
            rope_theta=100000.0, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        tokenizer = LanguageModel.from_pretrained("whet-nano").tokenizer
        return LanguageModel(AutoModelForCausalLM.from_config(config), tokenizer, "smollm2-random")


def prompts(model: LanguageModel, space: Path, file: Path, count: int, first: int) -> list[Prompt]:
    """Prompts spread evenly over the file, with their passages, each cut at 256 tokens."""
    data_space, chosen = DataSpace.open(space), list[Prompt]()
    long = [d.text for d in read_documents(file) if len(d.text) >= CONTEXT + TEXT]
    for text in long[first :: max(1, len(long) // count)][:count]:
        found = retrieve(data_space, text[:CONTEXT], SelectionConfig(n=STEPS), for_training=True)
        tokens = [model.training_tokens(d.text)[:T] for d in found.training_documents()[:STEPS]]
        chosen.append(Prompt(text[:CONTEXT], text[CONTEXT : CONTEXT + TEXT], tokens))
    return chosen


def seconds(clock: Callable[[], float], work: Callable[[], Any]) -> float:
    start = clock()
    work()
    return clock() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def steps(
    load: Callable[[], LanguageModel], chosen: list[Prompt], clock: Callable[[], float], rounds: int
) -> Rows:
    """Seconds per text of `P` prompts at once, and of the last layers, over all of them."""
    options = LoRA(lr=5e-4, r=RANK, lora_alpha=2 * RANK)
    plans = cut([p.passages[:2] for p in chosen], T)
    model, peer = load(), load()
    together, single = Slots(model, options, count=P), Slots(model, options)
    theirs, ours = peft_loop(peer, dict(together.initial)), in_slots(together)
    eight = [[plan[0]] for plan in (plans * P)[:P]]

    def alternate(a: Callable[..., Any], b: Callable[..., Any], work: Any) -> dict[str, Any]:
        pairs = []
        for _ in range(rounds + 1):
            pairs.append((seconds(clock, lambda: a(work)), seconds(clock, lambda: b(work))))
        texts = sum(map(len, work))
        before, after = zip(*pairs[1:], strict=True)
        ratios = [one / other for one, other in zip(before, after, strict=True)]
        return {
            "ratio": spread(ratios), "before_s": statistics.median(before) / texts,
            "after_s": statistics.median(after) / texts, "rounds": rounds,
        }  # fmt: skip

    with together.attached():
        compared(theirs, ours, [plan[:1] for plan in cut(plans[:1], 64)])
        yield "PEFT loop ÷ 8 slots", alternate(theirs, ours, eight)
    with single.attached():
        all_layers = in_slots(single)
        yield "PEFT loop ÷ 1 slot", alternate(theirs, all_layers, plans[:1])
        for name, config in {
            **{f"last {n} layers": LoRA(lr=5e-4, r=RANK, layers=f"last:{n}") for n in (8, 4, 2)},
            "head": LMHead(),
        }.items():
            top = Slots(load(), config)
            with top.attached():
                ratio = alternate(in_slots(top), all_layers, plans[:1])
                yield f"{name}, cached ÷ all layers", ratio
            del top


CONFIGS: dict[str, AdapterConfig] = {
    "all layers (default)": LoRA(lr=2e-3, r=16, lora_alpha=32),
    "all layers, 1e-3": LoRA(lr=1e-3, r=16, lora_alpha=32),
    "last 8 layers, 4e-3": LoRA(lr=4e-3, r=16, lora_alpha=32, layers="last:8"),
    "last 4 layers, 4e-3": LoRA(lr=4e-3, r=16, lora_alpha=32, layers="last:4"),
    "head, 1e-4": LMHead(lr=1e-4),
}
PEERS = {"PEFT loop, 5e-4": 5e-4}


def quality(
    load: Callable[[], LanguageModel], chosen: list[Prompt], clock: Callable[[], float], rounds: int
) -> Rows:
    """Bits and seconds after each scored number of steps, for each prompt and kind of training."""
    for name, rate in PEERS.items():
        peer = load()
        initial = dict(Slots(peer, LoRA(r=RANK, lora_alpha=2 * RANK)).initial)
        network, trained = peft_network(peer, initial)
        saved = [parameter.detach().clone() for parameter in trained]
        for prompt in chosen:
            with torch.no_grad():
                torch._foreach_copy_(trained, saved)
            optimizer = torch.optim.Adam(trained, rate, fused=True)
            step = partial(
                plain_step, network, peer.bos_token_id, peer.vocab_size, trained, optimizer
            )
            yield name, _curve(clock, prompt, step, partial(_score, peer))
        del peer, network, trained, saved
    model = load()
    for name, config in CONFIGS.items():
        slots = Slots(model, config)
        with slots.attached():
            for prompt in chosen:
                slots.reset(0)
                step, score = partial(_slot_step, slots), partial(_slot_score, slots)
                yield name, _curve(clock, prompt, step, score)


def _slot_step(slots: Slots, text: Tensor) -> Any:
    return slots.step({0: [text]})


def _slot_score(slots: Slots, prompt: Prompt) -> Score:
    return _score(slots.activate(0), prompt)


def _score(model: LanguageModel, prompt: Prompt) -> Score:
    return model.score(prompt.text, context=prompt.context)


def _curve(
    clock: Callable[[], float], prompt: Prompt, step: Callable[[Tensor], Any],
    score: Callable[[Prompt], Any],
) -> dict[str, Any]:  # fmt: skip
    first, spent = score(prompt), [0.0]
    bits = {0: first.bits}
    for number, text in enumerate(prompt.passages, 1):
        spent.append(spent[-1] + seconds(clock, lambda text=text: step(text)))  # type: ignore[misc]
        if number in SCORED:
            bits[number] = score(prompt).bits
    return {
        "num_bytes": first.num_bytes, "bits": bits,
        "seconds": {number: round(spent[number], 3) for number in bits},
    }  # fmt: skip


def memory(
    load: Callable[[], LanguageModel], chosen: list[Prompt], clock: Callable[[], float], rounds: int
) -> Rows:
    """Peak resident memory of one request in the engine's default slots, over the weights."""
    from whet.engine import Engine, Request, SamplingParams

    model = load()
    weights = {p.untyped_storage().data_ptr(): p.nbytes for p in model.hf_model.parameters()}
    before = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]
    with Engine(None, model, "lora") as engine:
        prompt = chosen[0]
        texts = [model.tokenizer.decode(t) for t in prompt.passages[:4]]
        request = Request(
            prompt=prompt.context, documents=[_document(t) for t in texts],
            sampling=SamplingParams(max_tokens=16),
        )  # fmt: skip
        engine.submit(request).result()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield (
        "one request",
        {
            "weights_gb": sum(weights.values()) / 1e9,
            "over_weights_gb": (peak - sum(weights.values())) / 1e9,
            "over_loaded_process_gb": (peak - 1024 * int(before)) / 1e9,
        },
    )


def _document(text: str) -> Any:
    from whet.data.documents import Document

    return Document("", text, {})


TARGETS = {
    "PEFT loop ÷ 8 slots": "1.5 / 2.5", "last 4 layers, cached ÷ all layers": "≤ 0.3 / ≤ 0.2",
    "one request": "≤ 1.5 GB / ≤ 0.8 GB",
}  # fmt: skip
REACHED = "seconds until the PEFT loop's value after 20 steps"
CACHED = {"last 8": "last 8 layers", "last 4": "last 4 layers", "head": "head"}
"""Beginnings of the curves of which the states can be cached, and of the rows of `steps`."""
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 380, 60, 20, 210, 50  # of the plot
COLORS = ("#d62728", "#1f77b4", "#17becf", "#2ca02c", "#9467bd", "#8c564b", "#ff7f0e")


def rendered(results: dict[str, Any]) -> str:
    """The tables of the README."""
    about = results["machine"]
    lines = [
        f"{about['cpu']}, torch {about['torch']}, transformers {about['transformers']}, peft "
        f"{about['peft']}. First table: {about['threads']} threads, by the clock, nothing else on "
        "the machine. Second: processor time of one thread, next to other work.",
        "",
        "| case | ratio | seconds per text, first → second | commit | target: minimum / stretch |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["steps"].items():
        lines.append(
            f"| {name} | **{row['ratio']['median']:.2f}** | {row['before_s']:.2f} → "
            f"{row['after_s']:.2f} | {row['commit']} | {TARGETS.get(name, '–')} |"
        )
    row = results["memory"]["one request"]
    lines.append(
        f"| peak memory of one request over the loaded process | "
        f"**{row['over_loaded_process_gb']:.2f} GB** | – | {row['commit']} | "
        f"{TARGETS['one request']} |"
    )
    steps = [n for n in SCORED if n]
    counts = {len(rows) for rows in results["quality"].values()}
    documents = "–".join(map(str, sorted({min(counts), max(counts)})))
    title = f"% of base after steps, mean of {documents} documents"
    lines += ["", f"| {title} | {' | '.join(map(str, steps))} | {REACHED} | PEFT loop ÷ it |"]
    lines += ["|---" * (len(steps) + 3) + "|"]
    every = curves(results)
    peer_s, goal = every[next(iter(PEERS))][-1]
    for name, points in every.items():
        if "cached" not in name:
            shares = [f"{share:.1f}" for _, share in points[1:]]
            reached = next((spent for spent, share in points if share <= goal), None)
            times = (
                ["never", "–"] if reached is None else [f"{reached:.1f}", f"{peer_s / reached:.1f}"]
            )
            lines.append(f"| {name} | {' | '.join([*shares, *times])} |")
    return "\n".join(lines)


def curves(results: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Mean seconds and bits in % of the base model's along the steps, by kind of training."""
    made: dict[str, list[tuple[float, float]]] = {}
    for name, rows in results["quality"].items():
        base, points = sum(row["bits"]["0"] for row in rows), []
        for n in rows[0]["bits"]:
            spent = statistics.mean(row["seconds"][n] for row in rows)
            points.append((spent, 100 * sum(row["bits"][n] for row in rows) / base))
        made[name] = points
        for beginning, row_name in CACHED.items():
            step = results["steps"].get(f"{row_name}, cached ÷ all layers")
            if name.startswith(beginning) and step:
                numbers = map(int, rows[0]["bits"])
                made[f"{name}, cached"] = [
                    (n * step["before_s"], share)
                    for n, (_, share) in zip(numbers, points, strict=True)
                ]
    return made


def plot(lines: dict[str, list[tuple[float, float]]]) -> str:
    """Bits against seconds as SVG; dashed where the states are cached."""
    most = max(x for points in lines.values() for x, _ in points)
    shares = [y for points in lines.values() for _, y in points]
    low, high = min(shares) - 1, max(shares) + 1

    def at(x: float, y: float) -> tuple[float, float]:
        right = LEFT + x / most * (WIDTH - LEFT - RIGHT)
        return right, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="{HEIGHT - 10}">seconds of training</text>',
        f'<text x="5" y="{TOP - 6}">bits per byte, % of the base model</text>',
    ]
    for share in range(int(low) + 1, int(high) + 1, 2):
        x, y = at(0, share)
        parts.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 28}" y="{y + 4}">{share}</text>')
    for second in range(0, int(most) + 1, 5):
        x, y = at(second, low)
        parts.append(f'<text x="{x - 4}" y="{y + 16}">{second}</text>')
    color = dict(zip([n for n in lines if "cached" not in n], COLORS, strict=False))
    for row, (name, points) in enumerate(lines.items()):
        stroke = color[name.removesuffix(", cached")]
        dashes = ' stroke-dasharray="4 3"' if "cached" in name else ""
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<path d="M{path}" fill="none" stroke="{stroke}" stroke-width="2"{dashes}/>')
        y = TOP + 14 * (row + 1)
        x = WIDTH - RIGHT + 8
        parts.append(f'<path d="M{x} {y - 4}h22" stroke="{stroke}" stroke-width="2"{dashes}/>')
        parts.append(f'<text x="{x + 28}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


PIECES = {"steps": steps, "quality": quality, "memory": memory}


@click.command()
@click.argument("space", type=Path, required=False)
@click.argument("file", type=Path, required=False)
@click.option("--model", default="smollm2", show_default=True)
@click.option("--piece", type=click.Choice(list(PIECES)), default="steps", show_default=True)
@click.option("--json", "path", type=Path, help="File that the results are added to.")
@click.option("--prompts", "count", default=2, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first prompt.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--render", type=Path, help="Only write this file's tables and plot.")
@click.option("--only", default="", help="Beginning of the rows of `quality` to measure.")
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True)
def main(
    space: Path, file: Path, model: str, piece: str, path: Path | None, count: int, first: int,
    rounds: int, render: Path | None, only: str, clock: str,
) -> None:  # fmt: skip
    if render:
        results = json.loads(render.read_text())
        into_readme("smollm2", rendered(results))
        (ROOT / "docs" / "smollm2.svg").write_text(plot(curves(results)))
        return
    for kinds in (PEERS, CONFIGS):
        for name in [name for name in kinds if not name.startswith(only)]:
            del kinds[name]  # type: ignore[attr-defined]
    load = partial(smollm2, model)
    chosen = prompts(load(), space, file, count, first)
    results = json.loads(path.read_text()) if path and path.exists() else {}
    results["machine"] = machine() | {"clock": clock}
    rows = results.setdefault(piece, {})
    for name, row in PIECES[piece](load, chosen, CLOCKS[clock], rounds):
        if piece == "quality":
            rows.setdefault(name, []).append(row)
        else:
            rows[name] = row
        if isinstance(row, dict):
            row["commit"] = results["machine"]["commit"]
        print(name, row, file=sys.stderr, flush=True)
        if path:
            path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
