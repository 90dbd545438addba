"""Numbers of small seeded problems, and files of the formats that must stay readable."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

import whet
from whet.cli import main
from whet.evaluate.results import Run
from whet.select.registry import SELECTORS

HERE = Path(__file__).parent
SPACE, RUN, ADAPTER = HERE / "space", HERE / "run", HERE / "adapter"
MODEL = "whet-pico"
TEXTS = (
    "The kettle sings on the stove while the tea leaves wait in the blue pot.",
    "Boil water in the kettle, warm the pot, and let the tea leaves steep for four minutes.",
    "Green tea wants cooler water than black tea, and a shorter time in the pot.",
    "The night train leaves the harbor station at ten and reaches the mountains by morning.",
    "A conductor checks each ticket before the train leaves the station for the coast.",
    "The old station clock runs slow, so the morning train is often late.",
    "def brew(water, leaves): return steep(warm(water), leaves, minutes=4)",
    "def depart(train, station): return [stop for stop in train.stops if stop != station]",
    "The garden needs water in the morning, before the sun stands over the beds.",
    "Plant the beans along the garden wall and the peas beside the gate.",
    "Rain filled the harbor road with water, and the garden gate would not close.",
    "The baker warms the oven before morning and sells bread beside the station.",
)
PROMPTS = (
    "Warm the blue pot before the tea leaves go in. Boil the water in the kettle, pour it over "
    "the leaves, and wait four minutes before you fill the cups.",
    "The morning train was late at the harbor station. The conductor said that the old clock runs "
    "slow, and that the train to the mountains leaves when it leaves.",
)
PROMPT, AFTER = "The kettle sings and the tea leaves", " wait in the pot for the water."
ADAPTERS = {
    "full": whet.FullFineTuning(lr=5e-4),
    "lora": whet.LoRA(lr=5e-3, r=4, lora_alpha=8.0),
    "head": whet.LMHead(lr=1e-3),
}
SMALL = whet.LoRA(lr=2e-2, r=1, lora_alpha=2.0, target_modules=("c_attn",))
METHODS = ["nearest", "sift", "sift(adapter=lora)"]


def documents(count=None):
    return [whet.Document(f"d{i}", text, {"place": i}) for i, text in enumerate(TEXTS[:count])]


def problems():
    """Three kinds of candidates, and a prompt for each."""
    rng = np.random.default_rng(1)
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    yield "random", unit(rng.normal(size=16)), unit(rng.normal(size=(60, 16)))
    centers = unit(rng.normal(size=(6, 16)))
    rows = unit(np.repeat(centers, 10, axis=0) + 0.02 * rng.normal(size=(60, 16)))
    yield "clustered", unit(centers[:3].sum(axis=0) + 0.1 * rng.normal(size=16)), rows
    basis = rng.normal(size=(4, 16))
    rows = unit(rng.normal(size=(60, 4)) @ basis) * rng.choice([-1.0, 1.0], size=(60, 1))
    yield "low-rank", unit(rng.normal(size=4) @ basis), rows


def picks(noise=0.0):
    """What every selector picks; with `noise`, of rows that are a little different."""
    rng = np.random.default_rng(2)
    made = {}
    for kind, prompt, rows in problems():
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)  # equal lengths stay equal: ties
        rows = rows + noise * rng.normal(size=rows.shape)
        rows *= lengths / np.linalg.norm(rows, axis=1, keepdims=True)
        for name, select in SELECTORS.items():
            found = select(prompt, rows, 12, lam=0.1)
            made[f"{name}, {kind}"] = {
                "indices": found.indices.tolist(),
                "variance": found.variance.tolist(),
                "gains": found.gains.tolist(),
            }
    return made


def engine():
    """One prompt's way by each mode: what it learned from, and what the model then says."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        space = whet.DataSpace.build(documents(), Path(folder) / "space")
        for name, mode in ADAPTERS.items():
            model = whet.LanguageModel.from_pretrained(MODEL, device="cpu")
            options = whet.SelectionConfig(n=4, k=8, lam=0.1)
            with whet.Engine(space, model, mode, selection=options) as engine:
                scored = engine.score(AFTER, prompt=PROMPT)
                said = engine.generate(PROMPT, max_tokens=8)
            made[name] = {
                "ids": [step.id for step in scored.trace],
                "sigma": [step.sigma for step in scored.trace],
                "losses": [step.loss for step in scored.trace],
                "base": scored.base.bits,
                "adapted": scored.score.bits,
                "stop": scored.trace.stop_reason,
                "text": said.text,
            }
    return made


def evaluate(folder):
    """A run of two prompts by `whet eval`, of the data space that is kept here."""
    prompts = folder.parent / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"id": f"p{i}", "text": text, "meta": {"set": "ab"[i]}}) + "\n"
            for i, text in enumerate(PROMPTS)
        )
    )
    switches = {
        "n": 4,
        "eval_steps": [0, 2, 4],
        "model": MODEL,
        "device": "cpu",
        "methods": METHODS,
        "lam": 0.01,
    }
    words = ["eval", SPACE, "--prompts", prompts, "--out", folder, "--quiet", "--json"]
    for name, value in switches.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return whet_json(*words)


def evaluation():
    with tempfile.TemporaryDirectory() as folder:
        evaluate(Path(folder) / "run")
        return rows(Path(folder) / "run")


def rows(folder):
    """The rows of the run in `folder`, by prompt and method."""
    made = {}
    for row in Run.open(folder).table.to_pylist():
        told = {name: row[name] for name in ("step", "document", "bits", "sigma")}
        made.setdefault(f"{row['prompt']}, {row['method']}", []).append(told)
    return dict(sorted(made.items()))


def formats():
    """What is read from the files here, which older versions wrote."""
    words = ["select", SPACE, PROMPT, "--selector", "nearest", "-n", 4, "--json"]
    found = whet_json(*words)["picks"]
    return {
        "search": [
            {name: pick[name] for name in ("id", "cosine", "text", "meta")} for pick in found
        ],
        "run": rows(RUN),
        "report": told(whet_json("report", RUN, "--json")),
        "adapter": adapter(),
    }


def told(report):
    """A report without what describes the run, which may grow."""
    return {name: value for name, value in report.items() if name != "meta"}


def adapter():
    kept = whet.Adapter.from_pretrained(ADAPTER)
    query = whet.Request(PROMPT, text=AFTER, documents=())
    with whet.Engine(
        None, whet.LanguageModel.from_pretrained(MODEL, device="cpu"), kept.config
    ) as engine:
        base = engine.submit(query).result().score.bits
        query = whet.Request(PROMPT, text=AFTER, documents=(), init_adapter=kept)
        adapted = engine.submit(query).result().score.bits
    return {"base": base, "adapted": adapted, "rank": kept.config.r, "of": kept.base_model}


def whet_json(*words):
    done = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def make_formats():
    """The files of today's formats, where they are not here; those that are here stay."""
    if not SPACE.exists():
        whet.DataSpace.build(documents(6), SPACE)
    if not RUN.exists():
        with tempfile.TemporaryDirectory() as folder:
            evaluate(Path(folder) / "run")
            shutil.copytree(Path(folder) / "run", RUN)
        meta = json.loads((RUN / "meta.json").read_text())
        meta |= {"machine": {"cpu": "", "cores": 1, "gpu": None, "system": ""}, "commit": None}
        (RUN / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    if not ADAPTER.exists():
        model = whet.LanguageModel.from_pretrained(MODEL, device="cpu")
        with whet.Engine(None, model, SMALL) as engine:
            query = whet.Request(PROMPT, documents=tuple(documents(4)), return_adapter=True)
            engine.submit(query).result().adapter.save_pretrained(ADAPTER)


NUMBERS = {"picks": picks, "engine": engine, "evaluation": evaluation, "formats": formats}


def make():
    torch.set_num_threads(1)
    make_formats()
    for name, numbers in NUMBERS.items():
        text = json.dumps(numbers(), indent=1, ensure_ascii=False) + "\n"
        (HERE / f"{name}.json").write_text(text)
    for name, with_noise in picks(noise=1e-7).items():
        if with_noise["indices"] != stored("picks")[name]["indices"]:
            raise AssertionError(f"picks of {name} depend on the last digits: take another seed")


def stored(name):
    return json.loads((HERE / f"{name}.json").read_text())
