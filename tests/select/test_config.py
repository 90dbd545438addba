import dataclasses

import pytest

from whet.select.config import ResolvedSelection, SelectionConfig


def test_zero_steps_are_valid_and_negative_ones_are_not():
    assert SelectionConfig(n=0).n == 0 and SelectionConfig().k is None
    with pytest.raises(ValueError, match="n is -1"):
        SelectionConfig(n=-1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"selector": "sfit"}, "selector is 'sfit': expected one of sift, "),
        ({"selector": "kmeanspp"}, "selector 'kmeanspp' was removed: use random or mmr"),
        ({"k": 0}, "k is 0"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"stop_alpha": 0.0}, "stop_alpha is 0.0"),
        ({"where": "set =="}, "filter .* cannot be read"),
    ],
)
def test_invalid_options_are_errors_with_their_value(options, message):
    with pytest.raises(ValueError, match=message):
        SelectionConfig(**options)


def test_a_resolved_selection_has_no_auto():
    config = SelectionConfig(lam="auto", stop_alpha="auto", n=7)
    assert config.has_auto and not SelectionConfig().has_auto
    with pytest.raises(ValueError, match="lam is 'auto': resolve it on a data space first"):
        ResolvedSelection.of(config)
    resolved = ResolvedSelection.of(config, lam=0.1, stop_alpha=None)
    assert (resolved.n, resolved.lam, resolved.stop_alpha) == (7, 0.1, None)
    names = [field.name for field in dataclasses.fields(SelectionConfig)]
    assert [field.name for field in dataclasses.fields(ResolvedSelection)] == names
