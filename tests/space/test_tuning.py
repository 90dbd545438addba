import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder

import whet
from whet.data.documents import Document
from whet.select.config import ResolvedSelection, SelectionConfig
from whet.select.selection import Selection
from whet.space.space import DataSpace
from whet.space.tuning import GRID, alpha_for_steps, resolve, tune_selection

SETTING = {"config": SelectionConfig(n=8, k=20), "prompts": 16}


def made(folder, texts, dimension=24):
    documents = [Document(f"d{i}", text, {}) for i, text in enumerate(texts)]
    return DataSpace.build(documents, folder, HashingEmbedder(dimension))


def themes(rng, count, noise):
    """Texts of two words of one theme among twelve, and `noise` words of none, in each half."""
    for _ in range(count):
        theme = rng.integers(12)
        halves = [
            [f"t{theme}w{rng.integers(4)}" for _ in range(2)]
            + [f"x{rng.integers(1000):04}" for _ in range(noise)]
            for _ in range(2)
        ]
        lengths = [len(" ".join(half)) for half in halves]
        left, right = (" ".join(half).ljust(max(lengths)) for half in halves)
        yield f"{left} {right}"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    texts = list(themes(np.random.default_rng(0), 150, noise=2))
    return made(tmp_path_factory.mktemp("s") / "s", texts)


def test_the_choice_follows_its_rule_and_repeats_itself(space):
    found = tune_selection(space, **SETTING)
    again = tune_selection(DataSpace.open(space.path, space.embedder), **SETTING)
    assert found == again != tune_selection(space, seed=1, **SETTING) and found.prompts == 16
    assert [trial.lam for trial in found.results] == list(GRID)
    errors = [trial.error for trial in found.results]
    within = [t.lam for t in found.results if t.error - min(errors) <= t.standard_error + 1e-15]
    assert found.lam == min(within) and 0 < min(errors) < 1
    assert {found.lam} <= set(GRID) and 1 <= found.steps <= 8
    distinct = [trial.distinct for trial in found.results]
    assert distinct[0] > distinct[-1]


def test_alpha_takes_the_steps_that_it_promises(space):
    found = tune_selection(space, **SETTING)
    order = np.random.default_rng(0).permutation(len(space))[:16].tolist()
    taken = []
    for row in order:
        text = space.text(row)
        query = space.embedder.encode([text[: (len(text) + 1) // 2]])
        near = space.search(query, 21)[0]
        candidates = near.vectors[near.rows != row]
        chosen = whet.sift(query[0], candidates, 8, lam=found.lam)
        taken.append(len(chosen.stop_at(found.stop_alpha)))
    assert np.mean(taken) == found.steps


@pytest.mark.parametrize("selector, metric", [(whet.sift, "abs_cosine"), (whet.nearest, "cosine")])
def test_errors_are_those_of_ridge_regression_without_the_document(space, selector, metric):
    found = tune_selection(space, lams=[0.1], selector=selector, **SETTING)
    order = np.random.default_rng(0).permutation(len(space))[:16].tolist()
    errors = np.zeros((len(GRID), 16))
    for i, row in enumerate(order):
        text = space.text(row)
        middle = (len(text) + 1) // 2
        query, truth = space.embedder.encode([text[:middle], text[middle:]]).astype(float)
        near = space.search(query[None], 21, metric=metric)[0]
        kept = np.flatnonzero(near.rows != row)[:20]
        picks = selector(query, near.vectors[kept], 8, lam=0.1).indices
        x = near.vectors[kept][picks].astype(float)
        picked = [space.text(r) for r in near.rows[kept][picks].tolist()]
        y = space.embedder.encode([t[(len(t) + 1) // 2 :] for t in picked])
        for j, noise in enumerate(GRID):
            weights = np.linalg.solve(x.T @ x + noise * np.eye(24), x.T @ y.astype(float))
            errors[j, i] = ((truth - query @ weights) ** 2).sum()
    assert found.results[0].error == pytest.approx(errors.mean(axis=1).min(), rel=1e-9)


def test_a_fixed_lam_leaves_alpha_to_choose(space):
    options = resolve(space, SelectionConfig(n=8, k=20, lam=0.3, stop_alpha="auto"), prompts=16)
    assert options.lam == 0.3
    assert options.stop_alpha == tune_selection(space, lams=[0.3], **SETTING).stop_alpha
    kept = SelectionConfig(n=8, k=20, lam=0.01)
    assert resolve(space, kept) == ResolvedSelection.of(kept)


def test_auto_is_a_choice_made_once(space):
    options = resolve(space, SelectionConfig(n=8, k=20, lam="auto", stop_alpha=0.5), prompts=16)
    assert options.lam == tune_selection(space, **SETTING).lam and options.stop_alpha == 0.5


def test_alpha_of_all_steps_stops_no_held_out_prompt():
    trace = np.array([1.0, 0.5, 0.4])
    other = np.array([1.0, 0.9, 0.85])
    both = [Selection(np.zeros(2, int), -np.diff(t), t) for t in (trace, other)]
    assert [len(s.stop_at(alpha_for_steps(both, 2))) for s in both] == [2, 2]
    assert sum(len(s.stop_at(alpha_for_steps(both, 1))) for s in both) == 2


@pytest.mark.parametrize("selector", [whet.nearest, whet.random_selection])
def test_a_selector_without_lam_gets_the_least(space, selector):
    found = tune_selection(space, selector=selector, **SETTING)
    assert found.lam == min(GRID) and len({trial.error for trial in found.results}) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"config": SelectionConfig(n=0)}, "n is 0"),
        ({"config": SelectionConfig(k=151)}, "k is 151, but the data space holds 150"),
        ({"lams": [0.0]}, "lam is 0.0"),
        ({"prompts": 0}, "prompts is 0"),
        ({"prompts": 7}, "only 7 documents"),
    ],
    ids=str,
)
def test_bad_input_is_refused(space, change, message):
    with pytest.raises(ValueError, match=message):
        tune_selection(space, **(SETTING | change))


def test_a_space_of_texts_that_cannot_be_split_is_refused(tmp_path):
    tiny = made(tmp_path / "s", list("abcdefghijkl"))
    with pytest.raises(ValueError, match="give numbers instead of auto"):
        tune_selection(tiny, SelectionConfig(n=2, k=3))


@pytest.mark.model
def test_an_engine_resolves_its_configuration_once(space, tmp_path):
    from support import tiny_models

    model = whet.LanguageModel.from_pretrained(tiny_models.save(tmp_path / "model"))
    config = SelectionConfig(n=3, k=9, lam="auto", stop_alpha="auto")
    engine = whet.Engine(space, model, selection=config)
    assert engine.selection.lam > 0 and engine.selection.stop_alpha > 0  # numbers from here on
    assert len(engine.retrieve(space.text(0)).documents) <= 3
