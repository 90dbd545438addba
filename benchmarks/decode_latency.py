"""How long does a token of an answer take, of eight prompts at once, each with its own adapter?

    python benchmarks/decode_latency.py --json benchmarks/results/decode_latency.json
    python benchmarks/decode_latency.py --render benchmarks/results/decode_latency.json

The prompts are of one to two hundred tokens at random, each sharpened on three texts of such
tokens. Peers have the same adapters: the peft library with one adapter after another, and with
eight in one batch (`adapter_names`). Tokens are compared before any timing. whet-nano, and GPT-2's
size with random weights; on a GPU if there is one.
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
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from whet.adapt.config import LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.sampling import SamplingParams, SequenceState
from whet.adapt.slots import Slots
from whet.adapt.tuners.lora import DOWN, UP, linear_layers

Work = Callable[[], list[list[int]]]


def gpt2_size() -> LanguageModel:
    torch.manual_seed(0)
    config = GPT2Config(bos_token_id=0, eos_token_id=0, initializer_range=0.1)
    words = {f"<{i}>": i for i in range(config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<0>")), bos_token="<0>"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = AutoModelForCausalLM.from_config(config).to(device)
    return LanguageModel(network, tokenizer, "GPT-2-size")


def sharpened(model: LanguageModel, adaptation: LoRA, count: int) -> Slots:
    """Slots that have each learned texts of their own."""
    slots, random = Slots(model, adaptation, count=count), torch.Generator().manual_seed(1)
    with slots.attached():
        for _ in range(3):
            texts = torch.randint(1, model.vocabulary, (count, 64), generator=random)
            slots.step({slot: [text] for slot, text in enumerate(texts)})
    return slots


def prompts(model: LanguageModel, count: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(100, 200, (count,), generator=random).tolist()
    return [torch.randint(1, model.vocabulary, (n,), generator=random).tolist() for n in lengths]


def in_slots(slots: Slots, asked: list[list[int]], tokens: int, together: int) -> Work:
    """whet, `together` prompts in a pass."""
    sampling = SamplingParams(max_tokens=tokens)

    def work() -> list[list[int]]:
        decoders = {
            i: SequenceState(slots.model, prompt, sampling) for i, prompt in enumerate(asked)
        }
        for first in range(0, len(asked), together):
            part = {i: decoders[i] for i in range(first, min(first + together, len(asked)))}
            while any(not decoder.finish for decoder in part.values()):
                slots.proceed(part)
            slots.proceed({})
        return [decoder.tokens for decoder in decoders.values()]

    return work


def generated(network: Any, start: int, rows: list[list[int]], tokens: int, **rest: Any) -> Any:
    """What transformers says, of rows padded at the left."""
    longest, device = max(map(len, rows)) + 1, network.device
    ids = [[start] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row) - 1) + [1] * (len(row) + 1) for row in rows]
    output = network.generate(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        max_new_tokens=tokens, do_sample=False, pad_token_id=start, **rest,
    )  # fmt: skip
    return output[:, longest:].tolist()


def peft_peers(slots: Slots, asked: list[list[int]], tokens: int) -> dict[str, Work]:
    model = slots.model
    network = copy.deepcopy(model.network)
    network.generation_config.eos_token_id = None  # every answer is of the same length
    targets = sorted({name.rpartition(".")[2] for name in linear_layers(network)})
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=targets)
    names = [f"slot{slot}" for slot in range(len(slots))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Conv1D is transposed, which peft then sees to
        wrapped = get_peft_model(network, config, names[0]).eval()
        for name in names[1:]:
            wrapped.add_adapter(name, config)
    rows = [slots.bank.views(slots.bank.weights([slot])) for slot in range(len(slots))]
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            for part, suffix in (("lora_A", DOWN), ("lora_B", UP)):
                if part in name:
                    layer = name.removeprefix("base_model.model.").partition(f".{part}")[0]
                    slot = names.index(name.split(".")[-2])
                    parameter.copy_(rows[slot][layer + suffix][0])

    def one_by_one() -> list[list[int]]:
        said = []
        for name, prompt in zip(names, asked, strict=True):
            wrapped.set_adapter(name)
            said += generated(wrapped, model.start, [prompt], tokens)
        return said

    def batch() -> list[list[int]]:
        said: list[list[int]] = generated(wrapped, model.start, asked, tokens, adapter_names=names)
        return said

    return {"peft, one by one": one_by_one, "peft, one batch": batch}


def measured(works: dict[str, Work], tokens: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a token of each, in turns, once they are known to say the same."""
    said = {name: work() for name, work in works.items()}
    ours = said.pop("together")
    for name, theirs in said.items():
        equal = [a == b for mine, other in zip(ours, theirs, strict=True)
                 for a, b in zip(mine, other, strict=True)]  # fmt: skip
        if sum(equal) < 0.95 * len(equal):  # near ties may fall either way, and what follows
            raise SystemExit(f"{name} says something else: {sum(equal)} of {len(equal)} tokens")
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(1e3 * (time.perf_counter() - start) / (len(ours) * tokens))
    return {
        name: {
            "ms": statistics.median(own),
            "ratio": statistics.median(
                peer / mine for peer, mine in zip(own, times["together"], strict=True)
            ),
        }
        for name, own in times.items()
    }


def rendered(results: dict[str, Any]) -> str:
    about = results["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, transformers "
        f"{about['transformers']}, peft {about['peft']}; commit {about['commit']}. "
        f"{results['tokens']} tokens an answer, medians of {results['rounds']} rounds in turns.",
        "",
        "| model | ms a token, together | one by one | peft, one by one | peft, one batch |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        others = [
            f"{row[p]['ms']:.2f} (**{row[p]['ratio']:.2f}×**)" for p in row if p != "together"
        ]
        lines.append(f"| {name} | {row['together']['ms']:.2f} | {' | '.join(others)} |")
    return "\n".join(lines)


def lora(model: LanguageModel, tokens: int, rounds: int) -> dict[str, Any]:
    slots = sharpened(model, LoRA(lr=1e-3, r=RANK, lora_alpha=2 * RANK), P)
    asked = prompts(model, P)
    peers = peft_peers(slots, asked, tokens)
    with slots.attached():
        works = {
            "together": in_slots(slots, asked, tokens, P),
            "one by one": in_slots(slots, asked, tokens, 1),
            **peers,
        }
        return measured(works, tokens, rounds)


@click.command()
@click.option("--json", "path", type=Path, help="Where results are written.")
@click.option("--render", type=Path, help="Put this file's table into the README, time nothing.")
@click.option("--tokens", default=128, show_default=True, help="Of an answer.")
@click.option("--rounds", default=5, show_default=True)
def main(path: Path | None, render: Path | None, tokens: int, rounds: int) -> None:
    if render:
        into_readme("decode_latency", rendered(json.loads(render.read_text())))
        return
    found: dict[str, Any] = {"tokens": tokens, "rounds": rounds, "rows": {}}
    for model in (LanguageModel.from_pretrained("whet-nano"), gpt2_size()):
        model.ends = frozenset()
        found["rows"][f"{model.name}, LoRA, P={P}"] = lora(model, tokens, rounds)
        found["machine"] = machine()
        if path:
            path.write_text(json.dumps(found, indent=1) + "\n")
    click.echo(rendered(found))


if __name__ == "__main__":
    main()
