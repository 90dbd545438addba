"""How long does a gradient step take in slots, compared with plain loops and bare products?

    python benchmarks/adapt_latency.py --json benchmarks/results/adapt_latency.json --case lora
    python benchmarks/adapt_latency.py --render benchmarks/results/adapt_latency.json

The prompts come from the corpus's valid split and the texts are their nearest documents by `lsa`;
WHET_CORPUS_FOLDER names the folder of the corpus. The plain loops are one with PEFT's LoRA and one
that trains all weights. Each case is added to the JSON file. Losses are compared before any timing.
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
from whet.adapt.tuners.lora import LORA_A, in_out_features, linear_layers
from whet.adapt.tuners.state_cache import CacheLimits
from whet.data.documents import read_documents
from whet.select.config import SelectionConfig
from whet.space.retrieve import retrieve
from whet.space.space import DataSpace

ROOT = Path(__file__).parents[1]
CORPUS = Path(os.environ.get("WHET_CORPUS_FOLDER", "corpus"))
LENGTHS = (32, 128, 256)
P, RANK = 8, 32
Texts = list[Tensor]  # the tokens of the texts of one prompt


def workload(model: LanguageModel, space: Path, prompts: int, texts: int) -> list[Texts]:
    """Return the tokens of the `texts` nearest documents of the first `prompts` of valid."""
    data_space = DataSpace.build(CORPUS / "space.jsonl.gz", space, chunks="whole")
    options = SelectionConfig(selector="nearest", n=texts, k=max(texts, 20))
    documents = list(read_documents(CORPUS / "valid.jsonl.gz"))[:prompts]
    return [
        [
            model.training_tokens(d.text)
            for d in retrieve(data_space, prompt.text, options).documents
        ]
        for prompt in documents
    ]


def plain(model: LanguageModel) -> LanguageModel:
    """Return the model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    source = ROOT / "src" / "whet" / "assets" / model.name
    network = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return LanguageModel(network, model.tokenizer, model.name)


def cut(plans: Sequence[Texts], length: int) -> list[Texts]:
    """Cut texts to exactly `length` tokens; a shorter one is repeated."""
    return [[text.repeat(-(-length // len(text)))[:length] for text in plan] for plan in plans]


def uncut(plans: Sequence[Texts]) -> list[Texts]:
    """Cut texts to the context of 256 tokens, without repetition."""
    return [[text[:256] for text in plan] for plan in plans]


def in_slots(slots: Slots) -> Callable[[list[Texts]], list[list[float]]]:
    """Return a function that trains `len(slots)` prompts at a time and returns the losses."""

    def work(plans: list[Texts]) -> list[list[float]]:
        losses: list[list[float]] = []
        for first in range(0, len(plans), len(slots)):
            part = plans[first : first + len(slots)]
            part_losses: list[list[float]] = [[] for _ in part]
            for slot, plan in enumerate(part):
                slots.reset(slot)
                slots.precompute(plan)
            for step in range(len(part[0])):
                batch = {slot: [plan[step]] for slot, plan in enumerate(part)}
                for slot, loss in slots.step(batch).items():
                    part_losses[slot] += loss
            losses += part_losses
        return losses

    return work


def loop(
    network: Any, start: int, vocabulary: int, parameters: list[Tensor], lr: float
) -> Callable[[list[Texts]], list[list[float]]]:
    """Return a plain loop: batch 1, no padding, weights copied back for each prompt."""
    saved = [parameter.detach().clone() for parameter in parameters]

    def work(plans: list[Texts]) -> list[list[float]]:
        losses: list[list[float]] = []
        for plan in plans:
            with torch.no_grad():
                for parameter, old in zip(parameters, saved, strict=True):
                    parameter.copy_(old)
            optimizer = torch.optim.Adam(parameters, lr, fused=True)
            losses.append(
                [plain_step(network, start, vocabulary, parameters, optimizer, t) for t in plan]
            )
        return losses

    return work


def plain_step(
    network: Any,
    start: int,
    vocabulary: int,
    parameters: list[Tensor],
    optimizer: Any,
    text: Tensor,
) -> float:
    """Take a step as a plain loop does, and return the loss before it."""
    optimizer.zero_grad()
    text = text.to(parameters[0].device)
    ids = functional.pad(text, (1, 0), value=start)[None, :-1]
    logits = network(input_ids=ids, use_cache=False).logits[0, :, :vocabulary].float()
    loss = functional.cross_entropy(logits, text)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return loss.item()


def peft_loop(model: LanguageModel, start: dict[str, Tensor]) -> Any:
    """Return a loop with the peft library's LoRA, starting from whet's A."""
    wrapped, trained = peft_network(model, start)
    return loop(wrapped, model.bos_token_id, model.vocab_size, trained, 5e-4)


def peft_network(model: LanguageModel, start: dict[str, Tensor]) -> tuple[Any, list[Tensor]]:
    """Return the network with the peft library's LoRA, starting from whet's A, and what is trained."""
    import peft

    targets = sorted({name.rpartition(".")[2] for name in linear_layers(model.hf_model)})
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Conv1D is transposed, which peft corrects
        wrapped = peft.get_peft_model(model.hf_model, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_A" in name:
                layer = name.removeprefix("base_model.model.").partition(".lora_A")[0]
                parameter.copy_(start[layer + LORA_A])
    return wrapped, [p for p in wrapped.parameters() if p.requires_grad]


def floor(model: LanguageModel, length: int) -> float:
    """Return the seconds of one text's bare products and of one pass of the optimizer."""
    layers = [in_out_features(module) for module in linear_layers(model.hf_model).values()]
    config = model.hf_model.config
    heads, inner = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    shapes: list[tuple[int, ...]] = []  # rows, inner, columns, and optionally a batch
    for wide_in, wide_out in layers:
        shapes += [(length, wide_in, wide_out), (length, wide_out, wide_in)]
        shapes += [(length, wide_in, RANK), (length, RANK, wide_out), (length, wide_out, RANK)]
        shapes += [(wide_out, length, RANK), (RANK, length, wide_in), (length, RANK, wide_in)]
    for _ in range(config.num_hidden_layers):
        shapes += 3 * [(length, inner, length, heads), (length, length, inner, heads)]
    shapes += [
        (length, config.hidden_size, model.vocab_size),
        (length, model.vocab_size, config.hidden_size),
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
    plans: list[Texts], a: Callable[..., Any], b: Callable[..., Any], count: int, together: int = 1
) -> dict[str, Any]:
    """Time `together` prompts by a, then by b, and so on: milliseconds per text, and a ÷ b."""
    groups = [plans[first : first + together] for first in range(0, len(plans), together)]
    for work in (a, b):
        work(groups[-1])  # warm up
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for group in groups:
            for work, times in zip((a, b), seconds, strict=True):
                start = time.perf_counter()
                work(group)
                times.append((time.perf_counter() - start) / sum(map(len, group)))
    ratios = [first / second for first, second in zip(*seconds, strict=True)]
    return {
        "ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios),
        "peer_ms": 1e3 * statistics.median(seconds[0]), "ms": 1e3 * statistics.median(seconds[1]),
        "pairs": len(ratios), "texts": sum(map(len, plans)),
    }  # fmt: skip


def compared(a: Callable[..., Any], b: Callable[..., Any], plans: list[Texts]) -> None:
    """Check that the losses agree to 1e-3."""
    np.testing.assert_allclose(a(plans), b(plans), rtol=1e-3)


def lora(model: LanguageModel, plans: list[Texts], count: int) -> dict[str, Any]:
    slots = Slots(model, LoRA(lr=5e-4, r=RANK, lora_alpha=2 * RANK), count=P)
    peer = plain(model)
    theirs, ours, rows = peft_loop(peer, dict(slots.initial)), in_slots(slots), {}
    with slots.attached():
        compared(theirs, ours, [plan[:2] for plan in cut(plans, 64)])
        for length in LENGTHS:
            rows[f"lora T={length}"] = rounds(cut(plans, length), theirs, ours, count, P)
        rows["lora uncut"] = rounds(uncut(plans), theirs, ours, count, P)
        mean = floor(model, 256)
        rows["floor T=256"] = {
            "ratio": rows["lora T=256"]["ms"] / (1e3 * mean), "floor_ms": 1e3 * mean,
            "ms": rows["lora T=256"]["ms"],
        }  # fmt: skip
        whole = 20 * rows["lora T=128"]["ms"]  # a request with 20 texts
        reset = 1e3 * _median(lambda: slots.reset(0))
        rows["reset share"] = {"percent": 100 * reset / whole, "ms": reset}
    return rows


def full(model: LanguageModel, plans: list[Texts], count: int) -> dict[str, Any]:
    peer = plain(model)
    slots, trained = Slots(model, FullFineTuning()), list(peer.hf_model.parameters())
    compiled = Slots(
        LanguageModel.from_pretrained(model.name), FullFineTuning(), torch_compile=True
    )
    theirs = loop(peer.hf_model, peer.bos_token_id, peer.vocab_size, trained, 5e-5)
    rows, plans = {}, uncut(plans)
    for name, kind in (("full", slots), ("full, compiled", compiled)):
        with kind.attached():
            ours = in_slots(kind)
            compared(theirs, ours, [plan[:2] for plan in plans])
            rows[f"{name} uncut"] = rounds(plans, theirs, ours, count)
    return rows


def head(model: LanguageModel, plans: list[Texts], count: int) -> dict[str, Any]:
    peer, rows = LanguageModel.from_pretrained(model.name), {}
    whole, plans = Slots(peer, FullFineTuning()), uncut(plans)
    for name, size in (("not cached", 0), ("cached", 2**30)):  # 0: the texts of one prompt
        slots = Slots(model, LMHead(), cache_limits=CacheLimits(size))
        with whole.attached(), slots.attached():
            ours = in_slots(slots)
            ours(plans)  # fills the cache
            rows[f"head, trunk {name}"] = rounds(plans, in_slots(whole), ours, count)
    return rows


CASES = {"lora": lora, "full": full, "head": head}
TARGETS = {
    "lora T=32": "2.5× / 5×", "lora T=128": "1.5× / 3×", "lora T=256": "1.2× / 2×",
    "full uncut": "1.2× / 1.6×", "full, compiled uncut": "1.2× / 1.6×",
    "floor T=256": "≤ 2.5 / ≤ 1.7", "reset share": "< 1 %",
    "head, trunk not cached": "1.6× / 2×", "head, trunk cached": "2.5× / 3×",
}  # fmt: skip
TITLES = {
    "lora": "LoRA, P=8: PEFT loop ÷ slots", "full": "full, one prompt: full loop ÷ slot",
    "full, compiled": "full, one prompt, compiled: full loop ÷ slot",
    "head": "full in a slot ÷ head in a slot", "floor": "LoRA, P=8: slots ÷ bare products",
    "reset": "reset's share of a request with 20 texts",
}  # fmt: skip


def rendered(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, transformers "
        f"{about['transformers']}, peft {about['peft']}; commit {about['commit']}. "
        "Median (min–max).",
        "",
        "| case | ratio | ms per text, peer or lower bound → whet | target: minimum / stretch |",
        "|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        kind = max((prefix for prefix in TITLES if name.startswith(prefix)), key=len)
        title = f"{TITLES[kind]}, {name.removeprefix(kind).lstrip(', ')}"
        target = TARGETS.get(name, "–")
        if "percent" in row:
            lines.append(f"| {title} | **{row['percent']:.2f} %** | {row['ms']:.2f} | {target} |")
            continue
        span = f" ({row['least']:.2f}–{row['greatest']:.2f})" if "least" in row else ""
        before = row.get("peer_ms", row.get("floor_ms"))
        lines.append(
            f"| {title} | **{row['ratio']:.2f}×**{span} "
            f"| {before:.1f} → {row['ms']:.1f} | {target} |"
        )
    return "\n".join(lines)


def into_readme(name: str, table: str) -> None:
    """Write the table between the markers called `name` in benchmarks/README.md."""
    readme = ROOT / "benchmarks" / "README.md"
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = readme.read_text().split(f"{first}\n")
    readme.write_text(f"{before}{first}\n{table}\n{last}{rest.split(last, 1)[1]}")


def machine() -> dict[str, Any]:
    """Return the processor, threads, commit and versions of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((x.split(":")[1].strip() for x in lines if "model name" in x), platform.machine())
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False).stdout
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"cpu": cpu, "threads": torch.get_num_threads(), "commit": commit.strip(), **versions}


@click.command()
@click.option("--case", type=click.Choice(list(CASES)), multiple=True, default=list(CASES))
@click.option("--json", "path", type=Path, help="File that results are added to.")
@click.option("--render", type=Path, help="Only write this file's table to the README.")
@click.option("--space", type=Path, help="Folder for the corpus's data space [default: temporary].")
@click.option("--prompts", default=32, show_default=True)
@click.option("--texts", default=20, show_default=True, help="Texts per prompt.")
@click.option("--rounds", "count", default=1, show_default=True, help="Rounds over all prompts.")
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
    results = json.loads(path.read_text()) if path and path.exists() else {"rows": {}}
    for name in case:
        rows = CASES[name](model, plans, count)
        results["rows"] |= {key: row | {"prompts": prompts} for key, row in rows.items()}
        results["machine"] = machine()
        if path:
            path.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(rendered(results))


if __name__ == "__main__":
    main()
