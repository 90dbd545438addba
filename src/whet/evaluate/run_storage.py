"""A run on disk: each prompt is written once, and a crash neither loses nor duplicates one.

The folder of a run holds `meta.json`, two Parquet tables (`rows`, `prompts`), and while the run is
in progress `journal.jsonl`, one line per prompt, written once and synced. Packing moves the journal
into the tables: first the rows, then the prompts, then the journal is deleted. A prompt in the
prompts table is packed; rows of any other prompt, and journal lines of a packed one, were left by a
crash and are ignored.

Runs of earlier versions have `switches` and `adaptations` in meta.json, and methods with earlier
names of settings, such as `sift(mode=lora)`, there and in every row. They are translated when they
are opened; nothing is rewritten on disk.
"""

import json
import os
from pathlib import Path
from typing import Any

from whet.errors import require

require("pyarrow", "space")

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whet.errors import RunFolderError
from whet.evaluate.config import SETTING, SHORT_FORM, EvalConfig
from whet.io import atomic_write

FORMAT = 2
META, JOURNAL, ROWS, PROMPTS = "meta.json", "journal.jsonl", "rows.parquet", "prompts.parquet"
NAME = pa.dictionary(pa.int32(), pa.string())
ROW_SCHEMA = pa.schema({
    "prompt": NAME, "method": NAME, "part": pa.int16(), "bytes": pa.int64(),
    "base_bits": pa.float64(), "step": pa.int32(), "bits": pa.float64(), "sigma": pa.float64(),
    "loss": pa.float64(), "document": NAME, "multiplicity": pa.int32(), "tokens": pa.int64(),
    "embed_s": pa.float64(), "search_s": pa.float64(), "select_s": pa.float64(),
    "train_s": pa.float64(), "score_s": pa.float64(), "answer": pa.string(),
    "exact_match": pa.float64(), "edit_similarity": pa.float64(), "f1": pa.float64(),
    "generate_s": pa.float64(),
})  # fmt: skip
PROMPT_SCHEMA = pa.schema({
    "prompt": pa.string(), "set": pa.string(), "error": pa.string(), "parts": pa.int16(),
    "bytes": pa.int64(), "base_bits": pa.float64(), "base_s": pa.float64(),
    "query_bytes": pa.int64(), "query_bits": pa.float64(), "exact": pa.bool_(), "near": pa.bool_(),
    "cosine": pa.float64(), "overlap": pa.float64(), "cosines": pa.list_(pa.float32()),
    "peak_mib": pa.float64(),
})  # fmt: skip

OLD_NAMES = {
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
OLD_VALUES = {
    ("candidates", "vectors"): "dense",
    ("sign", "own"): "auto",
    ("sign", "both"): "abs_cosine",
    ("sign", "positive"): "cosine",
    ("duplicates", "kept"): "keep",
    ("duplicates", "dropped"): "drop",
}
OLD_ADAPTER_NAMES = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules"}
OLD_DEFAULT_K = 200  # in `switches`, where a smaller data space gave as many as it had: now None


def read_meta(folder: Path) -> dict[str, Any]:
    """The metadata of the run in `folder`, as it is on disk.

    Raises:
        RunFolderError: If the folder holds no run, or one of another format.
    """
    path = folder / META
    try:
        meta: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunFolderError(
            f"{folder} holds no run: make one with `whet eval --out {folder}`"
        ) from error
    except ValueError as error:
        raise RunFolderError(
            f"{path} is corrupt ({error}): delete {folder} and run again"
        ) from error
    if not isinstance(meta, dict) or not {"config", "switches"} & meta.keys():
        raise RunFolderError(f"{folder} holds no run: make one with `whet eval --out FOLDER`")
    if meta.get("format") != FORMAT:
        raise RunFolderError(
            f"{folder} is a run of format {meta.get('format')}, but this version of whet reads "
            f"format {FORMAT}: run it again with another --out"
        )
    return meta


def append(folder: Path, record: dict[str, Any]) -> None:
    """Write a result of `Evaluator.record`; it is on disk when this returns."""
    with (folder / JOURNAL).open("ab") as out:
        out.write(json.dumps(record).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def repair(folder: Path) -> set[str]:
    """Remove an incomplete last line of the journal.

    Returns the ids of the finished prompts, including failed ones.

    Raises:
        RunFolderError: If any other line is invalid.
    """
    size, records = _journal(folder)
    path = folder / JOURNAL
    if path.exists() and size < path.stat().st_size:
        with path.open("r+b") as out:
            out.truncate(size)
    return {*strings(_packed(folder)[1], "prompt"), *(record["prompt"] for record in records)}


def pack(folder: Path) -> None:
    """Move the journal into the Parquet tables; a crash meanwhile loses and duplicates nothing."""
    if not (folder / JOURNAL).exists():
        return
    for table, name in zip(tables(folder), (ROWS, PROMPTS), strict=True):
        with atomic_write(folder / name) as new:
            pq.write_table(table, new, compression="zstd")
    (folder / JOURNAL).unlink()


def tables(folder: Path) -> tuple[pa.Table, pa.Table]:
    """All rows and all prompts, from the tables and the journal."""
    journal = _journal(folder)[1]  # read first: another process may pack it meanwhile
    rows, prompts = _packed(folder)
    packed = set(strings(prompts, "prompt"))
    records = {r["prompt"]: r for r in journal if r["prompt"] not in packed}
    parts = [rows]
    for name, record in records.items():
        if columns := record.pop("rows", None):
            size = len(columns["step"])
            columns["prompt"] = [name] * size
            columns = {each: [None] * size for each in ROW_SCHEMA.names} | columns
            parts.append(pa.table(columns, schema=ROW_SCHEMA))
    added = pa.Table.from_pylist(list(records.values()), schema=PROMPT_SCHEMA)
    return pa.concat_tables(parts).unify_dictionaries(), pa.concat_tables([prompts, added])


def _packed(folder: Path) -> tuple[pa.Table, pa.Table]:
    """The rows and prompts in the tables, without rows of other prompts.

    Raises:
        RunFolderError: If a table cannot be read.
    """
    prompts = _read(folder / PROMPTS, PROMPT_SCHEMA)
    rows = _read(folder / ROWS, ROW_SCHEMA)
    valid = pc.is_in(rows["prompt"].cast(pa.string()), value_set=column(prompts, "prompt"))
    return rows.filter(valid), prompts


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.exists():
        return schema.empty_table()
    try:
        return pq.read_table(path, schema=schema)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{path} cannot be read ({reason}): delete that folder") from error


def _journal(folder: Path) -> tuple[int, list[dict[str, Any]]]:
    """The number of bytes in complete lines of the journal, and the records in them.

    Raises:
        RunFolderError: If a complete line is not a record of a prompt.
    """
    path = folder / JOURNAL
    if not path.exists():
        return 0, []
    records, size = [], 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            records.append(_record(json.loads(line)))
        except ValueError as error:
            raise RunFolderError(f"{path}, line {number}: {error}: delete that line") from error
        size += len(line)
    return size, records


def _record(value: Any) -> dict[str, Any]:
    if not (isinstance(value, dict) and isinstance(value.get("prompt"), str)
            and ("error" in value or {"rows", "set"} <= value.keys())):  # fmt: skip
        raise ValueError("not a record of a prompt")
    return value


def column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()


def strings(table: pa.Table, name: str) -> list[str]:
    values: list[str] = table[name].to_pylist()
    return values


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
    if switches.get("k") == OLD_DEFAULT_K:
        switches["k"] = None
    table: dict[str, Any] = {
        OLD_NAMES.get(n, n): OLD_VALUES.get((n, str(v)), v) for n, v in switches.items()
    }
    table.setdefault("adapter", "full")
    config = EvalConfig.from_table(table | {"methods": methods}, "switches")
    adapters = {}
    for name, options in meta.get("adaptations", {}).items():
        method = config.method(translated_method(name))
        renamed = {
            OLD_ADAPTER_NAMES.get(option, option): value for option, value in options.items()
        }
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
    if not equals or (name not in OLD_NAMES and (name, word) not in OLD_VALUES):
        return item
    return f"{OLD_NAMES.get(name, name)}={OLD_VALUES.get((name, word), value.strip())}"
