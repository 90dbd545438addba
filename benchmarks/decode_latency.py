"""How long does a generated token take, for eight prompts at once with one adapter each?

    python benchmarks/decode_latency.py --json benchmarks/results/decode_latency.json
    python benchmarks/decode_latency.py --render benchmarks/results/decode_latency.json

Prompts have 100 to 200 random tokens, and each adapter was trained on three texts of random tokens.
The peft library has the same adapters, with one adapter after another and with eight in one batch
(`adapter_names`). Tokens are compared before any timing. Models are whet-nano, and a random one of
GPT-2's size, on a GPU if there is one; `--model smollm2` measures SmolLM2-135M instead.
"""

import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from adapt_latency import RANK, P, into_readme, machine
from peft import LoraConfig, get_peft_model
from smollm2 import smollm2
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from whet.adapt.config import LoRA
from whet.adapt.decoding.sampling import SamplingParams, SequenceGroup
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots
from whet.adapt.tuners.lora import LORA_A, LORA_B, linear_layers

Work = Callable[[], list[list[int]]]


def gpt2_size() -> LanguageModel:
    """Return a model of GPT-2's size with random weights."""
    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=0, eos_token_id=0, initializer_range=0.1)
    words = {f"<{i}>": i for i in range(config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<0>")), bos_token="<0>"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AutoModelForCausalLM.from_config(config).to(device)
    return LanguageModel(network, tokenizer, "GPT-2-size")


def trained_slots(model: LanguageModel, adaptation: LoRA, count: int) -> Slots:
    """Return slots, each trained on its own texts."""
    slots, random = Slots(model, adaptation, count=count), torch.Generator().manual_seed(1)
    with slots.attached():
        for _ in range(3):
            texts = torch.randint(1, model.vocab_size, (count, 64), generator=random)
            slots.step({slot: [text] for slot, text in enumerate(texts)})
    return slots


def random_prompts(model: LanguageModel, count: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(100, 200, (count,), generator=random).tolist()
    return [torch.randint(1, model.vocab_size, (n,), generator=random).tolist() for n in lengths]


def in_slots(slots: Slots, prompts: list[list[int]], tokens: int, together: int) -> Work:
    """Return a function that generates for `together` prompts per pass with whet."""
    sampling = SamplingParams(max_tokens=tokens)

    def work() -> list[list[int]]:
        decoders = {
            i: SequenceGroup(slots.model, prompt, sampling) for i, prompt in enumerate(prompts)
        }
        for first in range(0, len(prompts), together):
            part = {i: decoders[i] for i in range(first, min(first + together, len(prompts)))}
            while any(not decoder.finish_reason for decoder in part.values()):
                slots.decode_step(part)
            slots.decode_step({})
        return [decoder.sequences[0].token_ids for decoder in decoders.values()]

    return work


def generated(network: Any, start: int, rows: list[list[int]], tokens: int, **rest: Any) -> Any:
    """Generate with transformers from rows padded on the left."""
    longest, device = max(map(len, rows)) + 1, network.device
    ids = [[start] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row) - 1) + [1] * (len(row) + 1) for row in rows]
    output = network.generate(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        max_new_tokens=tokens, do_sample=False, pad_token_id=start, **rest,
    )  # fmt: skip
    return output[:, longest:].tolist()


def peft_peers(slots: Slots, prompts: list[list[int]], tokens: int) -> dict[str, Work]:
    """Return functions that generate with peft, with copies of the slots' adapters."""
    model = slots.model
    network = copy.deepcopy(model.hf_model)
    network.generation_config.eos_token_id = None  # all sequences have the same length
    targets = sorted({name.rpartition(".")[2] for name in linear_layers(network)})
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=targets)
    names = [f"slot{slot}" for slot in range(len(slots))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Conv1D is transposed, which peft corrects
        wrapped = get_peft_model(network, config, names[0]).eval()
        for name in names[1:]:
            wrapped.add_adapter(name, config)
    rows = [slots.params.views(slots.params.weights([slot])) for slot in range(len(slots))]
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            for part, suffix in (("lora_A", LORA_A), ("lora_B", LORA_B)):
                if part in name:
                    layer = name.removeprefix("base_model.model.").partition(f".{part}")[0]
                    slot = names.index(name.split(".")[-2])
                    parameter.copy_(rows[slot][layer + suffix][0])

    def one_by_one() -> list[list[int]]:
        sequences = []
        for name, prompt in zip(names, prompts, strict=True):
            wrapped.set_adapter(name)
            sequences += generated(wrapped, model.bos_token_id, [prompt], tokens)
        return sequences

    def batch() -> list[list[int]]:
        sequences: list[list[int]] = generated(
            wrapped, model.bos_token_id, prompts, tokens, adapter_names=names
        )
        return sequences

    return {"peft, one by one": one_by_one, "peft, one batch": batch}


def measured(works: dict[str, Work], tokens: int, rounds: int) -> dict[str, Any]:
    """Return the milliseconds per token of each function, after comparing their tokens."""
    sequences = {name: work() for name, work in works.items()}
    ours = sequences.pop("together")
    for name, theirs in sequences.items():
        equal = [a == b for mine, other in zip(ours, theirs, strict=True)
                 for a, b in zip(mine, other, strict=True)]  # fmt: skip
        if sum(equal) < 0.95 * len(equal):  # near-ties may be resolved either way
            raise SystemExit(
                f"{name} generates other tokens: {sum(equal)} of {len(equal)} are equal"
            )
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(1e3 * (time.perf_counter() - start) / (len(ours) * tokens))
    return {
        name: {
            "ms": statistics.median(series),
            "ratio": statistics.median(
                peer / mine for peer, mine in zip(series, times["together"], strict=True)
            ),
        }
        for name, series in times.items()
    }


def rendered(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, transformers "
        f"{about['transformers']}, peft {about['peft']}; commit {about['commit']}. "
        f"{results['tokens']} tokens per completion, medians of {results['rounds']} alternating "
        "rounds.",
        "",
        "| model | ms per token, together | one by one | peft, one by one | peft, one batch |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        others = [
            f"{row[p]['ms']:.2f} (**{row[p]['ratio']:.2f}×**)" for p in row if p != "together"
        ]
        lines.append(f"| {name} | {row['together']['ms']:.2f} | {' | '.join(others)} |")
    return "\n".join(lines)


def lora(model: LanguageModel, tokens: int, rounds: int) -> dict[str, Any]:
    slots = trained_slots(model, LoRA(lr=1e-3, r=RANK, lora_alpha=2 * RANK), P)
    prompts = random_prompts(model, P)
    peers = peft_peers(slots, prompts, tokens)
    with slots.attached():
        works = {
            "together": in_slots(slots, prompts, tokens, P),
            "one by one": in_slots(slots, prompts, tokens, 1),
            **peers,
        }
        return measured(works, tokens, rounds)


@click.command()
@click.option("--json", "path", type=Path, help="File that results are written to.")
@click.option("--render", type=Path, help="Only write this file's table to the README.")
@click.option("--tokens", default=128, show_default=True, help="Tokens to generate per prompt.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--model", "names", multiple=True, help="Only these, such as smollm2.")
def main(
    path: Path | None, render: Path | None, tokens: int, rounds: int, names: tuple[str, ...]
) -> None:
    if render:
        into_readme("decode_latency", rendered(json.loads(render.read_text())))
        return
    results: dict[str, Any] = {"tokens": tokens, "rounds": rounds, "rows": {}}
    if path and path.exists():
        results["rows"] = json.loads(path.read_text())["rows"]
    models = map(smollm2, names) if names else (smollm2("whet-nano"), gpt2_size())
    for model in models:
        model.eos_token_ids = frozenset()
        results["rows"][f"{model.name}, LoRA, P={P}"] = lora(model, tokens, rounds)
        results["machine"] = machine()
        if path:
            path.write_text(json.dumps(results, indent=1) + "\n")
    click.echo(rendered(results))


if __name__ == "__main__":
    main()
