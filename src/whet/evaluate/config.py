"""The configuration of an evaluation and of the methods that it compares; stored with every run.

The settings of a method are the nested configurations of selection, training, adapter and
optimizer. Their names are unique, so a TOML file, `--set` and the short form of a method may leave
out the table: `lam=0.1` is `selection.lam`, `adapter=lora` is `adapter.name`. Definitions, and
which defaults are the paper's: docs/protocol.md.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal

from whet.adapt.config import AdapterOptions, OptimizerConfig, TrainingConfig, Use
from whet.config import (
    check_choice,
    check_choices,
    config_fields,
    parse_fields,
    parse_override,
    unknown_name,
)
from whet.maths.arrays import as_count, as_positive
from whet.select.config import SelectionConfig

DYNAMIC = "dynamic"  # the short form of the method that trains on the query itself
BASE = "base"  # the short form of the method that changes nothing
WHET = "whet"  # the short form of what the engine, the command line and the server do by default
PLAIN_SELECTION = SelectionConfig(copy_overlap=0.0)  # other methods are compared as published
PLAIN_TRAINING = TrainingConfig(learned_ratio=0.0, evidence="off")
STREAMING = "streaming"  # that of the method that trains on the scored text after scoring it
TRAIN_ON = {BASE: "nothing", DYNAMIC: "query", STREAMING: "scored"}
NESTED: dict[str, type] = {
    "selection": SelectionConfig,
    "training": TrainingConfig,
    "adapter": AdapterOptions,
    "optimizer": OptimizerConfig,
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {"leakage": "whole", "long_texts": "chunks"},
    "held-out": {"leakage": "split", "left_context": True, "long_texts": "chunks"},
}
"""What `protocol = NAME` stands for: `paper` asks with the scored text, as SIFT (arXiv 2410.08020)
does; `held-out` scores the second half of a document and asks with the first."""
SHORT_FORM = re.compile(r"([\w.:-]+)(?:\((.+)\))?")
SETTING = re.compile(r"""(?:[^,"']|"[^"]*"|'[^']*')+""")  # between commas that are not quoted

Duplicates = Literal["keep", "drop"]
TaskKind = Literal["text", "lines", "qa"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """One method of an evaluation: how documents are selected and how the model learns from them.

    >>> EvalConfig().method("sift(lam=0.1, adapter=lora)").adapter.name
    'lora'
    """

    name: str
    """Name of the method in tables and files."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """How documents are selected."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How they become gradient steps."""
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    """What is trained."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How a gradient becomes a step."""
    use: Use = "steps"
    """What the selected documents are used for: gradient steps, context (in-context learning), or
    both."""
    duplicates: Duplicates = "keep"
    """Whether near-duplicates of the prompt stay among the candidates: `keep` or `drop`."""
    context_order: Literal["nearest-last", "selected"] = "nearest-last"
    """Order of the documents in the context: the first pick next to the prompt, or the order of the
    selection (the paper's)."""
    train_on: Literal["documents", "query", "scored", "nothing"] = "documents"
    """Train on the selected documents, on the query itself (dynamic evaluation), on the scored
    text, each chunk after it was scored (dynamic evaluation in its streaming form), or on nothing
    (the base model)."""
    stream_tokens: int = 64
    """Tokens per chunk of the scored text when training on it."""
    samples: int = 1
    """Number of answers that are sampled for a task with an answer, of which the likeliest counts;
    with 1, the answer is the most likely token each time."""

    def __post_init__(self) -> None:
        check_choices(self)
        as_count(self.stream_tokens, "stream_tokens")
        as_count(self.samples, "samples")
        if self.train_on == "scored" and self.use != "steps":
            raise ValueError(f"use is {self.use!r}: expected steps for the scored text")
        if not self.name:
            raise ValueError("name of a method is empty: expected a text")
        if not isinstance(self.selection.where, str | None):
            raise ValueError(f"where is {self.selection.where!r}: expected a text, to be stored")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """Everything that changes the numbers of a run.

    The nested configurations, `use` and `duplicates` are the defaults of all methods.

    >>> EvalConfig.from_table({"n": 20, "methods": ["nearest", "sift(0.1)"]}).steps
    (0, 1, 2, 5, 10, 20)
    >>> EvalConfig.from_table({"protocol": "paper"}).leakage
    'whole'
    """

    model: str = "whet-nano"
    """Bundled model, smollm2, folder, .gguf file, ollama:NAME, or Hugging Face id."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model's computations; trained weights are kept in fp32."""
    device: str | None = None
    """Device of the model, such as cpu or cuda:1 [default: a GPU if there is one]."""
    max_length: int | None = None
    """Tokens that the model reads at once [default: as many as it accepts]; required for models
    without a limit, such as Mamba."""
    task: TaskKind = "text"
    """What is measured. `text`: bits per byte of documents. `lines`: completing the next line of
    files of code. `qa`: answering questions."""
    max_answer_tokens: int = 64
    """Longest answer that is generated, for tasks with an answer."""
    prompt_chars: int = 1500
    """Characters of a file that the model reads before the line that it completes."""
    methods: tuple[str | MethodConfig, ...] = (
        "uncertainty", "nearest", "nearest-repeated", "sift", "whet",
    )  # fmt: skip
    """Methods that are compared: names of selectors, `base`, `dynamic`, `streaming`, or `whet` (the
    engine's defaults), each with settings in brackets, such as `sift(lam=0.1)`; or `MethodConfig`s."""
    eval_steps: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    """Steps after which the text is scored; those beyond n are skipped, n is always scored."""
    leakage: Literal["split", "whole", "score-first"] = "split"
    """What of the scored text is known when documents are selected. `split`: the first half of a
    document is the query, the second half is scored. `whole`: the document is both. `score-first`:
    each chunk is scored by a model that was adapted for the text before it."""
    chunks: int = 4
    """Number of chunks of equal length with `score-first`."""
    left_context: bool = True
    """Whether the model reads, unscored, the part of the document before the scored text."""
    near_overlap: float = 0.5
    """A document is a near-duplicate of a prompt if it contains at least this share of its
    13-grams of words."""
    near_cosine: float = 0.95
    """Two picks are marked as near-duplicates of each other on the page of a run if their cosine is
    at least this."""
    selection: SelectionConfig = PLAIN_SELECTION
    """How documents are selected; each method names its own selector."""
    training: TrainingConfig = PLAIN_TRAINING
    """How they become gradient steps. The seed is combined with the id of the prompt, and is also
    that of randomized selectors."""
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    """What is trained."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How a gradient becomes a step."""
    use: Use = "steps"
    """See `MethodConfig`."""
    duplicates: Duplicates = "keep"
    """See `MethodConfig`."""

    def __post_init__(self) -> None:
        check_choices(self)
        as_count(self.selection.n, "n")
        as_count(self.max_answer_tokens, "max_answer_tokens")
        as_count(self.prompt_chars, "prompt_chars")
        as_positive(self.near_overlap, "near_overlap")
        if self.chunks < 2:
            raise ValueError(f"chunks is {self.chunks}: expected at least 2")
        if not self.methods:
            raise ValueError("methods is empty: expected at least one")
        if len(set(self.method_names)) < len(self.methods):
            raise ValueError(f"methods is {list(self.method_names)}: expected each name once")
        for method in self.method_configs:
            self._check(method)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str = "configuration") -> "EvalConfig":
        """The configuration that a TOML file gives: nested tables, flat names, or both.

        Args:
            table: Settings; an item of `methods` is a short form or a table with a `name`. With
                `protocol`, the settings of `PROTOCOLS` that the table does not set.
            source: Where the table comes from, for error messages.

        Raises:
            ValueError: If a name is unknown or set twice, or a value is wrong.
        """
        settings = with_protocol(flat_settings(table, source))
        if "selector" in settings:
            raise ValueError(f"{source}: selector is chosen by each method: name it in methods")
        methods = settings.pop("methods", list(cls().methods))
        if not isinstance(methods, list | tuple):
            raise ValueError(f"methods is {methods!r}: expected a list of names or tables")
        config = cls(**_parsed(cls, settings, source, cls()))
        items = (item if isinstance(item, str) else config.method(item) for item in methods)
        return replace(config, methods=tuple(items))

    def method(self, method: Any) -> MethodConfig:
        """The configuration of one method, with the run's defaults for what it leaves out.

        The short form is the name of a selector, `base`, `dynamic`, `streaming` or `whet`, with
        settings in brackets, where a bare number is `lam`: `sift`, `sift(0.1)`,
        `sift(adapter=lora, lr=5e-4)`, `nearest(order=reversed)`. A table has a `name` and settings;
        with `selector` or `train_on` among them the name is free, otherwise it must be a short form.

        Raises:
            ValueError: If there is no such method, setting or value.
        """
        if isinstance(method, MethodConfig):
            return method
        table = dict(method) if isinstance(method, Mapping) else {"name": method}
        name = table.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"methods has {method!r}: expected a name, or a table with a name")
        settings = flat_settings(table, f"method {name!r}", MethodConfig)
        if not settings.keys() & {"selector", "train_on"}:
            base, own = _parse_short_form(name)
            if twice := sorted(own.keys() & settings.keys()):
                raise ValueError(f"method {name!r} sets {twice[0]} twice")
            settings = base | own | settings
        if "n" in settings:
            raise ValueError(f"method {name!r} sets n, which applies to the whole run")
        return MethodConfig(name=name, **_parsed(MethodConfig, settings, f"method {name!r}", self))

    def with_settings(self, **settings: Any) -> "EvalConfig":
        """A copy in which `settings`, by their flat names, apply to the run and its methods.

        >>> EvalConfig().with_settings(n=5, lam=0.1).method("sift").selection.lam
        0.1
        """
        present = flat_settings(self.to_table(), "settings")
        return EvalConfig.from_table(present | with_protocol(settings))

    @property
    def protocol(self) -> str | None:
        """The protocol whose settings the run has; None if it has those of none."""
        values = flat_values(self)
        same = (name for name, preset in PROTOCOLS.items() if preset.items() <= values.items())
        return next(same, None)

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods' names, in order."""
        return tuple(m if isinstance(m, str) else m.name for m in self.methods)

    @property
    def method_configs(self) -> tuple[MethodConfig, ...]:
        """The complete configurations of the methods, in order."""
        return tuple(self.method(method) for method in self.methods)

    @property
    def persists_optimizer(self) -> bool:
        """Whether some method's numbers depend on earlier prompts."""
        return any(method.training.persist_optimizer for method in self.method_configs)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are scored, ascending, from 0 to n."""
        n = self.selection.n
        return tuple(sorted({0, n, *(step for step in self.eval_steps if 0 <= step <= n)}))

    def to_table(self) -> dict[str, Any]:
        """The table that `from_table` reads, as JSON values; methods by what they set themselves."""
        table = asdict(replace(self, methods=("sift",)))
        table["methods"] = [
            m if isinstance(m, str) else self._own_settings(m) for m in self.methods
        ]
        del table["selection"]["selector"]
        return {name: _as_json(value) for name, value in table.items()}

    def _own_settings(self, method: MethodConfig) -> dict[str, Any]:
        own = {f.name: f.default for f in fields(MethodConfig)}
        common, settings = own | flat_values(self), flat_values(method)
        changed = {name: value for name, value in settings.items() if common[name] != value}
        return {"name": method.name, "selector": method.selection.selector} | changed

    def _check(self, method: MethodConfig) -> None:
        if method.selection.n != self.selection.n:
            raise ValueError(
                f"method {method.name!r} has n {method.selection.n}, but n is {self.selection.n} "
                "for the whole run"
            )
        if method.samples > 1 and self.task == "text":
            raise ValueError(
                f"method {method.name!r} has samples {method.samples}, but nothing is generated for "
                "task text: expected task lines or qa"
            )
        if method.train_on == "scored" and self.task != "text":
            raise ValueError(
                f"method {method.name!r} trains on the scored text, which is the answer of task "
                f"{self.task}: leave the method out"
            )
        if method.train_on == "query" and self.leakage == "whole" and self.task == "text":
            raise ValueError(
                f"method {method.name!r} trains on the query, which with leakage 'whole' is the "
                "scored text: expected leakage split or score-first"
            )


def flat_settings(table: Mapping[str, Any], source: str, kind: type = EvalConfig) -> dict[str, Any]:
    """The settings in `table` by their flat names, whether it nests them or not.

    >>> flat_settings({"n": 5, "selection": {"lam": 0.1}, "adapter": {"name": "lora"}}, "--set")
    {'n': 5, 'lam': 0.1, 'adapter': 'lora'}

    Raises:
        ValueError: If a name is unknown or set twice.
    """
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key in NESTED and isinstance(value, dict):
            known = [f.name for f in config_fields(NESTED[key])]
            for name in value:
                if name not in known:
                    raise ValueError(f"{source} [{key}]: {unknown_name(name, known)}")
            part = {_flat_name(key, name): setting for name, setting in value.items()}
        else:
            _check_known(key, value, source, kind)
            part = {key: value}
        if twice := sorted(part.keys() & settings.keys()):
            raise ValueError(f"{source} sets {twice[0]} twice")
        settings |= part
    return settings


def with_protocol(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat `settings`, in which those of a `protocol` replace its name where they are not given.

    Raises:
        ValueError: If there is no such protocol.
    """
    own = dict(settings)
    if (name := own.pop("protocol", None)) is None:
        return own
    check_choice(name, tuple(PROTOCOLS), "protocol")
    return PROTOCOLS[name] | own


def flat_values(config: EvalConfig | MethodConfig) -> dict[str, Any]:
    """Every setting of a configuration by its flat name, without methods and names."""
    values: dict[str, Any] = {}
    for outer in fields(config):
        value = getattr(config, outer.name)
        if outer.name in NESTED:
            values |= {
                _flat_name(outer.name, f.name): getattr(value, f.name) for f in fields(value)
            }
        elif outer.name not in ("methods", "name"):
            values[outer.name] = value
    return values


def _parse_short_form(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the name of a method's short form stands for, and its settings in brackets."""
    match = SHORT_FORM.fullmatch(text)
    if not match:
        raise ValueError(f"method is {text!r}: expected a selector, such as sift or sift(0.1)")
    settings = dict[str, Any]()
    for item in SETTING.findall(match[2] or ""):
        line = item.strip() if "=" in item else f"lam={item.strip()}"
        setting = flat_settings(parse_override(line, text), f"method {text!r}", MethodConfig)
        if twice := sorted((settings.keys() | {"selector", "train_on"}) & setting.keys()):
            raise ValueError(f"method {text!r} sets {twice[0]} twice")
        settings |= setting
    return _method_settings(match[1]), settings


def _method_settings(name: str) -> dict[str, Any]:
    """The settings that the name of a short form stands for."""
    if name in TRAIN_ON:
        return {"train_on": TRAIN_ON[name]}
    if name != WHET:
        return {"selector": name}
    overlap, training = SelectionConfig().copy_overlap, TrainingConfig()
    ours = {"learned_ratio": training.learned_ratio, "evidence": training.evidence}
    return {"selector": "sift", "copy_overlap": overlap} | ours


def _parsed(
    kind: type, settings: dict[str, Any], source: str, defaults: "EvalConfig | MethodConfig"
) -> dict[str, Any]:
    """The fields of `kind` that flat `settings` give, with `defaults` for the nested ones."""
    direct = {f.name for f in fields(kind)} - NESTED.keys()
    values = parse_fields(kind, {n: v for n, v in settings.items() if n in direct}, source)
    for name in ("use", "duplicates"):
        values.setdefault(name, getattr(defaults, name))
    for section, nested in NESTED.items():
        names = {_flat_name(section, f.name): f.name for f in fields(nested)}
        part = {names[name]: value for name, value in settings.items() if name in names}
        changed = parse_fields(nested, part, source)
        values[section] = replace(getattr(defaults, section), **changed)
    return values


def _check_known(name: str, value: Any, source: str, kind: type) -> None:
    known = _flat_names(kind)
    if name in known:
        return
    if name in NESTED:
        raise ValueError(f"{source}: {name} is {value!r}: expected a table")
    if kind is MethodConfig and name in _flat_names(EvalConfig):
        raise ValueError(f"{source} sets {name}, which applies to the whole run")
    raise ValueError(f"{source}: {unknown_name(name, known)}")


@cache
def _flat_names(kind: type) -> tuple[str, ...]:
    """The names that may stand in a table of `kind` outside the nested tables."""
    names = [f.name for f in fields(kind) if f.name not in NESTED]
    if kind is EvalConfig:
        names.append("protocol")
    for section, nested in NESTED.items():
        names += [_flat_name(section, f.name) for f in fields(nested)]
    return tuple(names)


def _flat_name(section: str, name: str) -> str:
    return section if name == "name" else name


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_json(item) for name, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
