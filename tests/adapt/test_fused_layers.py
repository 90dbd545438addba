"""Fused decoder layers equal the plain ones: forward, gradients, and which layers are replaced."""

import pytest
import torch
from support import tiny_models
from transformers import AutoModelForCausalLM, MistralConfig

from whet.adapt.config import LoRA
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots

SIZES = tiny_models.SIZES | {"max_position_embeddings": 64, "head_dim": 8, "initializer_range": 0.3}
CONFIGS = {
    kind: type((tiny_models.CONFIGS | tiny_models.MORE)[kind])
    for kind in ("llama", "qwen2-tied", "qwen3", "gemma", "phi3")
} | {"mistral": MistralConfig}  # fmt: skip
FUSED = ("llama", "mistral", "qwen2-tied", "qwen3")
TEXTS = ["a first text of some length", "another one", "the third"]


def tiny(kind, dtype=torch.float32):
    torch.manual_seed(1)
    config = CONFIGS[kind](vocab_size=257, pad_token_id=256, **SIZES)
    network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in network.named_parameters():
        if "norm" in name:  # all ones otherwise
            parameter.data.uniform_(0.5, 1.5)
    return LanguageModel(network, tiny_models.tokenizer(), kind)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def learn(model, options, steps=2):
    """The losses of several prompts, their gradients and weights, and how many layers are fused."""
    slots = Slots(model, options, count=len(TEXTS))
    texts = [model.training_tokens(text) for text in TEXTS]
    with slots.attached():
        fused = sum("forward" in vars(layer) for layer in model.hf_model.model.layers)
        losses = [slots.step({i: [text] for i, text in enumerate(texts)}) for _ in range(steps)]
    return losses, slots.params.grad.clone(), slots.params.values.clone(), fused


def plain(monkeypatch):
    return monkeypatch.setattr("whet.adapt.tuners.lora.fused_forward", lambda *_: None)


SOME = ("q_proj", "v_proj", "down_proj")


@pytest.mark.parametrize(
    "kind, targets, layers",
    [*((kind, (), "all") for kind in FUSED), ("llama", SOME, "all"), ("qwen3", (), "last:1")],
)
def test_a_fused_layer_has_the_gradients_of_the_plain_one(kind, targets, layers, monkeypatch):
    model = tiny(kind)
    options = LoRA(lr=1e-2, r=4, target_modules=targets, layers=layers)
    losses, grad, values, fused = learn(model, options)
    plain(monkeypatch)
    goal_losses, goal_grad, goal_values, none = learn(model, options)
    assert (fused, none) == (2, 0)
    assert losses[0] == goal_losses[0]  # the forward pass has the same bits
    assert grad.norm() > 0.1
    torch.testing.assert_close(grad, goal_grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values, goal_values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_fused_layer_in_bfloat16_is_as_close_as_the_plain_one(kind, monkeypatch):
    options = LoRA(lr=1e-2, r=4)
    exact = learn(tiny(kind), options, steps=1)[1]
    fused = learn(tiny(kind, torch.bfloat16), options, steps=1)[1]
    plain(monkeypatch)
    usual = learn(tiny(kind, torch.bfloat16), options, steps=1)[1]
    assert (fused - exact).norm() < 1.2 * (usual - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("kind", ["gemma", "phi3"])
def test_layers_of_other_kinds_are_left_as_they_are(kind):
    assert learn(tiny(kind), LoRA(r=4), steps=1)[3] == 0


def test_layers_that_were_changed_are_left_as_they_are():
    model = tiny("llama")
    first, second = model.hf_model.model.layers
    hook = first.self_attn.q_proj.register_forward_hook(lambda *_: None)
    second.mlp.act_fn = torch.nn.GELU()
    assert learn(model, LoRA(r=4), steps=1)[3] == 0
    hook.remove()
    assert learn(model, LoRA(r=4), steps=1)[3] == 1


def test_passes_in_threads_change_no_bit(monkeypatch, two_threads):
    goal = learn(tiny("llama"), LoRA(lr=1e-2, r=4))
    monkeypatch.setattr("whet.adapt.slots.MIN_THREAD_WORK", 1)
    monkeypatch.setattr("whet.adapt.slots.SHORT_TEXT", 0)
    found = learn(tiny("llama"), LoRA(lr=1e-2, r=4))
    assert torch.get_num_threads() == 2
    assert found[0] == goal[0] and torch.equal(found[2], goal[2])


def test_a_text_that_has_a_pass_of_its_own_is_not_padded(monkeypatch, two_threads):
    monkeypatch.setattr("whet.adapt.slots.MIN_THREAD_WORK", 0)
    monkeypatch.setattr("whet.adapt.slots.THREAD_PASS_TOKENS", 32)
    model, shapes = tiny("llama"), []
    model.hf_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    texts = {i: [model.training_tokens(text)] for i, text in enumerate(TEXTS)}
    slots = Slots(model, LoRA(lr=1e-2, r=4), count=3)
    with slots.attached():
        losses = slots.step(texts)
        assert sorted(shapes) == [(1, len(TEXTS[0])), (2, 16)]
        grad = slots.params.grad.clone()
        alone = {i: slots.reset(i) or slots.step({i: text})[i] for i, text in texts.items()}
    assert alone == losses and torch.equal(slots.params.grad, grad)
