"""Each known defect of activeft 0.1.1 (D1-D16) is a test of the drop-in."""

import multiprocessing
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import reference

import whet
from whet.integrations.activeft import Retriever

faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed (extra: bench)")


def unit(*shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def clustered(k, d, *, seed, clusters=8):
    rng = np.random.default_rng(seed)
    x = unit(clusters, d, seed=seed)[rng.integers(clusters, size=k)]
    x = x + 0.5 / np.sqrt(d) * rng.standard_normal((k, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def flat(rows, metric=faiss.METRIC_INNER_PRODUCT):
    index = faiss.IndexFlat(rows.shape[1], metric)
    index.add(np.ascontiguousarray(rows, dtype=np.float32))
    return index


def assert_greedy(targets, rows, indices, lam=0.01):
    """Every pick is the best one could do then: SIFT(λ') by the d x d posterior, in float64."""
    targets, rows = np.float64(np.atleast_2d(targets)), np.float64(rows)
    for step, pick in enumerate(indices):
        seen = rows[indices[:step]]
        inner = seen @ seen.T + lam * np.eye(step)
        left = np.eye(rows.shape[1]) - seen.T @ np.linalg.solve(inner, seen)
        gains = ((targets @ left @ rows.T) ** 2).sum(0) / (
            np.einsum("kd,de,ke->k", rows, left, rows) + lam
        )
        assert gains[pick] >= gains.max() * (1 - 1e-6) - 1e-12


def total_variance(targets, rows, lam=0.01):
    return sum(reference.variance(t, rows, lam) for t in np.atleast_2d(targets))


ROWS = clustered(300, 16, seed=0)
QUERIES = unit(20, 1, 16, seed=1)


@pytest.mark.parametrize("fast", [False, True])
def test_d01_a_used_retriever_answers_like_a_fresh_one(fast):
    used = Retriever(flat(ROWS), fast=fast)
    for query in QUERIES:
        fresh = Retriever(flat(ROWS), fast=fast).search(query, N=10, K=60)
        np.testing.assert_array_equal(used.search(query, N=10, K=60)[1], fresh[1])
        used.search(query, N=3, K=7)  # another K between


def test_d02_fast_is_exact_where_a_lazy_queue_is_fifty_times_worse():
    rows, query = np.array([[1, 1], [0, 1]]) / np.sqrt([[2], [1]]), np.array([[1.0, 0]])
    values, indices, *_ = Retriever(flat(rows), fast=True).search(query, N=2)
    assert set(indices) == {0, 1} and -values[-1] < 0.03
    for seed in range(5):
        rows, query = clustered(200, 16, seed=seed), unit(1, 16, seed=100 + seed)
        assert_greedy(query, rows, Retriever(flat(rows), fast=True).search(query, N=20)[1])


@pytest.mark.parametrize("fast", [False, True])
def test_d03_several_targets_are_each_counted(fast):
    rows, query = clustered(150, 12, seed=3), unit(4, 12, seed=4)
    assert_greedy(query, rows, Retriever(flat(rows), fast=fast).search(query, N=15)[1])
    opposite = np.stack([rows[0], -rows[0]])
    values, *_ = Retriever(flat(rows), fast=fast).search(opposite, N=5)
    assert -values[-1] < 0.01


def test_d04_more_than_a_thousand_candidates_are_selected_exactly():
    rows, query = clustered(1500, 8, seed=5), unit(1, 8, seed=6)
    for fast in (False, True):
        assert_greedy(query, rows, Retriever(flat(rows), fast=fast).search(query, N=12, K=1500)[1])
    rows = clustered(11_000, 4, seed=7)
    values, *_ = Retriever(flat(rows)).search(unit(1, 4, seed=8), N=100)
    assert values.shape == (100,)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_d05_threads_return_their_own_rows(threads):
    retriever = Retriever(flat(ROWS))
    values, indices, embeddings, _ = retriever.batch_search(QUERIES, N=8, K=50, threads=threads)
    for i, query in enumerate(QUERIES):
        alone = retriever.search(query, N=8, K=50)
        np.testing.assert_array_equal(indices[i], alone[1])
        np.testing.assert_array_equal(values[i], alone[0])
        np.testing.assert_array_equal(embeddings[i], ROWS[alone[1]])


def test_d05_one_retriever_serves_many_threads():
    retriever = Retriever(flat(ROWS))
    alone = [retriever.search(query, N=8, K=50)[1] for query in QUERIES]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda q: retriever.search(q, N=8, K=50)[1], QUERIES))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("k", [101, 250, 10_000])
def test_d06_a_k_larger_than_the_index_means_all(k, opposite):
    rows = ROWS[:100]
    retriever = Retriever(flat(rows), also_query_opposite=opposite)
    _, indices, embeddings, _ = retriever.search(QUERIES[0], N=20, K=k)
    np.testing.assert_array_equal(indices, retriever.search(QUERIES[0], N=20)[1])
    assert indices.min() >= 0 and np.isfinite(embeddings).all()
    order = Retriever(flat(rows), only_faiss=True).search(QUERIES[0], N=100, K=k)[1]
    assert sorted(order) == list(range(100))


def test_d06_lists_with_fewer_than_k_rows_return_those_they_have():
    quantizer = faiss.IndexFlatIP(16)
    index = faiss.IndexIVFFlat(quantizer, 16, 7, faiss.METRIC_INNER_PRODUCT)
    index.train(ROWS)
    index.add(ROWS)
    _, indices, embeddings, _ = Retriever(index).search(QUERIES[0], N=5, K=200)
    assert indices.min() >= 0
    np.testing.assert_array_equal(embeddings, ROWS[indices])


BAD = [
    ({}, dict(query=np.full((1, 16), np.nan)), "query 0 contains nan"),
    ({}, dict(query=np.full((1, 16), np.inf)), "query 0 contains inf"),
    ({}, dict(query=np.zeros((1, 16))), "query 0 contains a zero vector"),
    ({}, dict(query=np.ones((1, 15))), "query 0 has 15 dimensions, but the index has 16"),
    ({}, dict(query=np.ones((1, 1, 16))), r"query 0 has shape \(1, 1, 16\)"),
    (
        {},
        dict(query=np.stack([ROWS[0], -ROWS[0]]), K=5),
        "mean of a query's embeddings is the zero",
    ),
    ({}, dict(K=0), "K is 0"),
    ({}, dict(N=0), "N is 0"),
    ({}, dict(threads=0), "threads is 0"),
    ({"llambda": -1}, {}, "lambda_ is -1"),
    ({"llambda": 0}, {}, "lambda_ is 0"),
    ({"lambda_": float("nan")}, {}, "lambda_ is nan"),
    ({"llambda": 0.1, "lambda_": 0.1}, {}, "one setting"),
    ({"alpha": -1}, {}, "alpha is -1"),
    ({"acquisition_function": object()}, {}, "expected a whet selector"),
    ({"acquisition_function": whet.sift, "only_faiss": True}, {}, "drop acquisition_function"),
    ({"only_faiss": True}, dict(N=301), "N is 301"),
]


@pytest.mark.parametrize("options, arguments, message", BAD)
def test_d07_an_error_about_bad_input_contains_the_value(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        Retriever(flat(ROWS), **options).search(**({"query": QUERIES[0], "N": 3} | arguments))


def test_d07_an_error_about_an_unusable_index_names_the_remedy():
    with pytest.raises(ValueError, match="index is empty"):
        Retriever(faiss.IndexFlatIP(4)).search(np.ones((1, 4)), N=1)
    with pytest.raises(ValueError, match="pass also_query_opposite=False"):
        Retriever(flat(ROWS, faiss.METRIC_L2))
    for first in (-305, 0):  # negative ids, too
        blind = faiss.IndexIDMap(faiss.IndexFlatIP(16))
        blind.add_with_ids(ROWS, np.arange(first, first + 300))
        with pytest.raises(ValueError, match="use IndexIDMap2"):
            Retriever(blind).search(QUERIES[0], N=3)
    given = Retriever(blind, vectors=ROWS).search(QUERIES[0], N=9, K=50)[1]
    np.testing.assert_array_equal(given, Retriever(flat(ROWS)).search(QUERIES[0], N=9, K=50)[1])
    with pytest.raises(ValueError, match="another order"):
        Retriever(flat(ROWS), vectors=ROWS[::-1]).search(QUERIES[0], N=3)


def test_d07_an_id_that_was_added_twice_is_an_error():
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
    index.add_with_ids(ROWS, np.arange(300) % 150)
    with pytest.raises(ValueError, match="an id was added twice"):
        Retriever(index).search(QUERIES[0], N=3, K=20)


def test_d07_compressed_vectors_are_warned_about_and_can_be_replaced():
    index = faiss.IndexPQ(16, 4, 6, faiss.METRIC_INNER_PRODUCT)
    index.train(ROWS)
    index.add(ROWS)
    with pytest.warns(UserWarning, match="compressed vectors"):
        Retriever(index).search(QUERIES[0], N=3)
    exact = Retriever(index, vectors=ROWS)
    assert_greedy(QUERIES[0], ROWS, exact.search(QUERIES[0], N=9)[1])


def test_d07_edges_that_have_an_answer():
    retriever = Retriever(flat(ROWS))
    assert len(retriever.search(QUERIES[0], N=70, K=10)[1]) == 70  # N > K repeats
    assert set(retriever.search(QUERIES[0], N=3, K=1, threads=2)[1]) <= set(range(300))
    plain = retriever.search(QUERIES[0], N=5)[1]
    np.testing.assert_array_equal(retriever.search(QUERIES[0][0], N=5)[1], plain)
    np.testing.assert_array_equal(retriever.batch_search(QUERIES[:, 0], N=5)[1][0], plain)
    values, indices, embeddings, _ = retriever.batch_search(np.ones((0, 1, 16)), N=5)
    assert (values.shape, indices.shape, embeddings.shape) == ((0, 5), (0, 5), (0, 5, 16))


@pytest.mark.parametrize("lam", [1e-8, 1e-6, 1e-4, 1e-2, 1.0, 10.0])
def test_d08_variance_is_right_on_a_low_rank_pool_of_near_duplicates(lam):
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((30, 16)) @ rng.standard_normal((16, 64))
    pool = np.repeat(pool, 6, axis=0) + 1e-6 * rng.standard_normal((180, 64))
    rows, query = (
        np.float32(pool / np.linalg.norm(pool, axis=1, keepdims=True)),
        unit(1, 64, seed=1),
    )
    # unit in float32 is not unit in float64: the reference is given exactly what was selected on
    found = Retriever(flat(rows), llambda=lam, normalize=False).search(query, N=60)
    dense = reference.variance(query[0], rows[found[1]], lam)
    assert -found[0][-1] == pytest.approx(dense, rel=1e-4) and (found[0] <= 0).all()


@pytest.mark.parametrize("made", [{}, {"fast": True}, {"only_faiss": True}, {"lambda_": 0.5}])
@pytest.mark.parametrize("m", [1, 3])
def test_d09_values_mean_one_thing(made, m):
    rows, query, lam = ROWS[:60], unit(m, 16, seed=9), made.get("lambda_", 0.01)
    values, indices, *_ = Retriever(flat(rows), **made).search(query, N=6)
    left = [total_variance(query, rows[indices[: i + 1]], lam) for i in range(6)]
    np.testing.assert_allclose(values, -np.array(left), rtol=1e-5)


def test_d10_a_batch_holds_the_candidates_of_one_query():
    rows, queries = clustered(2000, 64, seed=10), unit(64, 1, 64, seed=11)
    retriever = Retriever(flat(rows))
    tracemalloc.start()
    retriever.batch_search(queries, N=3, K=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 500 * 64 * 4 / 2  # half of one float32 copy of all candidates


def test_d11_no_process_is_started(monkeypatch):
    def refuse(self):
        raise AssertionError("a process was started")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    assert len(Retriever(flat(ROWS)).batch_search(QUERIES, N=3, threads=2)[1]) == 20


def test_d12_nothing_global_changes():
    threads, state = faiss.omp_get_max_threads(), np.random.get_state()[1].copy()
    torch = pytest.importorskip("torch", reason="extra adapt is missing")
    drawn = torch.get_rng_state()
    Retriever(flat(ROWS)).batch_search(QUERIES, N=3, threads=threads + 1)
    assert faiss.omp_get_max_threads() == threads
    assert torch.equal(torch.get_rng_state(), drawn)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("k", [None, 200])
def test_d13_of_duplicates_the_lowest_id_is_chosen_every_time(k):
    rows = np.concatenate([ROWS[:100], ROWS[:100], ROWS[:100]])
    retriever = Retriever(flat(rows))
    lists = [retriever.search(QUERIES[0], N=12, K=k)[1].tolist() for _ in range(3)]
    assert lists[0] == lists[1] == lists[2] and max(lists[0]) < 100


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.7, 1.0, 2.0])
def test_d14_adaptive_stops_at_the_first_step_over_the_line(alpha, fast):
    query = QUERIES[0]
    whole = whet.sift(query[0], ROWS, 40)
    kept = Retriever(flat(ROWS), fast=fast, alpha=alpha).search(query, N=40)
    over = [m for m in range(1, 41) if whole.sigma[m] > 1 / (alpha * m)]
    np.testing.assert_array_equal(kept[1], whole.indices[: over[0] - 1 if over else 40])


def test_d14_adaptive_does_not_compute_what_it_drops():
    asked = []

    def counting(prompt, candidates, n, *, lam):
        asked.append(n)
        return whet.sift(prompt, candidates, n, lam=lam)

    _, indices, *_ = Retriever(flat(ROWS), counting, alpha=2.0).search(QUERIES[0], N=50)
    assert len(indices) == 0 and max(asked) < 50


def test_d14_sigma_is_a_share_of_the_prior_and_batches_are_rectangular():
    one = Retriever(flat(ROWS), alpha=0.5)
    alone = one.search(QUERIES[0], N=50)[1]
    np.testing.assert_array_equal(one.search(3 * QUERIES[0], N=50)[1], alone)
    np.testing.assert_array_equal(one.search(np.repeat(QUERIES[0], 4, 0), N=50)[1], alone)
    values, indices, embeddings, _ = one.batch_search(QUERIES, N=50)
    assert values.dtype == np.float64 and indices.dtype == np.int64
    lengths = (indices >= 0).sum(1)
    assert lengths.max() == indices.shape[1] and lengths.min() < lengths.max()
    np.testing.assert_array_equal(indices[0, : lengths[0]], alone)
    assert (np.isnan(values) == (indices < 0)).all()
    assert (np.isnan(embeddings).all(2) == (indices < 0)).all()


@pytest.mark.parametrize(
    "selector",
    [
        whet.sift,
        whet.nearest,
        whet.nearest_repeated,
        whet.uncertainty,
        partial(whet.random_selection, seed=3),
    ],
)
def test_d15_every_selector_runs(selector):
    order = np.sort(Retriever(flat(ROWS), only_faiss=True).search(QUERIES[0], N=50)[1])
    rows = np.float64(ROWS[order])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = Retriever(flat(ROWS), selector, lambda_=0.1).search(QUERIES[0], N=9, K=50)[1]
    np.testing.assert_array_equal(found, order[selector(QUERIES[0][0], rows, 9, lam=0.1).indices])


def test_d16_lengths_do_not_change_the_selection():
    sizes = np.exp(np.random.default_rng(2).standard_normal((300, 1)))
    plain = Retriever(flat(ROWS)).search(QUERIES[0], N=20)
    for scale in (30.0, sizes):
        found = Retriever(flat(scale * ROWS)).search(7 * QUERIES[0], N=20)
        np.testing.assert_array_equal(found[1], plain[1])
        np.testing.assert_allclose(found[0], plain[0], rtol=1e-4)
        np.testing.assert_array_equal(found[2], np.float32(scale * ROWS)[plain[1]])
    raw = Retriever(flat(30 * ROWS), normalize=False, llambda=9.0).search(30 * QUERIES[0], N=20)
    np.testing.assert_array_equal(raw[1], plain[1])  # λ' scales with the square of the length


def test_d17_another_device_is_warned_about():
    with pytest.warns(UserWarning, match="device cuda is not used"):
        Retriever(flat(ROWS), device="cuda")


def test_other_indexes_than_those_of_faiss_work():
    class PlainIndex:
        d, ntotal, metric_type = 16, 300, 0

        def search(self, x, k):
            scores = x @ ROWS.T
            ids = np.argsort(-scores, axis=1)[:, :k]
            return np.take_along_axis(scores, ids, 1), ids

        def search_and_reconstruct(self, x, k):
            scores, ids = self.search(x, k)
            return scores, ids, ROWS[ids]

    found = Retriever(PlainIndex()).search(QUERIES[0], N=9, K=40)[1]
    np.testing.assert_array_equal(found, Retriever(flat(ROWS)).search(QUERIES[0], N=9, K=40)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its arrays under NumPy 2
@pytest.mark.parametrize("m, mean_pooling", [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("opposite", [False, True])
def test_picks_are_those_of_activeft_where_it_is_correct(m, mean_pooling, opposite):
    theirs = pytest.importorskip("activeft.sift", reason="activeft is not installed (extra: bench)")
    rows, query = clustered(400, 32, seed=20), unit(m, 32, seed=21)
    made = {"llambda": 0.05, "also_query_opposite": opposite}
    asked = {"query": query, "N": 25, "K": 150, "mean_pooling": mean_pooling}
    activeft = theirs.Retriever(flat(rows), **made, device="cpu")
    activeft.acquisition_function.num_workers = 0  # one process per query otherwise
    want = activeft.search(**asked)
    have = Retriever(flat(rows), **made).search(**asked)
    np.testing.assert_array_equal(have[1], want[1])
    np.testing.assert_allclose(have[0], want[0], atol=1e-4)
    np.testing.assert_array_equal(have[2], want[2])
    assert have[3]._fields == want[3]._fields


class IncompleteIndex:
    """An index that finds only some rows, pads as Faiss does, and repeats across signs."""

    d, metric_type = 4, 0

    def __init__(self, rows, hidden):
        self.rows, self.hidden, self.ntotal = rows, hidden, len(rows)

    def search_and_reconstruct(self, x, k):
        scores = np.where(self.hidden, -np.inf, x @ self.rows.T)
        ids = np.argsort(-scores, axis=1)[:, :k]
        scores, vectors = np.take_along_axis(scores, ids, 1), self.rows[ids]
        missing = self.hidden[ids]
        return (
            np.where(missing, -np.finfo(np.float32).max, scores),
            np.where(missing, -1, ids),
            np.where(missing[:, :, None], np.nan, vectors),
        )


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 12),
    k=st.integers(1, 30),
    option=st.integers(0, 2),
)
def test_rows_that_an_index_does_not_find_are_never_picked(seed, size, k, option):
    rng = np.random.default_rng(seed)
    rows = unit(size, 4, seed=seed + 1).astype(np.float32)
    hidden, query = rng.random(size) < 0.4, unit(1, 4, seed=seed + 2)
    retriever = Retriever(
        IncompleteIndex(rows, hidden),
        **[{}, {"fast": True}, {"also_query_opposite": False}][option],
    )
    if hidden.all():
        with pytest.raises(ValueError, match="found none"):
            retriever.search(query, N=3, K=k)
        return
    values, indices, vectors, _ = retriever.search(query, N=5, K=k)
    assert not hidden[indices].any() and len(indices) == 5
    assert np.isfinite(values).all() and len(set(indices)) <= k
    np.testing.assert_array_equal(vectors, rows[indices])
    if k >= size:  # every row found is a candidate, once
        visible = np.flatnonzero(~hidden)
        wide = rows[visible].astype(np.float64)
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        np.testing.assert_array_equal(indices, visible[whet.sift(query[0], wide, 5).indices])


@pytest.mark.parametrize("first", [-50, -1, 10**12])
def test_ids_of_any_size_and_sign_are_found(first):
    ids = np.arange(first, first + len(ROWS), dtype=np.int64)
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
    index.add_with_ids(ROWS, ids)
    expected = Retriever(flat(ROWS)).search(QUERIES[0], N=9, K=50)[1] + first
    by_id = dict(zip(ids.tolist(), ROWS, strict=True))
    for vectors in (None, ROWS, by_id):
        retriever = Retriever(index, vectors=vectors)
        assert retriever.search(QUERIES[0], N=9, K=50)[1].tolist() == expected.tolist()


def test_vectors_that_cannot_be_assigned_to_ids_are_an_error():
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
    index.add_with_ids(ROWS, np.arange(len(ROWS)) + 10**6)
    with pytest.raises(ValueError, match="pass a dictionary from id to vector"):
        Retriever(index, vectors=ROWS[:-1]).search(QUERIES[0], N=3)
    with pytest.raises(ValueError, match="which vectors= does not have"):
        Retriever(index, vectors={0: ROWS[0]}).search(QUERIES[0], N=3)


def test_a_sixth_argument_that_is_a_number_is_alpha():
    index = flat(ROWS)
    named = Retriever(index, alpha=0.5).search(QUERIES[0], N=9)[1].tolist()
    for arguments in ((0.5,), (0.5, False)):
        retriever = Retriever(index, None, None, False, True, *arguments)
        assert retriever.search(QUERIES[0], N=9)[1].tolist() == named
    faiss_only = Retriever(index, None, None, False, True, None, True)
    expected = Retriever(index, only_faiss=True).search(QUERIES[0], N=9)[1].tolist()
    assert faiss_only.search(QUERIES[0], N=9)[1].tolist() == expected
    with pytest.raises(ValueError, match="pass alpha once"):
        Retriever(index, None, None, False, True, 0.5, alpha=0.5)
