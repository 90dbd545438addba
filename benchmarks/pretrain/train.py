"""Train a small GPT-2 on the tokens of `corpus.py`, one pass, resumable.

    python benchmarks/pretrain/train.py WORK OUT --width 192 --steps 2400

Hidden matrices by Muon (K. Jordan 2024), the rest by AdamW; warm-up, constant rate, linear decay to
zero over the last half. The logits are made in blocks: 16 x 512 x 8192 of them at once cost more
time than the network. Run again with the same arguments, it continues from WORK/OUT's last
checkpoint. OUT receives a Hugging Face folder in bfloat16 and `training.json`.
"""

import json
import time
from pathlib import Path

import click
import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

ROWS, CONTEXT, BLOCK = (
    16,
    512,
    256,
)  # sequences a step, tokens a sequence, tokens whose logits exist at once
SEED = 0


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: up over 100 steps, flat, down to zero over the last half."""
    return min((step + 1) / 100, 1.0, 2 * (steps - step) / steps)


def backward(model: GPT2LMHeadModel, rows: torch.Tensor) -> float:
    """Accumulate gradients of the mean loss of `rows` [B, CONTEXT + 1]; returns nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(rows[:, :-1]).last_hidden_state
        leaf = hidden.detach().requires_grad_()
        targets, total = rows[:, 1:].reshape(-1), 0.0
        for h, y in zip(leaf.flatten(0, 1).split(BLOCK), targets.split(BLOCK), strict=True):
            loss = functional.cross_entropy(model.lm_head(h).float(), y, reduction="sum")
            (loss / targets.numel()).backward()
            total += loss.item()
    hidden.backward(leaf.grad)
    return total / targets.numel()


def optimizers(model: GPT2LMHeadModel, lr: float) -> list[torch.optim.Optimizer]:
    inner = [p for n, p in model.transformer.h.named_parameters() if p.ndim == 2]
    known = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in known]
    muon = torch.optim.Muon(inner, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


@click.command(help=__doc__)
@click.argument("work", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--layers", default=4)
@click.option("--width", default=192)
@click.option("--heads", default=6)
@click.option("--steps", default=2400)
@click.option("--lr", default=3e-3)
@click.option("--threads", default=2)
def main(
    work: Path, out: Path, layers: int, width: int, heads: int, steps: int, lr: float, threads: int
) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(threads)
    tokens = torch.from_numpy(np.load(work / "tokens.npy").astype(np.int32)).long()
    rows = tokens[: (len(tokens) - 1) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    order = torch.randperm(len(rows) - 1, generator=torch.Generator().manual_seed(SEED))
    if steps * ROWS > len(order):
        raise click.UsageError(f"--steps {steps} is more than one pass: {len(order) // ROWS} steps")
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=layers, n_embd=width, n_head=heads, vocab_size=8192, n_positions=CONTEXT,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    optimisers = optimizers(model, lr)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, step, seconds = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
    losses: list[float] = []
    while step < steps:
        start = time.perf_counter()
        picked = order[step * ROWS : (step + 1) * ROWS]
        batch = torch.stack([tokens[r * CONTEXT : (r + 1) * CONTEXT + 1] for r in picked.tolist()])
        losses.append(backward(model, batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * rate(step, steps)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        step += 1
        seconds += time.perf_counter() - start
        if step % 50 == 0 or step == steps:
            click.echo(
                f"{step} {np.mean(losses[-50:]):.3f} nats/token, {seconds / step:.2f} s/step"
            )
            state = {
                "model": model.state_dict(), "step": step, "seconds": seconds,
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            }  # fmt: skip
            torch.save(state, out / "checkpoint.tmp")
            (out / "checkpoint.tmp").replace(checkpoint)
    model.eval().to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(work / "tokenizer.json")),
        bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=CONTEXT,
    ).save_pretrained(out)  # fmt: skip
    record = {
        "steps": steps, "tokens": steps * ROWS * CONTEXT, "parameters": model.num_parameters(),
        "layers": layers, "width": width, "heads": heads, "lr": lr, "seconds": round(seconds),
        "final_loss": float(np.mean(losses[-50:])) if losses else None,
    }  # fmt: skip
    (out / "training.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
