"""Failed, slow, cancelled and interrupted requests do not affect others."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from support import tiny_models
from support.engines import ADAPTERS, LORA, TEXT, name, picking, request, words
from support.hashing_embedder import HashingEmbedder

from whet.adapt.config import FullFineTuning, LoRA
from whet.adapt.slots import Slots
from whet.data.documents import Document
from whet.engine import (
    Engine,
    Request,
    RequestHandle,
    SamplingParams,
    TrainingConfig,
    TrainStep,
)
from whet.errors import AdaptationError, EngineClosedError, ModelError, QueueFullError
from whet.select.config import SelectionConfig
from whet.space.retrieve import Retrieval
from whet.space.space import DataSpace


def test_a_prompt_that_does_not_fit_in_memory_fails_alone(space, model, monkeypatch):
    engine = Engine(None, model, LORA, slots=2)
    begun, read = threading.Event(), model.hf_model.base_model.forward

    def small(*args, input_ids, **options):
        if input_ids.shape[1] > 20:
            raise torch.OutOfMemoryError("no room")
        return read(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(model.hf_model.base_model, "forward", small)
    sampling = SamplingParams(max_tokens=8)
    good = engine.submit(Request("abc", adapt=False, sampling=sampling), lambda _: begun.set())
    assert begun.wait(60)
    with pytest.raises(torch.OutOfMemoryError):
        engine.submit(Request("a" * 22, adapt=False, sampling=sampling)).result(60)
    with pytest.raises(ValueError, match="has token ids from"):
        engine.submit(Request("", token_ids=(1, 999), adapt=False, sampling=sampling)).result(60)
    assert good.result(60).finish_reason == "length"


def test_a_sequence_that_cannot_be_continued_fails_alone(space, model, monkeypatch):
    engine = Engine(space, model, LORA, selection=picking(2), slots=2)
    begun = threading.Event()

    def full(*args, **options):
        begun.set()
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model.hf_model.base_model, "forward", full)
        patch.setattr(Slots, "step", lambda slots, texts: {slot: [1.0] for slot in texts})
        failed = engine.submit(request(1, sampling=SamplingParams(max_tokens=3)))
        with pytest.raises(RuntimeError, match="out of memory"):
            failed.result(30)
    assert begun.is_set() and engine.generate(words(1), max_tokens=3).text


def test_a_cancelled_request_frees_its_slot_and_leaves_nothing(engine, model):
    before = engine.generate(words(5), max_tokens=4).text
    begun, go = threading.Event(), threading.Event()

    def hold(event):
        begun.set()
        go.wait(10)

    held = engine.submit(request(1, sampling=SamplingParams(max_tokens=12)), hold)
    begun.wait(10)
    held.cancel()
    go.set()
    output = held.result(10)
    assert output.trace.stop_reason == "cancelled" and len(output.trace) == 0
    assert output.text == "" and output.finish_reason == "cancelled"
    assert engine.generate(words(5), max_tokens=4).text == before


def test_a_request_cancelled_in_the_queue_costs_nothing(space, model):
    engine = Engine(space, model, LORA, selection=SelectionConfig(n=1, k=5), slots=1)
    begun, go = threading.Event(), threading.Event()
    first = engine.submit(request(0, text=TEXT), lambda event: (begun.set(), go.wait(10)))
    begun.wait(10)
    second, third = (engine.submit(request(i, text=TEXT)) for i in (1, 2))
    second.cancel()
    assert third.future.cancel()
    go.set()
    assert first.result().score and second.result().finish_reason == "cancelled"
    assert third.future.cancelled() and engine.submit(request(3, text=TEXT)).result().score


class SlowEmbedder(HashingEmbedder):
    """Waits for `proceed` before it embeds the prompt of request 1."""

    def __init__(self):
        super().__init__()
        self.started, self.proceed = threading.Event(), threading.Event()

    def encode(self, texts):
        if words(101, 3) in texts:
            self.started.set()
            assert self.proceed.wait(60)
        return super().encode(texts)


class Panic(BaseException):
    pass


class PanickingEmbedder(HashingEmbedder):
    def encode(self, texts):
        if words(101, 3) in texts:
            raise Panic
        return super().encode(texts)


def space_with(folder, embedder):
    documents = [Document(f"d{i}", words(i), {}) for i in range(30)]
    return DataSpace.build(documents, folder, embedder)


@pytest.mark.parametrize("slow, client", [(2, "a"), (6, "b")])
def test_slow_searches_delay_their_own_requests_only(tmp_path, model, slow, client):
    embedder = SlowEmbedder()
    space = space_with(tmp_path / "space", embedder)
    with Engine(space, model, LORA, selection=picking(4), slots=3) as engine:
        first = [engine.submit(request(1, text=TEXT), client="a") for _ in range(slow)]
        assert embedder.started.wait(60)
        others = [
            engine.submit(request(i, text=TEXT), client=client).result(60) for i in range(2, 5)
        ]
        assert not any(handle.future.done() for handle in first)
        embedder.proceed.set()
        outputs = [handle.result(60) for handle in first]
        assert all(len(output.trace) == 4 for output in [*outputs, *others])


def test_clients_are_served_in_turn(model):
    started, go, order = threading.Event(), threading.Event(), []
    ask = Request("alpha", adapt=False, sampling=SamplingParams(max_tokens=1))

    def block(_):
        started.set()
        assert go.wait(60)

    with Engine(None, model, LORA, slots=1) as engine:
        handles = [engine.submit(ask, block)]
        assert started.wait(60)
        for client, weight in [("a", 1)] * 4 + [("b", 2)] * 4 + [("c", 1)]:
            handle = engine.submit(ask, client=client, weight=weight)
            handle.future.add_done_callback(lambda _, client=client: order.append(client))
            handles.append(handle)
        go.set()
        for handle in handles:
            handle.result(60)
    assert sorted(order[:4]) == ["a", "b", "b", "c"] and "".join(order[4:]) == "abbaa"
    with pytest.raises(ValueError, match="weight is 0: expected a whole number"):
        engine.submit(ask, weight=0)


def test_a_slow_search_takes_no_slot_and_can_be_cancelled(tmp_path, model):
    embedder = SlowEmbedder()
    space = space_with(tmp_path / "space", embedder)
    with Engine(space, model, FullFineTuning(lr=1e-3), selection=picking(4)) as engine:
        first = engine.submit(request(1, text=TEXT))
        assert len(engine.submit(request(2, text=TEXT)).result(60).trace) == 4  # the only slot
        first.cancel()
        assert first.result(60).finish_reason == "cancelled"
        embedder.proceed.set()


def test_a_search_that_panics_fails_its_request_alone(tmp_path, model):
    space = space_with(tmp_path / "space", PanickingEmbedder())
    engine = Engine(space, model, LORA, selection=picking(2), slots=2)
    first, second = (engine.submit(request(i, text=TEXT)) for i in (1, 2))
    with pytest.raises(Panic):
        first.result(60)
    assert len(second.result(60).trace) == 2


def test_one_slow_step_does_not_end_all_training(model, monkeypatch):
    documents = tuple(Document(f"g{i}", words(i), {}) for i in range(3))
    engine = Engine(None, model, LORA, slots=1)
    step, clock, slept = Slots.step, time.perf_counter, [0.0]

    def slow(slots, texts):
        slept[0] += 9.0  # as if the machine slept
        return step(slots, texts)

    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: clock() + slept[0])
        patch.setattr(Slots, "step", slow)
        engine.submit(request(1, text=TEXT, documents=documents)).result(60)
    urgent = request(1, text=TEXT, documents=documents, deadline_s=5.0)
    steps = [len(engine.submit(urgent).result(60).trace) for _ in range(9)]
    assert steps[0] == 0 and steps[-1] == 3


def test_an_interrupted_caller_finds_the_model_restored(space, model, monkeypatch):
    before = model.score(TEXT)
    engine = Engine(space, model, FullFineTuning(lr=1e-1), selection=picking(2000))

    def interrupted(handle, timeout_s=None):
        time.sleep(0.2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RequestHandle, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(words(1), max_tokens=2)
    assert model.score(TEXT) == before
    events = engine.stream(request(1, text=TEXT))
    assert isinstance(next(events), Retrieval) and isinstance(next(events), TrainStep)
    events.close()
    assert model.score(TEXT) == before


def test_python_exits_cleanly_while_a_request_runs(tmp_path):
    tiny_models.save(tmp_path)
    script = (
        "import sys, threading, whet\n"
        "from whet.engine import Engine, Request, TrainStep\n"
        "begun = threading.Event()\n"
        "model = whet.LanguageModel.from_pretrained(sys.argv[1])\n"
        "asked = Request('a', text='b', documents=(whet.Document('d', 'a text', {}),) * 5000)\n"
        "tell = lambda event: begun.set() if isinstance(event, TrainStep) else None\n"
        "handle = Engine(None, model, 'full').submit(asked, tell)\n"
        "assert begun.wait(60) and not handle.future.done()\n"
    )
    command = [sys.executable, "-c", script, tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_full_queue_is_an_error(space, model):
    engine = Engine(
        space, model, LORA, selection=SelectionConfig(n=1, k=5), slots=1, max_queue_size=1
    )
    begun, go = threading.Event(), threading.Event()
    first = engine.submit(request(0, text=TEXT), lambda event: (begun.set(), go.wait(10)))
    begun.wait(10)
    second = engine.submit(request(1, text=TEXT))
    with pytest.raises(
        QueueFullError, match="queue is full .1 waiting.: retry later or raise `max_queue_size`"
    ):
        engine.submit(request(2, text=TEXT))
    go.set()
    assert first.result().score and second.result().score


def test_a_closed_engine_finishes_accepted_requests_only(engine):
    handles = [engine.submit(request(i, text=TEXT)) for i in range(5)]
    engine.close()
    assert all(handle.future.done() for handle in handles)
    with pytest.raises(EngineClosedError, match="engine is closed"):
        engine.submit(request(0))


def test_a_request_that_fails_fails_alone(space, model):
    engine = Engine(space, model, LORA, selection=SelectionConfig(n=3, k=5), slots=2)
    hopeless = tuple(Document(f"h{i}", words(i), {}) for i in range(3))
    requests = [
        request(0, text=TEXT),
        replace(request(1, text=TEXT), prompt=" "),
        request(2, text=TEXT, documents=(*hopeless, Document("empty", "", {}))),
        Request(prompt="x" * 40),
        request(3, text=TEXT),
    ]
    outputs = list(engine.generate_many(requests))
    errors = [str(output.error) for output in outputs]
    assert [errors[0], errors[4]] == ["None", "None"]
    assert "expected a text" in errors[1] and "has no tokens" in errors[2]
    assert "context of 32" in errors[3]
    alone = engine.submit(requests[4]).result()
    assert alone.scores == outputs[4].scores


def test_a_loss_that_is_not_finite_fails_with_its_trace(space, model):
    wild = Engine(space, model, LoRA(lr=1e30, r=2), selection=picking(4), slots=2)
    with pytest.raises(AdaptationError, match="loss is (nan|inf) at step .* lower") as caught:
        wild.score(TEXT, prompt=words(1))
    assert len(caught.value.trace) >= 1
    calm = Engine(space, model, LORA, selection=picking(2), slots=2)
    assert calm.score(TEXT, prompt=words(1)).score


@pytest.mark.parametrize("adapter", ADAPTERS, ids=name)
def test_slots_are_not_made_from_adapted_weights(model, adapter):
    true = model.score(TEXT)
    engine = Engine(None, model, adapter)
    with (
        Slots(model, FullFineTuning(lr=1e-2)).attached() as _,
        pytest.raises(ModelError, match="already"),
    ):
        model.hf_model.get_input_embeddings().weight.data = torch.ones_like(
            model.hf_model.get_input_embeddings().weight
        )
        engine.submit(Request("", text=TEXT, adapt=False)).result(30)
    output = engine.submit(Request("", text=TEXT, adapt=False)).result(30)
    assert output.base == true == model.score(TEXT)


def test_a_model_in_use_elsewhere_is_an_error_not_a_wait(engine, model):
    with model.exclusive(), pytest.raises(ModelError, match="is being adapted already"):
        engine.generate(words(1))
    assert engine.generate(words(1), max_tokens=2).trace.steps


def test_closing_generate_many_cancels_the_rest(engine):
    run = engine.generate_many(request(i, sampling=SamplingParams(max_tokens=12)) for i in range(9))
    assert next(run).text is not None
    run.close()
    engine.close()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Request("x", token_ids=(1,), text="y"), "both token_ids and a text"),
        (lambda: Request(prompt="x", deadline_s=float("nan")), "deadline_s is nan"),
        (lambda: Request(prompt="x", text=""), "text to score is empty"),
        (lambda: SamplingParams(top_p=0.0), "top_p is 0.0"),
        (lambda: SamplingParams(temperature=-1.0), "temperature is -1.0"),
        (lambda: SamplingParams(top_k=-1), "top_k is -1"),
        (lambda: SamplingParams(stop=("",)), "stop contains an empty text"),
        (lambda: TrainingConfig(gradient_reuse=2, batch_size=2), "one of them must be 1"),
    ],
)
def test_values_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["slots", "max_queue_size"])
def test_an_engine_without_slots_or_queue_is_an_error(model, name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Engine(None, model, LORA, **{name: 0})
