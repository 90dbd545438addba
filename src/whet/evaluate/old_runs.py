"""Runs whose metadata uses the earlier names of settings, translated when they are opened.

Such a run has `switches` and `adaptations` in its meta.json. Its methods have earlier names too,
such as `sift(mode=lora)`, in meta.json and in every row. Nothing is rewritten on disk.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from whet.evaluate.config import SETTING, SHORT_FORM, EvalConfig

NAMES = {
    "score_at": "eval_steps",
    "candidates": "retriever",
    "sign": "metric",
    "alpha": "stop_alpha",
    "mode": "adapter",
    "rank": "r",
    "optimiser": "optimizer",
    "clip": "max_grad_norm",
    "texts_per_update": "batch_size",
    "reuse": "gradient_reuse",
    "carry": "persist_optimizer",
}
VALUES = {
    ("candidates", "vectors"): "dense",
    ("sign", "own"): "auto",
    ("sign", "both"): "abs_cosine",
    ("sign", "positive"): "cosine",
    ("duplicates", "kept"): "keep",
    ("duplicates", "dropped"): "drop",
}
ADAPTER_NAMES = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules"}
DEFAULT_K = 200  # in `switches`, where a smaller data space gave as many as it had: now None


def is_old(meta: dict[str, Any]) -> bool:
    """Whether the metadata of a run uses the earlier names."""
    return "switches" in meta


def translated_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """The metadata with the present names: `config` and `adapters`.

    Raises:
        ValueError: If it has a setting that never existed.
    """
    if not is_old(meta):
        return meta
    switches: dict[str, Any] = dict(meta["switches"])
    methods = [translated_method(name) for name in switches.pop("methods", [])]
    if switches.get("k") == DEFAULT_K:
        switches["k"] = None
    table: dict[str, Any] = {
        NAMES.get(n, n): VALUES.get((n, str(v)), v) for n, v in switches.items()
    }
    table.setdefault("adapter", "full")
    config = EvalConfig.from_table(table | {"methods": methods}, "switches")
    adapters = {}
    for name, options in meta.get("adaptations", {}).items():
        method = config.method(translated_method(name))
        renamed = {ADAPTER_NAMES.get(option, option): value for option, value in options.items()}
        adapters[method.name] = {"name": method.adapter.name} | renamed
    present: dict[str, Any] = {}
    for key, value in meta.items():
        match key:
            case "switches":
                present["config"] = config.to_table()
            case "adaptations":
                present["adapters"] = adapters
            case _:
                present[key] = value
    return present


def translated_method(name: str) -> str:
    """The present short form of a method.

    >>> translated_method("sift(mode=lora, rank=4)")
    'sift(adapter=lora, r=4)'
    """
    match = SHORT_FORM.fullmatch(name)
    if not match or not match[2]:
        return name
    items = [item.strip() for item in SETTING.findall(match[2])]
    present = [_translated_setting(item) for item in items]
    return name if present == items else f"{match[1]}({', '.join(present)})"


def translated_rows(table: pa.Table) -> pa.Table:
    """The rows of a run with the present names of their methods."""
    methods = table["method"].combine_chunks()
    names = pa.array([translated_method(n) for n in methods.dictionary.to_pylist()], pa.string())
    renamed = pa.DictionaryArray.from_arrays(methods.indices, names)
    if len(pc.unique(names)) < len(names):  # a run that was continued has both names
        renamed = renamed.dictionary_decode().dictionary_encode()
    column = table.column_names.index("method")
    return table.set_column(column, table.schema.field(column), renamed)


def _translated_setting(item: str) -> str:
    name, equals, value = item.partition("=")
    name, word = name.strip(), value.strip().strip("\"'")
    if not equals or (name not in NAMES and (name, word) not in VALUES):
        return item
    return f"{NAMES.get(name, name)}={VALUES.get((name, word), value.strip())}"
