"""What the processor of this machine is good for: device, precision, number of threads.

What can be measured in a fraction of a second is measured, once per process: a processor may list
units for bfloat16 and still multiply float32 faster, and a container may list cores that others use.
"""

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional

LOGGER = logging.getLogger(__name__)
ROWS, WIDTH = 256, 1024  # of the product that is timed: a text of 256 tokens in a small model
REPEATS = 5
WORTH = 0.85  # of the time of float32, at which bfloat16 is worth its rounding
CLOSE = 0.02  # relative error of a product in bfloat16, whose numbers have 8 bits
FASTER = 1.3  # times as fast must fewer threads be, so that noise does not decide


@cache
def default_device() -> str:
    """`cuda` or `mps` if torch finds such a GPU, otherwise `cpu`.

    `mps` (Apple) is used only if it computes the loss and the gradients of a small network as a CPU
    does, since some versions of torch and macOS do not.
    """
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        if computes_correctly("mps"):
            return "mps"
        LOGGER.warning("the GPU (mps) does not compute as the CPU does: using the CPU")
    return "cpu"


def computes_correctly(device: str) -> bool:
    """Whether `device` gives the loss and the gradients of a small causal network that a CPU gives."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((32, 16), (16, 48), (16, 32))  # embedding, projection to q, k and v, head
    weights = [torch.randn(shape, generator=generator) / 4 for shape in shapes]
    tokens = torch.randint(32, (2, 12), generator=generator)
    try:
        results = []
        for where in ("cpu", device):
            leaves = [w.detach().clone().to(where).requires_grad_() for w in weights]
            embedding, projection, head = leaves
            hidden = functional.layer_norm(embedding[tokens.to(where)], (16,))
            q, k, v = (hidden @ projection).reshape(2, 12, 3, 2, 8).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            logits = functional.gelu(mixed.transpose(1, 2).flatten(2)) @ head
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(where)
            )
            gradients = torch.autograd.grad(loss, leaves)
            results.append([loss.detach().cpu(), *(each.cpu() for each in gradients)])
    except (AssertionError, NotImplementedError, RuntimeError, TypeError):
        return False
    return all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-4)
        for one, other in zip(*results, strict=True)
    )


def fast_dtype(device: str) -> torch.dtype:
    """bfloat16 where it is faster than float32 and close to it, otherwise float32.

    A GPU since Ampere has units for it. A CPU with such units (AVX-512 BF16, AMX) is measured once
    per process, in 0.1 s: without AMX they can be slower than those for float32. Results in bfloat16
    depend on the processor.

    Args:
        device: `cpu`, `cuda` or `mps`.
    """
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device == "cpu" and _has_bfloat16_units() and bfloat16_is_worth_it()
    return torch.bfloat16 if fast else torch.float32


def _has_bfloat16_units() -> bool:
    # earlier versions of torch do not list a processor's units
    units: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(map(units.get, ("avx512_bf16", "amx_bf16")))


@cache
def bfloat16_is_worth_it() -> bool:
    """Whether a product in bfloat16 takes at most 0.85 of the time of float32, within 2 % of it."""
    single, half = _Product(torch.float32), _Product(torch.bfloat16)
    goal = single.run()
    error = float((half.run().float() - goal).norm() / goal.norm())
    times = [(half.seconds(), single.seconds()) for _ in range(REPEATS)]
    ratio = min(one for one, _ in times) / min(other for _, other in times)
    LOGGER.debug("bfloat16 takes %.2f of the time of float32, error %.3f", ratio, error)
    return ratio <= WORTH and error <= CLOSE


@cache
def limit_threads() -> None:
    """Lower torch's number of threads to what this process may use and what is fastest.

    It is never raised, so `OMP_NUM_THREADS` is respected. Measured once per process, in 0.1 s, unless
    there is a single thread.
    """
    most = min(torch.get_num_threads(), usable_cpus())
    product = _Product(torch.float32)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        return product.seconds()

    torch.set_num_threads(fastest_threads(most, seconds))


def fastest_threads(most: int, seconds: Callable[[int], float]) -> int:
    """`most`, or a half, a quarter, … of it where that is at least 1.3 times as fast.

    Cores that others use, and pairs of logical cores that share their units, make more threads
    slower: each product waits for its last thread.

    Args:
        most: The largest number of threads.
        seconds: Times some work with a number of threads; called five times for each.
    """
    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    if len(counts) == 1:
        return most
    times: dict[int, float] = {}
    for _ in range(REPEATS):  # in turn, so that others disturb all of them alike
        for count in counts:
            times[count] = min(seconds(count), times.get(count, math.inf))
    chosen = most
    for count in counts[1:]:
        if times[count] * FASTER <= times[chosen]:
            chosen = count
    if chosen < most:
        LOGGER.info("computes with %d of %d threads, which is faster here", chosen, most)
    return chosen


class _Product:
    """A product of matrices in one precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self._left, self._right = (
            torch.randn(size, WIDTH, generator=generator).to(dtype) for size in (ROWS, WIDTH)
        )
        self.run()

    def run(self) -> torch.Tensor:
        return self._left @ self._right

    def seconds(self) -> float:
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors that this process may use: those it is bound to, within a container's limit.

    torch starts a thread for each core of the machine, which is several times slower in a container
    that may use two of them.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or no limit ("max")
        quota, period = map(int, cgroup.read_text().split())
        count = min(count, max(1, math.ceil(quota / period)))
    return count
