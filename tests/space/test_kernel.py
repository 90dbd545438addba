"""The scale of a data space's vectors, and the λ' that follows from it."""

import itertools
from contextlib import closing

import numpy as np
import pytest
from support.hashing_embedder import HashingEmbedder
from support.old_spaces import as_older_version
from support.store_conformance import disk_writer, table, units

from whet.select.config import ResolvedSelection, SelectionConfig
from whet.space.retrieve import Retriever
from whet.space.space import DataSpace
from whet.space.store.kernel import kernel_of, measure_kernel
from whet.space.store.reader import DiskReader
from whet.space.store.writer import DiskWriter
from whet.space.training_set import training_set
from whet.space.tuning import resolve

TEXTS = [f"{a} {b} common" for a in ("red", "green", "blue") for b in ("bee", "ant")]


class Long(HashingEmbedder):
    """Vectors of length 3."""

    normalized = False

    def encode(self, texts):
        return 3 * super().encode(texts)


def slow(vectors):
    """λ' by the mean over all pairs."""
    rows = [row for row in vectors.astype(float) if row.any()]
    pairs = [x @ y for x, y in itertools.combinations(rows, 2)]
    squares = np.mean([x @ x for x in rows])
    return 0.13 * (squares - (np.mean(pairs) if pairs else 0))


@pytest.mark.parametrize("embedder", [HashingEmbedder(), Long()])
def test_lambda_is_in_units_of_the_kernel(tmp_path, embedder):
    space = DataSpace.build([*TEXTS, "", " "], tmp_path / "s", embedder)
    assert space.kernel.lam == pytest.approx(slow(space.vectors(space.rows)), rel=5e-3)


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[:2], TEXTS[:3]])
def test_few_documents_are_enough(tmp_path, texts):
    space = DataSpace.build(texts, tmp_path / "s", HashingEmbedder())
    assert space.kernel.lam == pytest.approx(slow(space.vectors(space.rows)), rel=5e-3)
    assert len(Retriever(space, SelectionConfig(n=2)).select("red bee")) == 2


def test_equal_documents_leave_a_positive_lambda(tmp_path):
    space = DataSpace.build([{"id": str(i), "text": "a b"} for i in range(9)], tmp_path / "s")
    assert space.kernel.lam == 0.001
    assert kernel_of(np.zeros((3, 4))).lam == 0.13  # nothing is known


def test_the_stored_value_follows_every_change(tmp_path):
    space = DataSpace.build(TEXTS[:3], tmp_path / "s", HashingEmbedder())
    for change in (
        lambda: space.add([{"id": str(i), "text": TEXTS[i]} for i in range(3, 6)]),
        lambda: space.delete(ids=["0", "4"]),
        lambda: DiskWriter(space.path).compact(),
    ):
        change()
        opened = DataSpace.open(space.path, HashingEmbedder())
        fresh = kernel_of(opened.vectors(opened.rows)).as_record()
        assert opened.manifest.kernel == pytest.approx(fresh)


def test_an_older_data_space_is_measured_when_it_is_used(tmp_path):
    lam = DataSpace.build(TEXTS, tmp_path / "s").kernel.lam
    as_older_version(tmp_path / "s")
    assert not (opened := DataSpace.open(tmp_path / "s")).manifest.kernel
    assert opened.kernel.lam == lam


def test_a_filter_hides_documents_from_lambda_too(tmp_path):
    docs = [{"id": str(i), "text": text, "red": i < 2} for i, text in enumerate(TEXTS)]
    space = DataSpace.build(docs, tmp_path / "s", HashingEmbedder())
    seen = space.filter("red == True")
    assert seen.kernel == kernel_of(space.vectors([0, 1]))
    space.add([{"id": "more", "text": "quite another", "red": False}])
    again = DataSpace.open(space.path, HashingEmbedder(), where="red == True")
    assert again.kernel == seen.kernel


def test_large_stores_are_measured_on_runs_of_rows(tmp_path):
    with disk_writer(tmp_path / "s") as writer:
        writer.add(table(20_000), units(20_000))
    starts = [run * (20_000 - 64) // 255 for run in range(256)]
    rows = np.array([start + i for start in starts for i in range(64)])
    with closing(DiskReader.open(tmp_path / "s")) as reader:
        assert measure_kernel(reader) == kernel_of(reader.vectors(rows))


def test_everything_that_starts_from_a_data_space_uses_it(tmp_path):
    space = DataSpace.build(TEXTS, tmp_path / "s", HashingEmbedder())
    lam, number = space.kernel.lam, SelectionConfig(n=3, lam=space.kernel.lam)
    assert resolve(space, SelectionConfig()).lam == Retriever(space).config.lam == lam
    explicit = Retriever(space, number).select("red bee").selection
    by_default = Retriever(space, SelectionConfig(n=3)).select("red bee").selection
    np.testing.assert_array_equal(by_default.variance, explicit.variance)
    of_targets = training_set(space, ["red bee"], 3).selection
    np.testing.assert_allclose(of_targets.variance, explicit.variance)
    with pytest.raises(ValueError, match="lam is 'embedder': resolve it on a data space first"):
        ResolvedSelection.of(SelectionConfig())
