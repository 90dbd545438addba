"""How long does a gradient step take in slots on a GPU, compared with a PEFT loop?

    python benchmarks/gpu_latency.py --json benchmarks/results/gpu_latency.json
    python benchmarks/gpu_latency.py --render benchmarks/results/gpu_latency.json

Networks have the right shapes and random weights, texts have random tokens. The network is in
bfloat16, trained weights are in float32. The PEFT loop is that of `adapt_latency.py`; losses are
compared before any timing. Lower bounds for serial steps are operations ÷ 790 TFLOP/s and bytes of
the optimizer ÷ 4.3 TB/s, as measured on an H200 (`ceilings`).
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from adapt_latency import ROOT, Texts, in_slots, into_readme, machine, peft_loop
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from whet.adapt.config import AdapterConfig, FullFineTuning, LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots

CONFIGS = {
    "GPT-2-size": GPT2Config(bos_token_id=0, eos_token_id=0),
    "1B-size": LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    ),
}  # fmt: skip
SERIAL_LOWER_BOUND_S = {
    "GPT-2-size full": 0.092,
    "1B-size LoRA": 0.34,
}  # for 50 texts of 1,024 tokens
TEXTS = 50  # per request


def network(kind: str, folder: Path) -> LanguageModel:
    """Save a network with random weights to `folder` and load it like any other model."""
    config = CONFIGS[kind]
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    words = {f"<{i}>": i for i in range(config.vocab_size)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<0>")),
        bos_token="<0>", eos_token="<0>",
    ).save_pretrained(folder)  # fmt: skip
    return LanguageModel.from_pretrained(folder, dtype=torch.bfloat16)


def plain(model: LanguageModel) -> LanguageModel:
    """Return the model as transformers loads it."""
    source = AutoModelForCausalLM.from_pretrained(model.name, dtype=torch.bfloat16)
    return LanguageModel(source.cuda(), model.tokenizer, model.name)


def plans(model: LanguageModel, prompts: int, texts: int, length: int) -> list[Texts]:
    """Return random texts of `length` tokens for each prompt."""
    random = torch.Generator().manual_seed(length)
    return [
        [torch.randint(model.vocab_size, (length,), generator=random) for _ in range(texts)]
        for _ in range(prompts)
    ]


def timed(work: Callable[..., Any], batch: list[Texts]) -> float:
    """Return the milliseconds per text."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work(batch)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / sum(map(len, batch))


def row(
    slots: Slots, length: int, *, texts: int, rounds: int, peer: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Time texts with and without graphs, and by the peer, alternating."""
    work, graphs = in_slots(slots), slots._graphs
    batch = plans(slots.model, len(slots), texts, length)
    few = plans(slots.model, 2, texts, length)
    measured: dict[str, list[float]] = {"ms": [], "eager_ms": [], "peer_ms": []}
    torch.cuda.reset_peak_memory_stats()
    for turn in range(rounds + 2):
        slots._graphs = graphs
        times = {"ms": timed(work, batch)}
        peak = torch.cuda.max_memory_reserved()
        slots._graphs = None
        times["eager_ms"] = timed(work, batch)
        if peer is not None:
            times["peer_ms"] = timed(peer, few)
        if turn > 1:  # two rounds warm up
            for name, value in times.items():
                measured[name].append(value)
    slots._graphs = graphs
    numbers = {name: statistics.median(values) for name, values in measured.items() if values}
    numbers |= {
        "rounds": rounds,
        "least_ms": min(measured["ms"]),
        "greatest_ms": max(measured["ms"]),
    }
    numbers |= {"tokens_s": 1e3 * length / numbers["ms"], "peak_gib": peak / 2**30}
    if graphs is not None:
        numbers["recorded"] = not graphs.given_up and bool(graphs._recorded)
    if peer is not None:
        ratios = [a / b for a, b in zip(measured["peer_ms"], measured["ms"], strict=True)]
        numbers |= {
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "greatest": max(ratios),
        }
    return numbers


def compared(slots: Slots, peer: Callable[..., Any], tolerance: float) -> float:
    """Return the largest relative difference from the peer's losses, on repeated texts."""
    batch = [3 * plan[:2] for plan in plans(slots.model, 2, 2, 64)]
    ours, theirs = np.array(in_slots(slots)(batch)), np.array(peer(batch))
    np.testing.assert_allclose(ours, theirs, rtol=tolerance)
    assert (theirs[:, -1] < theirs[:, 0]).all()  # the loss decreases
    return float(np.max(np.abs(ours / theirs - 1)))


def small_lora(model: LanguageModel, mode: LoRA, p: int, lengths: tuple[int, ...]) -> Any:
    """Time LoRA in `p` slots and a PEFT loop."""
    slots = Slots(model, mode, count=p)
    peer = peft_loop(plain(model), dict(slots.initial))
    numbers = {}
    with slots.attached():
        difference = compared(slots, peer, 3e-2)
        for length in lengths:
            numbers[f"{p} slots, T={length}"] = row(slots, length, texts=5, rounds=5, peer=peer)
            numbers[f"{p} slots, T={length}"]["losses_apart"] = difference
    return numbers


def alone(
    model: LanguageModel, mode: AdapterConfig, length: int, lower_bound_s: float | None, p: int = 1
) -> Any:
    """Time slots, and compare them with the lower bound `lower_bound_s` for serial steps."""
    slots = Slots(model, mode, count=p)
    with slots.attached():
        numbers = row(slots, length, texts=10 if p == 1 else 3, rounds=5)
    if lower_bound_s:
        numbers["over_floor"] = numbers["ms"] * TEXTS / 1e3 / lower_bound_s
    return {f"{p} slots, T={length}": numbers}


def ceilings() -> dict[str, float]:
    """Measure the TFLOP/s of a bf16 product and the TB/s of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device="cuda")
    goal = torch.empty_like(source)
    numbers = {}
    for name, work, amount in (
        ("tflop_s", lambda: a @ b, 2 * 8192**3 / 1e12),
        ("tb_s", lambda: goal.copy_(source), 2 * source.nbytes / 1e12),
    ):
        seconds = []
        for _ in range(13):
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        numbers[name] = amount / statistics.median(seconds[3:])
    return numbers


def measure(case: str, folder: Path) -> dict[str, Any]:
    """Return the rows of a case."""
    lora = LoRA(lr=5e-4, r=32, lora_alpha=64)
    if case == "nano":
        model = LanguageModel.from_pretrained(
            ROOT / "src/whet/assets/whet-nano", dtype=torch.bfloat16
        )
        rows = small_lora(model, lora, 32, (128, 512))
        rows = {f"whet-nano LoRA, {key}": value for key, value in rows.items()}
        whole = alone(model, FullFineTuning(), 512, None)
        return rows | {f"whet-nano full, {key}": value for key, value in whole.items()}
    kind = "1B-size" if case == "1B" else "GPT-2-size"
    model = network(kind, folder / case)
    if case == "gpt2":
        rows = small_lora(model, lora, 32, (32, 128, 256, 1024))
        return {f"GPT-2-size LoRA, {key}": value for key, value in rows.items()}
    if case == "gpt2-full":
        rows = alone(model, FullFineTuning(), 1024, SERIAL_LOWER_BOUND_S["GPT-2-size full"])
        return {f"GPT-2-size full, {key}": value for key, value in rows.items()}
    rows = alone(model, LoRA(r=16, lora_alpha=32), 1024, SERIAL_LOWER_BOUND_S["1B-size LoRA"], p=16)
    return {f"1B-size LoRA, {key}": value for key, value in rows.items()}


TARGETS = {
    "GPT-2-size LoRA": "PEFT loop: 8× / 20×", "GPT-2-size full": "request: 0.5 s / 0.28 s",
    "1B-size LoRA": "÷ lower bound: ≤ 3 / ≤ 2",
}  # fmt: skip


def rendered(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{about['gpu']} ({about['tflop_s']:.0f} TFLOP/s, {about['tb_s']:.1f} TB/s measured), "
        f"torch {about['torch']}, transformers {about['transformers']}, peft {about['peft']}. "
        "bfloat16, trained weights float32. Medians of five alternating rounds (min–max).",
        "",
        "| case | ms per text | without graphs | PEFT loop ÷ slots | 50 texts | ÷ lower bound "
        "| tokens/s | peak GiB | target: minimum / stretch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        span = "–"
        if "ratio" in row:
            span = f"**{row['ratio']:.1f}×** ({row['least']:.1f}–{row['greatest']:.1f})"
        query = f"{row['ms'] * TEXTS / 1e3:.3f} s"
        floor = f"{row['over_floor']:.2f}×" if "over_floor" in row else "–"
        lines.append(
            f"| {name} | {row['ms']:.2f} | {row['eager_ms']:.2f} | {span} | {query} | {floor} "
            f"| {row['tokens_s']:,.0f} | {row['peak_gib']:.1f} "
            f"| {TARGETS.get(name.partition(',')[0], '–')} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--case", type=click.Choice(["nano", "gpt2", "gpt2-full", "1B"]), multiple=True)
@click.option("--json", "path", type=Path, help="File that results are added to.")
@click.option("--render", type=Path, help="Only write this file's table to the README.")
def main(case: tuple[str, ...], path: Path | None, render: Path | None) -> None:
    if render:
        into_readme("gpu_latency", rendered(json.loads(render.read_text())))
        return
    results = json.loads(path.read_text()) if path and path.exists() else {"rows": {}}
    results["machine"] = machine() | {"gpu": torch.cuda.get_device_name()} | ceilings()
    with tempfile.TemporaryDirectory() as folder:
        for name in case or ("nano", "gpt2", "gpt2-full", "1B"):
            results["rows"] |= measure(name, Path(folder))
            torch.cuda.empty_cache()
            if path:
                path.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(rendered(results))


if __name__ == "__main__":
    main()
