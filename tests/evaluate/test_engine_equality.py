"""The evaluator measures what users run: its losses and scores are the engine's, bit for bit."""

from collections import defaultdict
from dataclasses import replace

import pytest
from support import eval_fixtures

from whet.adapt.config import TrainingConfig
from whet.adapt.model import LanguageModel
from whet.data.documents import Document
from whet.engine import Engine, Request
from whet.evaluate.config import PLAIN_TRAINING
from whet.evaluate.dataset import Prompt
from whet.evaluate.evaluator import Evaluator
from whet.evaluate.picks import prompt_seed
from whet.evaluate.tasks import ScoringTask
from whet.select.config import SelectionConfig
from whet.space.space import DataSpace

PROMPT = Document("p", eval_fixtures.text(100), {})
SEED = prompt_seed(0, PROMPT.id)
TRAINING = [
    {},
    {"order": "reversed"},
    {"order": "shuffled"},
    {"order": "length"},
    {"long_texts": "chunks"},
    {"long_texts": "chunks", "order": "reversed"},
    {"long_texts": "random", "order": "shuffled"},
    {"batch_size": 3},
    {"batch_size": 3, "long_texts": "chunks", "order": "length"},
    {"gradient_reuse": 2},
    {"loss": "conditional"},
    {"use": "context"},
    {"use": "both"},
    {"use": "both", "order": "reversed"},
]


@pytest.fixture(scope="module")
def model(eval_folder):
    return LanguageModel.from_pretrained(eval_folder / "model", device="cpu")


def evaluated(eval_folder, model, adapter, training, selector):
    """The rows of the evaluator by step, and the task that they are of."""
    config = eval_fixtures.config(eval_folder, adapter=adapter, methods=(selector,), **training)
    evaluator = Evaluator(DataSpace.open(eval_folder / "space"), model, config)
    columns = evaluator.record(Prompt(PROMPT, "a"))["rows"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    [task] = ScoringTask.of(PROMPT.text, config)
    return rows, task


def mean_losses(model, space, output):
    """The loss of each document in `output`, averaged over its chunks as the evaluator does."""
    texts = {d.id: d.text for d in space.documents(range(len(space)))}
    losses = defaultdict(list)
    for step in output.trace:
        losses[step.id].append(step.loss)
    means = []
    for id, values in losses.items():
        mean, count = 0.0, 0
        for loss, chunk in zip(
            values, model.encode(texts[id]).split(model.max_length), strict=True
        ):
            mean = loss if not count else (mean * count + loss * len(chunk)) / (count + len(chunk))
            count += len(chunk)
        means.append(mean)
    return means


@pytest.mark.parametrize("adapter", ["full", "lora", "head"])
@pytest.mark.parametrize("training", TRAINING, ids=repr)
def test_losses_and_scores_of_evaluator_and_engine_are_equal(eval_folder, model, adapter, training):
    selector = "nearest-repeated" if "gradient_reuse" in training else "nearest"
    rows, task = evaluated(eval_folder, model, adapter, training, selector)
    use = training.get("use", "steps")
    training = {name: value for name, value in training.items() if name != "use"}
    space = DataSpace.open(eval_folder / "space")
    engine = Engine(
        space,
        model,
        model.adapter_config(adapter, lr=1e-2),
        selection=SelectionConfig(n=4, k=10, selector=selector),
        training=replace(PLAIN_TRAINING, **{"seed": SEED, "long_texts": "first"} | training),
        slots=1,
    )
    single = "chunks" not in training.values() and "batch_size" not in training
    request = Request(task.query, text=task.text, eval_steps=(2,) if single else (), use=use)
    output = engine.submit(request).result()
    assert rows[0]["bits"] == output.base.bits and rows[4]["bits"] == output.score.bits
    assert output.score.bits != output.base.bits
    assert bool(output.evidence.in_context) == (use != "steps")
    if use == "context":
        assert not output.trace.steps and output.evidence.num_steps == 0
        return
    if single:
        assert rows[2]["bits"] == output.scores[2].bits
    steps = [step.id for step in output.trace]
    if "chunks" in training.values():
        assert [row["document"] for row in rows[1:]] == list(dict.fromkeys(steps))
        assert [row["loss"] for row in rows[1:]] == mean_losses(model, space, output)
    else:
        assert [row["document"] for row in rows[1:]] == steps
        assert [row["loss"] for row in rows[1:]] == [step.loss for step in output.trace]


def test_the_method_whet_is_the_engine_with_its_defaults(eval_folder, model, tmp_path):
    words = eval_fixtures.text(100, 80)
    documents = [*(eval_fixtures.text(i, 60) for i in range(20)), words[: len(words) * 2 // 3]]
    space = DataSpace.build(documents, tmp_path / "space")
    config = eval_fixtures.config(eval_folder, methods=("whet", "sift"))
    evaluator = Evaluator(space, model, config)
    prompt = Document("p", words, {})
    columns = evaluator.record(Prompt(prompt, "a"))["rows"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    bits = {row["method"]: row["bits"] for row in rows if row["step"] == 4}
    [task] = ScoringTask.of(words, config)
    engine = Engine(
        space,
        model,
        model.adapter_config("full", lr=1e-2),
        selection=SelectionConfig(n=4, k=10),
        training=TrainingConfig(seed=SEED, long_texts="first"),
    )
    output = engine.submit(Request(task.query, text=task.text)).result()
    assert {step.id for step in output.trace} == {"20"} and output.retrieval.copy
    assert bits["whet"] == output.score.bits != bits["sift"]
