"""Configurations are read from TOML tables, KEY=VALUE lines and options in one way."""

from dataclasses import dataclass
from typing import Literal

import pytest

from whet.adapt.config import LoRA, OptimizerConfig
from whet.config import RENAMED, config_fields, from_table, parse_override, read_toml, unknown_name
from whet.select.config import SelectionConfig

pytestmark = pytest.mark.core


@dataclass(frozen=True, kw_only=True)
class Example:
    """A configuration with a field of every kind."""

    count: int = 1
    """Number of
    things."""
    rate: float | None = None
    on: bool = False
    words: tuple[str, ...] = ()
    level: float | Literal["auto"] = "auto"


def test_help_texts_are_the_docstrings_under_the_fields():
    count, rate, on, words, level = config_fields(Example)
    assert count.help == "Number of things." and rate.help == ""
    assert (count.type, rate.type, on.default, words.default) == (int, float, False, ())
    assert level.choices == ("auto",)


def test_values_are_converted_to_the_types_of_the_fields():
    table = {"rate": 1, "words": ["a", "b"], "level": 2}
    example = from_table(Example, table, "x.toml")
    assert example == Example(rate=1.0, words=("a", "b"), level=2.0)
    assert type(example.rate) is type(example.level) is float


@pytest.mark.parametrize(
    "table, message",
    [
        ({"count": 1.5}, "count is 1.5: expected an integer"),
        ({"count": True}, "count is True: expected an integer"),
        ({"rate": "fast"}, "rate is 'fast': expected a number"),
        ({"level": "high"}, "level is 'high': expected a number or auto"),
        ({"words": "ab"}, "words is 'ab': expected a list in brackets, each item a string"),
        ({"cuont": 1}, "x.toml: unknown name 'cuont': expected count"),
        ([], r"x.toml is \[\]: expected a table"),
    ],
)
def test_an_error_about_a_value_contains_it_and_what_was_expected(table, message):
    with pytest.raises(ValueError, match=message):
        from_table(Example, table, "x.toml")


@pytest.mark.parametrize(
    "line, table",
    [
        ("n=3", {"n": 3}),
        ("lr=1e-4", {"lr": 1e-4}),
        ("model=whet-nano", {"model": "whet-nano"}),
        ('path="a b"', {"path": "a b"}),
        (r"path=C:\texts", {"path": r"C:\texts"}),
        ("data.space=x", {"data": {"space": "x"}}),
        ("methods=['a', 'b']", {"methods": ["a", "b"]}),
    ],
)
def test_an_override_is_a_line_of_toml_or_a_word(line, table):
    assert parse_override(line, "--set") == table


@pytest.mark.parametrize("line", ["n", "=1", ""])
def test_an_override_without_key_or_value_is_rejected(line):
    with pytest.raises(ValueError, match="--set: .* KEY=VALUE"):
        parse_override(line, "--set")


def test_a_file_that_is_not_toml_is_rejected_by_name(tmp_path):
    (tmp_path / "bad.toml").write_text("n = = 1")
    with pytest.raises(ValueError, match=r"bad.toml is not valid TOML"):
        read_toml(tmp_path / "bad.toml")


def test_an_old_name_is_answered_with_the_new_one():
    for kind, old in ((SelectionConfig, "alpha"), (LoRA, "rank"), (OptimizerConfig, "clip")):
        with pytest.raises(ValueError, match=f"'{old}' is now called '{RENAMED[old]}'"):
            from_table(kind, {old: 1}, "x.toml")
    assert unknown_name("alpha", ["lr"]) == "unknown name 'alpha': expected lr"
