import numpy as np
import pytest
import torch
from support import reference_slot, tiny_models

from whet.adapt.config import (
    FullFineTuning,
    LMHead,
    LoRA,
    OptimizerConfig,
    TrainingConfig,
    adapter_config,
)
from whet.adapt.model import LanguageModel
from whet.adapt.session import adapted
from whet.adapt.tuners.lora import linear_layers
from whet.adapt.updates import plan_updates
from whet.data.documents import Document
from whet.errors import AdaptationError, ModelError

ADAPTERS = [FullFineTuning(lr=1e-3), LoRA(lr=1e-2, r=4), LMHead(lr=1e-2)]
TEXT = "one short text"


@pytest.fixture(scope="module", params=list(tiny_models.CONFIGS))
def model(request, tmp_path_factory):
    return LanguageModel.from_pretrained(
        tiny_models.save(tmp_path_factory.mktemp("tiny"), request.param)
    )


def state(model):
    tensors = {n: t.clone() for n, t in model.hf_model.state_dict().items()}
    flags = [(n, p.requires_grad, p.grad) for n, p in model.hf_model.named_parameters()]
    return tensors, flags


def assert_same(before, after):
    assert before[0].keys() == after[0].keys() and before[1] == after[1]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


@pytest.mark.parametrize("mode", ADAPTERS, ids=lambda m: type(m).__name__)
def test_a_session_learns_and_restores_the_weights(model, mode):
    before, base = state(model), model.score(TEXT)
    with adapted(model, mode) as slot:
        losses = [slot.step(TEXT) for _ in range(5)]
        assert losses[-1] < losses[0] and slot.score(TEXT).bits < base.bits
    assert_same(before, state(model))
    assert model.score(TEXT) == base


@pytest.mark.parametrize("mode", ADAPTERS, ids=lambda m: type(m).__name__)
def test_weights_are_restored_after_an_error_and_a_second_use_equals_the_first(model, mode):
    before, runs = state(model), []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), adapted(model, mode) as slot:
            runs.append([slot.step(TEXT), slot.step(TEXT + "!")])
            raise KeyboardInterrupt
    assert runs[0] == runs[1]
    assert_same(before, state(model))


def test_full_step_is_adam_written_out(model):
    """After one step every weight has moved by lr · g / (|g| + eps), g clipped to norm 1.

    But where g is 0 and rounding decides, as for the biases of keys.
    """
    network = model.hf_model
    reference_slot.mean_loss(model, TEXT).backward()
    grads = [p.grad.double() for p in network.parameters()]
    norm = sum((g**2).sum() for g in grads).sqrt()
    before = [p.detach().double().clone() for p in network.parameters()]
    network.zero_grad()
    with adapted(model, FullFineTuning(lr=1e-3)) as slot:
        slot.step(TEXT)
        for parameter, old, grad in zip(network.parameters(), before, grads, strict=True):
            clipped = grad * min(1.0, 1 / (norm + 1e-6))
            moved = old - 1e-3 * clipped / (clipped.abs() + 1e-8)
            goal = torch.where(grad.abs() > 1e-6, moved, parameter.double())
            torch.testing.assert_close(parameter.double(), goal, rtol=1e-4, atol=1e-5)


def test_head_alone_moves_even_when_tied(model):
    inputs = model.hf_model.get_input_embeddings().weight
    before = inputs.detach().clone()
    with adapted(model, LMHead(lr=0.1)) as slot:
        slot.step(TEXT)
        assert torch.equal(inputs, before)
        assert not torch.equal(model.hf_model.get_output_embeddings().weight[:257], before[:257])
    assert model.hf_model.get_input_embeddings().weight is inputs


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_lora_equals_peft(tmp_path):
    import peft

    model = LanguageModel.from_pretrained(tiny_models.save(tmp_path, "llama"))
    options = LoRA(lr=1e-2, r=4, lora_alpha=8.0, target_modules=("q_proj", "down_proj"))
    with adapted(model, options, OptimizerConfig(max_grad_norm=0)) as slot:
        ours = [slot.step(TEXT) for _ in range(4)]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    wrapped = peft.get_peft_model(model.hf_model, config)
    generator = torch.Generator().manual_seed(0)
    downs = [p for n, p in wrapped.named_parameters() if "lora_A" in n]
    for down in downs:
        bound = down.shape[1] ** -0.5
        down.data.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], 1e-2)
    theirs = []
    for _ in range(4):
        loss = reference_slot.mean_loss(model, TEXT)
        theirs.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_lora_starts_at_the_base_model(model):
    base = model.score(TEXT)
    with adapted(model, LoRA()) as slot:
        assert slot.score(TEXT) == base


def test_unknown_target_lists_the_layers_that_exist(model):
    with pytest.raises(
        ValueError, match="'nothing' in target_modules is not a linear layer: expected .*c_|proj"
    ):
        linear_layers(model.hf_model, ("nothing",))
    with (
        pytest.raises(ValueError, match="not a linear layer"),
        adapted(model, LoRA(target_modules=("nothing",))),
    ):
        raise AssertionError("never entered")
    model.score(TEXT)


def test_a_model_is_used_once_at_a_time(model):
    with (
        adapted(model),
        pytest.raises(ModelError, match="is being adapted already"),
        adapted(model),
    ):
        raise AssertionError("never entered")
    with adapted(model) as slot:
        assert slot.steps == ()


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(model):
    before = state(model)
    with (
        pytest.raises(AdaptationError, match="loss is (nan|inf).* lower the learning rate"),
        adapted(model, FullFineTuning(lr=1e30), OptimizerConfig(max_grad_norm=0)) as slot,
    ):
        for _ in range(9):
            slot.step(TEXT)
    assert_same(before, state(model))


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_every_optimizer_lowers_the_loss(model, kind):
    rate = 1e-1 if kind == "sgd" else 1e-3
    with adapted(model, FullFineTuning(lr=rate), OptimizerConfig(name=kind)) as slot:
        losses = [slot.step(TEXT) for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FullFineTuning(lr=0), "lr is 0"),
        (lambda: LoRA(r=0), "r is 0"),
        (lambda: OptimizerConfig(beta1=1.0), "beta1 is 1.0"),
        (lambda: OptimizerConfig(max_grad_norm=-1.0), "max_grad_norm is -1.0"),
        (lambda: OptimizerConfig(max_grad_norm=float("nan")), "max_grad_norm is nan"),
        (lambda: adapter_config("half"), "adapter is 'half': expected full, lora, head"),
        (lambda: adapter_config("head", rank=3), "adapter head: unknown name 'rank': expected lr"),
    ],
)
def test_options_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("ratio", [0.0, 0.6, 0.9])
def test_repeats_of_a_learned_text_are_skipped(model, ratio):
    texts = [("a", "first text"), ("b", "another one"), ("a", "first text")] * 10
    training = TrainingConfig(learned_ratio=ratio)
    updates = plan_updates([Document(*text) for text in texts], model, training)
    expected, last, first = [], {}, {}
    with adapted(model, FullFineTuning(lr=1e-2)) as session:  # the same, written out
        for id, text in texts:
            if id in last and last[id] < ratio * first[id]:
                continue
            last[id] = session.step(text)
            first.setdefault(id, last[id])
            expected.append((id, last[id]))
    with adapted(model, FullFineTuning(lr=1e-2), training=training) as session:
        reason = session.train(updates)
        assert [(step.id, step.loss) for step in session.steps] == expected
    assert reason == ("learned" if len(expected) < len(texts) else None)
    assert (len(expected) < len(texts)) == (ratio > 0)


def test_the_reserve_takes_the_place_of_repeats_that_are_skipped(model):
    texts = [Document("a", "first text")] * 8 + [
        Document("b", "another"),
        Document("c", "a third text"),
        Document("d", "fourth"),
    ]
    training = TrainingConfig(learned_ratio=0.9, order="reversed")
    updates = plan_updates(texts, model, training, n=8)
    with adapted(model, FullFineTuning(lr=1e-2), training=training) as session:
        assert session.train(updates, limit=8) is None or len(session.steps) < 8
        ids = [step.id for step in session.steps]
    taken = ids.count("a")
    assert taken < 8 and ids == [*"a" * taken, *"bcd"[: 8 - taken]]
    plain = TrainingConfig(learned_ratio=0)
    assert [e.id for u in plan_updates(texts, model, plain, n=8) for e in u.examples] == ["a"] * 8


def test_chunks_of_a_repeat_are_skipped_together(model):
    rng = np.random.default_rng(0)
    hard = " ".join(str(number) for number in rng.integers(10**6, size=40))
    half = model.max_length
    while len(model.training_tokens(hard)) <= half:
        hard += f" {rng.integers(10**6)}"
    long = Document("long", hard + " bees" * half)  # the last chunk is learned first
    count = len(plan_updates([long], model, TrainingConfig()))
    reserve = [Document(str(i), f"text {i}") for i in range(6)]
    training = TrainingConfig(learned_ratio=0.8)
    updates = plan_updates([long] * 6 + reserve, model, training, n=6)
    with adapted(model, FullFineTuning(lr=1e-2), training=training) as session:
        session.train(updates, limit=6)
        ids = [step.id for step in session.steps]
    repeats, others = ids.count("long"), [id for id in ids if id != "long"]
    assert count > 1 and count < repeats < 6 * count and repeats % count == 0
    assert len(others) == 6 - repeats // count
