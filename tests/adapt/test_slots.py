"""Many prompts at once equal each alone: every mode, on every kind of network."""

import copy
import math
import os
import random
import shutil

import pytest
import torch
from support import reference_slot, tiny_models

from whet.adapt.adapters import Adapter
from whet.adapt.batches import TrainText
from whet.adapt.config import FullFineTuning, LMHead, LoRA, OptimizerConfig
from whet.adapt.model import LanguageModel
from whet.adapt.slots import Slots
from whet.adapt.tuners.head import HeadTuner
from whet.adapt.tuners.state_cache import CacheLimits
from whet.errors import ModelError

KINDS = [*tiny_models.CONFIGS, *tiny_models.MORE]
LAST_LORA, LAST_FULL = (
    LoRA(lr=1e-2, r=4, layers="last:1"),
    FullFineTuning(lr=1e-3, layers="last:1"),
)
ADAPTERS = [FullFineTuning(lr=1e-3), LoRA(lr=1e-2, r=4), LMHead(lr=1e-2), LAST_LORA, LAST_FULL]
MANY = [LoRA(lr=1e-2, r=4), LMHead(lr=1e-2), LAST_LORA]
TEXTS = [
    ["a first text", "another one, longer by far", "a first text", "x"],
    ["Ünïcode, of 26 bytes or so", "Ünïcode, of 26 bytes or so", "then this"],
    ["short", "short", "short", "short", "short", "short"],
]
ADAPTATIONS = int(os.environ.get("WHET_ADAPTATIONS", "10"))  # the whole: WHET_ADAPTATIONS=1000
name = lambda mode: type(mode).__name__  # noqa: E731


def on_cpu(folder, kind):
    """A network whose sums always have the same bits; a GPU's do not."""
    return LanguageModel.from_pretrained(tiny_models.save(folder, kind), device="cpu")


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return on_cpu(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def some_model(request, tmp_path_factory):
    return on_cpu(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture
def double(request, tmp_path):
    return LanguageModel.from_pretrained(
        tiny_models.save(tmp_path, request.param), dtype=torch.float64
    )


def learn(slots, plans):
    """The losses of every plan, {slot: texts}, in lock-step."""
    losses = {slot: [] for slot in plans}
    for step in range(max(map(len, plans.values()))):
        texts = {
            slot: [slots.model.training_tokens(plan[step])[: slots.model.max_length]]
            for slot, plan in plans.items()
            if step < len(plan)
        }
        for slot, own in slots.step(texts).items():
            losses[slot] += own
    return losses


def alone(model, mode, texts, optimizer=None):
    with reference_slot.adapted(model, mode, optimizer) as slot:
        losses = [slot.step(text) for text in texts]
        return losses, slot.score("what comes after").bits_per_byte


@pytest.mark.parametrize("mode", ADAPTERS, ids=name)
@pytest.mark.parametrize("double", KINDS, indirect=True)
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_slots_equal_the_reference(double, mode, kind):
    optimizer = OptimizerConfig(name=kind, max_grad_norm=0.5)
    plans = dict(enumerate(TEXTS if mode in MANY else TEXTS[:1]))
    slots = Slots(double, mode, optimizer, count=len(plans))
    with slots.attached():
        losses = learn(slots, plans)
        scores = [slots.activate(slot).score("what comes after").bits_per_byte for slot in plans]
    for slot, texts in plans.items():
        goal, score = alone(double, mode, texts, optimizer)
        assert losses[slot] == pytest.approx(goal, rel=1e-10)
        assert scores[slot] == pytest.approx(score, rel=1e-10)


@pytest.mark.parametrize("mode", ADAPTERS, ids=name)
@pytest.mark.parametrize("double", ["llama"], indirect=True)
def test_masked_texts_equal_the_reference_with_any_mates(double, mode):
    rng, plans = random.Random(1), dict(enumerate(TEXTS if mode in MANY else TEXTS[:1]))
    lengths = {text: len(double.training_tokens(text)) for plan in TEXTS for text in plan}
    masks = {
        text: [rng.random() < 0.4 for _ in range(n - 1)] + [True] for text, n in lengths.items()
    }
    masks[TEXTS[0][0]] = None
    slots = Slots(double, mode, count=len(plans))
    losses = {slot: [] for slot in plans}
    with slots.attached():
        for step in range(3):
            batch = {
                slot: [TrainText(double.training_tokens(plan[step]), as_mask(masks[plan[step]]))]
                for slot, plan in plans.items()
            }
            for slot, own in slots.step(batch).items():
                losses[slot] += own
        scores = [slots.activate(slot).score("what comes after").bits_per_byte for slot in plans]
    for slot, texts in plans.items():
        with reference_slot.adapted(double, mode) as session:
            goal = [session.step(text, masks[text]) for text in texts[:3]]
            score = session.score("what comes after").bits_per_byte
        assert losses[slot] == pytest.approx(goal, rel=1e-10)
        assert scores[slot] == pytest.approx(score, rel=1e-10)


def as_mask(counts):
    return None if counts is None else torch.tensor(counts)


@pytest.mark.parametrize("mode", ADAPTERS, ids=name)
def test_single_precision_ends_at_the_oracle_s_bits_per_byte(model, mode):
    plans = dict(enumerate(TEXTS if mode in MANY else TEXTS[:1]))
    slots = Slots(model, mode, count=len(plans))
    with slots.attached():
        learn(slots, plans)
        for slot, texts in plans.items():
            score = slots.activate(slot).score("what comes after").bits_per_byte
            plans[slot] = texts, score
    for texts, score in plans.values():
        assert score == pytest.approx(alone(model, mode, texts)[1], abs=1e-4)


@pytest.mark.parametrize("mode", MANY, ids=name)
def test_a_result_depends_on_neither_mates_nor_slot_nor_arrival(model, mode):
    """Bit for bit: the same texts in any slot, with any mates, begun at any tick."""
    slots, rng, found = Slots(model, mode, count=4), random.Random(0), set()
    with slots.attached():
        for _ in range(6):
            own, others = rng.randrange(4), rng.randrange(4)
            for slot in range(4):
                slots.reset(slot)
            mates = rng.sample([slot for slot in range(4) if slot != own], min(others, 3))
            for _ in range(rng.randrange(3)):
                learn(slots, {mate: [rng.choice(rng.choice(TEXTS))] for mate in mates} or {own: []})
            plans = {mate: rng.choices(rng.choice(TEXTS), k=4) for mate in mates}
            losses = learn(slots, {own: TEXTS[0], **plans})[own]
            found.add((*losses, slots.activate(own).score("what comes after").bits))
    assert len(found) == 1


@pytest.mark.parametrize("tokens", [1, 32, 64])
def test_the_size_of_a_pass_changes_no_bit(some_model, tokens, monkeypatch):
    texts, results = ["as long a text", "another text .", "the third one :", "and the fourth"], []
    for limit in (10**6, tokens):
        monkeypatch.setattr("whet.adapt.slots.CPU_PASS_TOKENS", limit)
        slots = Slots(some_model, MANY[0], count=4)
        with slots.attached():
            results.append([learn(slots, dict(enumerate(zip(texts, texts[::-1], strict=True))))])
            results[-1].append(slots.params.values.tolist())
    assert results[0] == results[1]


@pytest.mark.parametrize("mode", MANY, ids=name)
def test_a_finished_slot_is_untouched_by_later_ticks(some_model, mode):
    slots = Slots(some_model, mode, count=3)
    with slots.attached():
        learn(slots, dict(enumerate(TEXTS)))
        before = [
            t[1].clone()
            for t in (slots.params.values, slots.params.m, slots.params.v, slots.params.t)
        ]
        learn(slots, {0: TEXTS[2], 2: TEXTS[0]})
        after = [
            t[1] for t in (slots.params.values, slots.params.m, slots.params.v, slots.params.t)
        ]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("mode", ADAPTERS, ids=name)
def test_reset_is_the_base_model_bit_for_bit(some_model, mode):
    rng, base = random.Random(1), some_model.score("the base model's bits")
    slots = Slots(some_model, mode, count=3 if mode in MANY else 1)
    with slots.attached():
        for _ in range(ADAPTATIONS):
            some = rng.sample(range(len(slots)), rng.randint(1, len(slots)))
            plans = {slot: rng.choices(rng.choice(TEXTS), k=2) for slot in some}
            if rng.random() < 0.3:
                interrupted(slots, plans, rng.choice(["h.1", "layers.1", "norm", "ln_f"]))
            else:
                learn(slots, plans)
            for slot in some:
                slots.reset(slot)
                assert slots.activate(slot).score("the base model's bits") == base
    assert some_model.score("the base model's bits") == base


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_a_compiled_trunk_learns_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of compiling processes
    model = LanguageModel.from_pretrained(tiny_models.save(tmp_path, "gpt2"), dtype=torch.float64)
    del model.hf_model.base_model.h[1:]  # compiling one layer takes half the time
    slots = Slots(model, ADAPTERS[0], torch_compile=True)
    for _ in range(2):  # the model comes back in between
        with slots.attached():
            slots.reset(0)
            losses = learn(slots, {0: TEXTS[0]})[0]
            bits = slots.activate(0).score("what comes after").bits_per_byte
        goal, score = alone(model, ADAPTERS[0], TEXTS[0])
        assert losses == pytest.approx(goal, rel=1e-10) and bits == pytest.approx(score, rel=1e-10)


def test_lora_is_not_compiled(some_model):
    with pytest.raises(ValueError, match="torch_compile does not support LoRA"):
        Slots(some_model, ADAPTERS[1], torch_compile=True)


def interrupted(slots, plans, place):
    """Learn until the network fails somewhere inside."""

    def fail(*_):
        raise KeyboardInterrupt

    modules = slots.model.hf_model.base_model.named_modules()
    hooks = [module.register_forward_hook(fail) for name, module in modules if name == place]
    try:
        learn(slots, plans)
    except KeyboardInterrupt:
        assert hooks
    finally:
        for hook in hooks:
            hook.remove()


def test_repeated_texts_count(some_model):
    slots = Slots(some_model, MANY[0], count=2)
    with slots.attached():
        losses = learn(slots, {0: ["one text"] * 5, 1: ["one text"]})
        assert slots.params.t.tolist() == [5, 1]
    assert losses[0][1] < losses[0][0] == losses[1][0] and len(set(losses[0])) == 5


@pytest.mark.parametrize("mode", MANY, ids=name)
def test_clipping_never_couples_prompts(some_model, mode):
    """A mate with a gradient a thousand times as large changes nothing."""
    results = []
    for mate in (1.0, 1000.0):
        slots = Slots(some_model, mode, OptimizerConfig(name="sgd", max_grad_norm=0.1), count=2)
        with slots.attached():
            slots.params.values[1] *= mate
            results.append(learn(slots, {0: TEXTS[0], 1: TEXTS[0]})[0])
    assert results[0] == results[1]


def test_a_loss_that_is_not_finite_stays_in_its_slot(some_model):
    slots = Slots(some_model, MANY[0], count=2)
    with slots.attached():
        slots.params.values[1] = math.nan
        losses = learn(slots, {0: TEXTS[0], 1: TEXTS[0]})
        assert not any(map(math.isfinite, losses[1])) and slots.params.t.tolist() == [4, 0]
        slots.reset(1)
        again = learn(slots, {1: TEXTS[0]})
    assert losses[0] == again[1] == learn_alone(some_model, TEXTS[0])


def learn_alone(model, texts):
    slots = Slots(model, MANY[0], count=2)
    with slots.attached():
        return learn(slots, {0: texts})[0]


@pytest.mark.parametrize("mode", ADAPTERS, ids=name)
def test_logits_are_computed_in_chunks_to_the_same_end(some_model, mode, monkeypatch):
    whole = alone(some_model, mode, TEXTS[0])[0]
    monkeypatch.setattr("whet.adapt.loss.CHUNK", 257 * 5)  # else texts of 16,000 tokens
    monkeypatch.setattr("whet.adapt.loss.MIN_ROWS", 1)
    slots = Slots(some_model, mode)
    with slots.attached():
        assert learn(slots, {0: TEXTS[0]})[0] == pytest.approx(whole, rel=1e-4)


def limited(model, rows):
    """Out of memory, as torch says it, when more than `rows` texts are computed at once."""

    def hook(module, args, kwargs):
        if len(kwargs["input_ids"]) > rows:
            raise torch.OutOfMemoryError(f"no room for {len(kwargs['input_ids'])} texts")

    return model.hf_model.base_model.register_forward_pre_hook(hook, with_kwargs=True)


def test_out_of_memory_halves_what_is_computed_at_once(some_model, caplog):
    plans = {slot: TEXTS[0] for slot in range(4)}
    slots = Slots(some_model, MANY[0], count=4)
    with slots.attached():
        goal = learn(slots, plans)
    slots, hook = Slots(some_model, MANY[0], count=4), limited(some_model, 1)
    try:
        with slots.attached():
            assert learn(slots, plans) == goal
    finally:
        hook.remove()
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: computing 2 texts at once from now on",
        "out of memory: computing 1 texts at once from now on",
    ]


def test_head_without_memory_for_a_prompt_s_texts_takes_them_one_by_one(some_model):
    texts = [some_model.training_tokens(text) for text in ("one", "two", "six")]
    slots, hook = Slots(some_model, LMHead(lr=1e-2)), limited(some_model, 1)
    try:
        with slots.attached():
            slots.precompute(texts)
            assert all(slots.step({0: [text]})[0][0] > 0 for text in texts)
    finally:
        hook.remove()


def test_out_of_memory_on_one_text_is_an_error(some_model):
    slots, hook = Slots(some_model, MANY[0], count=2), limited(some_model, 0)
    try:
        with slots.attached(), pytest.raises(ModelError, match="out of memory on a single text"):
            learn(slots, {0: TEXTS[0]})
    finally:
        hook.remove()


def test_a_small_cache_of_hidden_states_gives_the_same_losses(some_model):
    slots = Slots(some_model, LMHead(lr=1e-2), count=2, cache_limits=CacheLimits(16 * 4 * 30))
    with slots.attached():
        first = learn(slots, {0: TEXTS[0], 1: TEXTS[1]})
        slots.reset(0)
        assert learn(slots, {0: TEXTS[0]})[0] == first[0]


def test_the_cache_of_hidden_states_is_bounded(some_model):
    tuner = HeadTuner(some_model, CacheLimits(16 * 4 * 30), False)
    for text in TEXTS[0]:
        tuner.precompute([some_model.training_tokens(text)])
        assert 0 < tuner.cache.num_tokens <= 30


def test_bfloat16_trains_float32_masters(tmp_path):
    model = LanguageModel.from_pretrained(tiny_models.save(tmp_path, "llama"), dtype=torch.bfloat16)
    for mode in ADAPTERS:
        slots = Slots(model, mode)
        with slots.attached():
            losses = learn(slots, {0: ["one text"] * 6})[0]
            assert losses[-1] < losses[0] and slots.params.values.dtype == torch.float32
    assert next(model.hf_model.parameters()).dtype == torch.bfloat16


def test_full_training_gives_the_embedding_back_with_dense_gradients(some_model):
    embedding, slots = (
        some_model.hf_model.get_input_embeddings(),
        Slots(some_model, FullFineTuning()),
    )
    with pytest.raises(KeyboardInterrupt), slots.attached():
        learn(slots, {0: TEXTS[0]})
        raise KeyboardInterrupt
    assert not embedding.sparse and embedding.weight.grad is None


def test_full_training_has_one_slot(some_model):
    with pytest.raises(ValueError, match="count is 2: expected 1 with full fine-tuning"):
        Slots(some_model, FullFineTuning(), count=2)


@pytest.mark.parametrize("mode", ADAPTERS, ids=name)
def test_one_slot_reads_several_rows_at_once(some_model, mode):
    slots, ids = Slots(some_model, mode), torch.arange(40).view(2, 20)
    with slots.attached(), torch.no_grad():
        learn(slots, {0: TEXTS[0]})
        both = slots.activate(0).hf_model(input_ids=ids).logits
        one = [some_model.hf_model(input_ids=row[None]).logits[0] for row in ids]
    torch.testing.assert_close(both, torch.stack(one), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", [LAST_LORA, LAST_FULL], ids=name)
def test_cached_states_give_the_losses_of_uncached_ones(model, mode):
    runs = []
    for memory_bytes in (0, 2**20):
        slots = Slots(model, mode, cache_limits=CacheLimits(memory_bytes))
        with slots.attached():
            runs.append(learn(slots, {0: TEXTS[0] * 2})[0])
    assert runs[0] == runs[1] and runs[0][4] < runs[0][0]


def losses_on_disk(model, mode, folder, memory_bytes=2**20, folder_bytes=2**20):
    """The losses of a process that finds what earlier ones left in `folder`."""
    slots = Slots(model, mode, cache_limits=CacheLimits(memory_bytes, folder, folder_bytes))
    with slots.attached():
        return learn(slots, {0: TEXTS[0] * 2})[0]


@pytest.mark.parametrize("mode", [LMHead(lr=1e-2), LAST_LORA, LAST_FULL], ids=name)
def test_states_on_disk_give_the_losses_of_computed_ones(some_model, mode, tmp_path):
    exact = losses_on_disk(some_model, mode, None)
    first, again, small = (
        losses_on_disk(some_model, mode, tmp_path, size) for size in (9, 9**9, 9)
    )
    assert first == again == small  # bit for bit, computed, read and read again
    assert first == pytest.approx(exact, rel=2e-3)  # rounded to float16
    files = [path for path in tmp_path.glob("*/*") if path.is_file()]
    assert len(files) == len(set(TEXTS[0]))
    for number, path in enumerate(files):  # damaged: cut off, another number, empty
        content = bytearray(path.read_bytes())
        content[5] ^= 64
        path.write_bytes([content[:-7], bytes(content), b""][number % 3])
    assert losses_on_disk(some_model, mode, tmp_path) == first


def test_states_of_other_layers_and_weights_are_not_used(tmp_path):
    folder, model = tmp_path / "states", on_cpu(tmp_path / "model", "llama")
    for mode in (LAST_LORA, LMHead(lr=1e-2)):
        assert losses_on_disk(model, mode, folder) == losses_on_disk(model, mode, folder)
    before = losses_on_disk(model, LAST_LORA, folder)
    with torch.no_grad():
        model.hf_model.base_model.layers[0].mlp.up_proj.weight.mul_(2)
    after = losses_on_disk(model, LAST_LORA, folder)
    assert after != before and after == losses_on_disk(model, LAST_LORA, tmp_path / "new")
    assert len(list(folder.iterdir())) == 3  # two layers, two models


def test_states_on_disk_are_bounded_and_a_full_disk_is_no_error(some_model, tmp_path, caplog):
    exact = losses_on_disk(some_model, LAST_LORA, tmp_path / "whole")
    limit = 1000  # bytes: two of the three texts
    assert losses_on_disk(some_model, LAST_LORA, tmp_path / "small", folder_bytes=limit) == exact
    sizes = [path.stat().st_size for path in (tmp_path / "small").glob("*/*")]
    assert 0 < sum(sizes) <= limit and len(sizes) < len(set(TEXTS[0]))
    (tmp_path / "a file").touch()  # instead of the folder: nothing can be written
    assert losses_on_disk(some_model, LAST_LORA, tmp_path / "a file") == exact
    assert [record.message for record in caplog.records if "no longer stored" in record.message]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_an_adapter_of_the_last_layers_loads_in_peft_with_equal_logits(some_model, tmp_path):
    import peft

    slots = Slots(some_model, LAST_LORA)
    ids = torch.arange(20)[None]
    with slots.attached(), torch.no_grad():
        with torch.enable_grad():
            learn(slots, {0: TEXTS[0]})
        ours = slots.activate(0).hf_model(input_ids=ids).logits
        Adapter.from_slot(slots, 0).save_pretrained(tmp_path / "adapter")
    base = some_model.hf_model(input_ids=ids).logits
    wrapped = peft.PeftModel.from_pretrained(
        copy.deepcopy(some_model.hf_model), tmp_path / "adapter"
    )
    theirs = wrapped(input_ids=ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base, ours, atol=1e-3)


def test_more_layers_than_there_are_and_other_words_are_errors(some_model):
    with pytest.raises(ValueError, match="layers is 'last:9', but .* has 2 layers: lower"):
        Slots(some_model, LoRA(layers="last:9"))
    for layers in ("first:1", "last:0", "last:", "2"):
        with pytest.raises(ValueError, match="expected all, or last:N with N of at least 1"):
            LoRA(layers=layers)
