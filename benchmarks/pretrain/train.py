"""Train a GPT-2 on the tokens of `corpus.py`, resumable.

    python benchmarks/pretrain/train.py WORK OUT --width 192 --steps 2400
    python benchmarks/pretrain/train.py WORK OUT --layers 12 --width 768 --heads 12 \\
        --context 1024 --rows 64 --lr 1e-3 --seconds 220 --device cuda

Muon (K. Jordan 2024) updates the hidden matrices, AdamW the other weights. The learning rate warms
up, is constant, and decays linearly to zero over the last half of the steps, or of the seconds if
these are over earlier. Each pass over the tokens has its own order. Logits are computed in blocks:
all of them at once would take more time than the network. The same command resumes from the last
checkpoint in OUT. OUT receives a Hugging Face folder in bfloat16 and `training.json`.
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

BLOCK, GPU_BLOCK = 256, 16_384  # tokens whose logits exist at once
SEED = 0


def rate(step: int, done: float) -> float:
    """Return the share of the peak rate: up over 100 steps, flat, down over the last half."""
    return min((step + 1) / 100, 1.0, 2 * (1 - done))


def backward(model: GPT2LMHeadModel, rows: torch.Tensor) -> torch.Tensor:
    """Accumulate gradients of the mean loss of `rows` [B, T + 1]; return nats per token."""
    block = BLOCK if rows.is_cpu else GPU_BLOCK
    with torch.autocast(rows.device.type, torch.bfloat16):
        hidden = model.transformer(rows[:, :-1], use_cache=False).last_hidden_state
        leaf = hidden.detach().requires_grad_()
        targets, total = rows[:, 1:].reshape(-1), torch.zeros((), device=rows.device)
        for h, y in zip(leaf.flatten(0, 1).split(block), targets.split(block), strict=True):
            loss = functional.cross_entropy(model.lm_head(h).float(), y, reduction="sum")
            (loss / targets.numel()).backward()
            total += loss.detach()
    hidden.backward(leaf.grad)
    return total / targets.numel()


def batch_indices(count: int, rows: int, step: int) -> torch.Tensor:
    """Return the indices of the `rows` sequences of a step; every pass is shuffled anew."""
    epoch, start = divmod(step * rows, count // rows * rows)
    generator = torch.Generator().manual_seed(SEED + epoch)
    return torch.randperm(count, generator=generator)[start : start + rows]


def optimizers(model: GPT2LMHeadModel, lr: float) -> list[torch.optim.Optimizer]:
    inner = [p for n, p in model.transformer.h.named_parameters() if p.ndim == 2]
    inner_ids = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in inner_ids]
    muon = torch.optim.Muon(inner, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


@click.command(help=__doc__)
@click.argument("work", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--layers", default=4)
@click.option("--width", default=192)
@click.option("--heads", default=6)
@click.option("--context", default=512, help="Tokens per sequence.")
@click.option("--rows", default=16, help="Sequences per step.")
@click.option("--steps", default=2400)
@click.option("--seconds", "limit", default=float("inf"), help="Time limit.")
@click.option("--lr", default=3e-3)
@click.option("--threads", default=2)
@click.option("--device", default="cpu")
def main(
    work: Path, out: Path, layers: int, width: int, heads: int, context: int, rows: int,
    steps: int, limit: float, lr: float, threads: int, device: str,
) -> None:  # fmt: skip
    torch.manual_seed(SEED)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    tokens = torch.from_numpy(np.load(work / "tokens.npy").astype(np.int32)).long().to(device)
    count = (len(tokens) - 1) // context
    vocabulary = Tokenizer.from_file(str(work / "tokenizer.json")).get_vocab_size()
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=context,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",
        )
    ).to(device)  # fmt: skip
    both = optimizers(model, lr)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, step, seconds = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
    losses: list[float] = []
    while (done := max(step / steps, seconds / limit)) < 1:
        start = time.perf_counter()
        firsts = (batch_indices(count, rows, step) * context).tolist()
        batch = torch.stack([tokens[first : first + context + 1] for first in firsts])
        losses.append(float(backward(model, batch)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(step, done)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds += time.perf_counter() - start
        if step % 50 == 0:
            click.echo(
                f"{step} {np.mean(losses[-50:]):.3f} nats/token, {seconds / step:.2f} s/step"
            )
        if step % 50 == 0 and device == "cpu":  # runs on a GPU take minutes
            state = {
                "model": model.state_dict(), "step": step, "seconds": seconds,
                "optimizers": [optimizer.state_dict() for optimizer in both],
            }  # fmt: skip
            torch.save(state, out / "checkpoint.tmp")
            (out / "checkpoint.tmp").replace(checkpoint)
    model.eval().to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(work / "tokenizer.json")),
        bos_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=context,
    ).save_pretrained(out)  # fmt: skip
    record = {
        "steps": step, "tokens": step * rows * context, "parameters": model.num_parameters(),
        "layers": layers, "width": width, "heads": heads, "lr": lr, "seconds": round(seconds),
        "passes": round(step * rows / count, 2), "device": device,
        "final_loss": float(np.mean(losses[-50:])) if losses else None,
    }  # fmt: skip
    (out / "training.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
