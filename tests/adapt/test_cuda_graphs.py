"""Passes that are recorded equal passes that are not, and the oracle; whichever slots take part."""

import logging

import pytest
import torch
from support import reference_slot, tiny_models

from whet.adapt.config import FullFineTuning, LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
ADAPTERS = [FullFineTuning(lr=1e-3), LoRA(lr=1e-2, r=4)]
PLANS = {
    0: ["a first text", "another one, longer by far", "a first text", "x"],
    1: ["Ünïcode, of 26 bytes or so", "Ünïcode, of 26 bytes or so", "then this", "y"],
    2: ["short", "short", "short", "short"],
}
LATER = 5 * "what comes after"  # several windows
name = lambda adapter: type(adapter).__name__  # noqa: E731


@pytest.fixture(params=["gpt2", "llama", "qwen3", "phi3"])
def folder(request, tmp_path):
    return tiny_models.save(tmp_path, request.param)


def with_graphs(model, adapter, count, optimizer=None):
    """Slots that take the passes of CUDA graphs; on a CPU, without capturing them."""
    cuda_graphs = None if model.device.type == "cuda" else True
    return Slots(model, adapter, optimizer, count=count, cuda_graphs=cuda_graphs)


def trained(slots, plans, times=3):
    """Losses of the plans, and bits after them, again and again from the start."""
    found = []
    for _ in range(times):
        losses = {slot: [] for slot in plans}
        for slot in plans:
            slots.reset(slot)
        for step in range(4):
            texts = {
                slot: [slots.model.training_tokens(plan[step])] for slot, plan in plans.items()
            }
            for slot, own in slots.step(texts).items():
                losses[slot] += own
        bits = {slot: slots.activate(slot).score(LATER).bits for slot in plans}
        found.append((losses, bits))
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=name)
def test_passes_of_graphs_equal_the_reference(folder, adapter, device):
    model = LanguageModel.from_pretrained(folder, dtype=torch.float64, device=device)
    plans = {0: PLANS[0]} if isinstance(adapter, FullFineTuning) else PLANS
    slots = with_graphs(model, adapter, len(plans))
    with slots.attached():
        found = trained(slots, plans)
    for slot, texts in plans.items():
        with reference_slot.adapted(model, adapter) as alone:
            goal = [alone.step(text) for text in texts]
            bits = alone.score(LATER).bits
        for losses, after in found:
            assert losses[slot] == pytest.approx(goal, rel=1e-9)
            assert after[slot] == pytest.approx(bits, rel=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_slots_take_part_in_a_pass(folder, device, dtype):
    """Five of seven, side by side or not: rows that fill up the batch change nothing."""
    model = LanguageModel.from_pretrained(folder, dtype=dtype, device=device)
    plans = {slot: PLANS[slot % 3] for slot in (0, 1, 3, 5, 6)}
    slots, eager = with_graphs(model, ADAPTERS[1], 7), Slots(model, ADAPTERS[1], count=7)
    eager.graphs = None
    with slots.attached():
        found = trained(slots, plans)
    with eager.attached():
        [(losses, bits)] = trained(eager, plans, times=1)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for own, after in found:
        for slot in plans:
            assert own[slot] == pytest.approx(losses[slot], rel=tolerance)
            assert after[slot] == pytest.approx(bits[slot], rel=tolerance)
    assert not slots.params.m[2].any() and not slots.params.grad[4].any()


@GPU
def test_a_shape_is_captured_when_it_occurs_again(folder):
    model = LanguageModel.from_pretrained(folder, device="cuda")
    slots = Slots(model, ADAPTERS[1], count=3)
    with slots.attached():
        trained(slots, {0: ["short"] * 4}, times=1)
        assert [rows for rows, _ in slots.graphs.shapes] == [1]
        trained(slots, {0: ["short"] * 4, 2: ["short"] * 4}, times=1)
        assert [rows for rows, _ in slots.graphs.shapes] == [1, 2]
    assert not slots.graphs.disabled


@GPU
def test_a_network_that_waits_for_the_gpu_goes_on_without_graphs(folder, caplog):
    model = LanguageModel.from_pretrained(folder, device="cuda")
    slots = Slots(model, ADAPTERS[1], count=1)
    hook = model.hf_model.base_model.register_forward_hook(
        lambda module, given, output: print(output.last_hidden_state.sum().item())
    )
    try:
        with slots.attached(), caplog.at_level(logging.WARNING, "whet"):
            found = trained(slots, {0: PLANS[0]})
    finally:
        hook.remove()
    assert slots.graphs.disabled and "CUDA graphs" in caplog.text
    assert found[0] == found[1]
