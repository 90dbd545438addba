import numpy as np
import pytest

from whet.maths.arrays import as_count, as_positive, check_matrix, duplicate_groups


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", None, True, np.float64(2)])
def test_a_count_is_a_positive_whole_number(n):
    with pytest.raises(ValueError, match=r"n is .*: expected a whole number, 1 or more"):
        as_count(n, "n")


@pytest.mark.parametrize("x", [0, -1.0, float("nan"), float("inf"), "x", None])
def test_a_noise_is_a_positive_finite_number(x):
    with pytest.raises(ValueError, match=r"lam is .*: expected a positive finite number"):
        as_positive(x, "lam")


def test_identical_rows_share_the_lowest_index():
    rows = np.array([[1.0, 2], [3, 4], [1, 2], [3, 4], [5, 6]])
    assert list(duplicate_groups(rows)) == [0, 1, 0, 1, 4]


def test_columns_of_lists_are_matrices_and_other_kinds_are_named():
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    torch = pytest.importorskip("torch")
    rows = np.arange(6.0).reshape(3, 2)
    for column in (pandas.Series(list(rows)), arrow.array(rows.tolist())):
        np.testing.assert_array_equal(check_matrix(column, "x"), rows)
    kinds = {
        "sparse or meta tensor": torch.tensor(rows).to_sparse(),
        "ragged": pandas.Series([[1.0], [1.0, 2.0]]),
        "text": ["bees", "dance"],
    }
    for message, values in kinds.items():
        with pytest.raises(ValueError, match=f"x .*{message}"):
            check_matrix(values, "x")
