"""Passes that are recorded equal passes that are not, and the oracle; whichever slots take part."""

import logging

import pytest
import torch
from support import reference_slot, tiny_models

from whet.adapt.config import FullFineTuning, LoRA
from whet.adapt.cuda_graphs import Graphs
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
name = lambda mode: type(mode).__name__  # noqa: E731


@pytest.fixture(params=["gpt2", "llama", "qwen3", "phi3"])
def folder(request, tmp_path):
    return tiny_models.save(tmp_path, request.param)


class Unrecorded(Graphs):
    """All of it but the recording."""

    def _record(self, *_):
        pass


def recording(model, mode, count, optimizer=None):
    """Slots whose passes take the way that is recorded; on a CPU, without being recorded."""
    slots = Slots(model, mode, optimizer, count=count)
    if model.device.type == "cpu":
        slots._graphs = Unrecorded(slots._recordable, model, count)
    return slots


def taught(slots, plans, times=3):
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
@pytest.mark.parametrize("mode", ADAPTERS, ids=name)
def test_recorded_passes_equal_the_oracle(folder, mode, device):
    model = LanguageModel.from_pretrained(folder, dtype=torch.float64, device=device)
    plans = {0: PLANS[0]} if isinstance(mode, FullFineTuning) else PLANS
    slots = recording(model, mode, len(plans))
    with slots.attached():
        found = taught(slots, plans)
    for slot, texts in plans.items():
        with reference_slot.adapted(model, mode) as alone:
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
    slots, eager = recording(model, ADAPTERS[1], 7), Slots(model, ADAPTERS[1], count=7)
    eager._graphs = None
    with slots.attached():
        found = taught(slots, plans)
    with eager.attached():
        [(losses, bits)] = taught(eager, plans, times=1)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for own, after in found:
        for slot in plans:
            assert own[slot] == pytest.approx(losses[slot], rel=tolerance)
            assert after[slot] == pytest.approx(bits[slot], rel=tolerance)
    assert not slots.params.m[2].any() and not slots.params.grad[4].any()


@GPU
def test_shapes_are_recorded_when_they_come_again(folder):
    model = LanguageModel.from_pretrained(folder, device="cuda")
    slots = Slots(model, ADAPTERS[1], count=3)
    with slots.attached():
        taught(slots, {0: ["short"] * 4}, times=1)
        assert [key[0] for key in slots._graphs._recorded] == [1]
        taught(slots, {0: ["short"] * 4, 2: ["short"] * 4}, times=1)
        assert [key[0] for key in slots._graphs._recorded] == [1, 2]
    assert not slots._graphs.given_up


@GPU
def test_a_network_that_waits_for_the_gpu_goes_on_without_graphs(folder, caplog):
    model = LanguageModel.from_pretrained(folder, device="cuda")
    slots = Slots(model, ADAPTERS[1], count=1)
    hook = model.hf_model.base_model.register_forward_hook(
        lambda module, given, output: print(output.last_hidden_state.sum().item())
    )
    try:
        with slots.attached(), caplog.at_level(logging.WARNING, "whet"):
            found = taught(slots, {0: PLANS[0]})
    finally:
        hook.remove()
    assert slots._graphs.given_up and "CUDA graphs" in caplog.text
    assert found[0] == found[1]
