"""Model `whet` for lm-evaluation-harness: any of its tasks, with the model adapted per request.

    python -m whet.integrations.lm_eval run --model whet \\
        --model_args space=my.whet,model=whet-nano,n=20,lam=auto --tasks my_task

This is lm-eval's own command line with the model `whet` added. From Python:
`lm_eval.simple_evaluate(model=WhetLM("my.whet", n=20), …)`.

The model is never trained on what it is scored on: a continuation is scored after training for its
context, and a whole text (`loglikelihood_rolling`) chunk by chunk, each after training for the text
before it. Where there is no text before, the base model is scored. With `use=context` the model reads
the documents in front of the context instead, and with `use=both` it does both.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from whet.adapt.config import AdapterOptions, TrainingConfig
from whet.adapt.decoding.sampling import SamplingParams
from whet.adapt.model import LanguageModel, Score
from whet.adapt.session import adapted
from whet.adapt.updates import Update
from whet.config import config_fields, parse_fields, unknown_name
from whet.engine import Engine, Request
from whet.engine.in_context import InContext, lr_factor
from whet.engine.planning import TrainingPlan, plan_retrieval
from whet.errors import NoMatchError, require
from whet.evaluate.config import EvalConfig, MethodConfig
from whet.evaluate.tasks import ScoringTask
from whet.io import progress_bar
from whet.maths.arrays import as_count
from whet.select.config import SelectionConfig
from whet.space.space import DataSpace

require("lm_eval", "lm-eval")

import lm_eval.models  # noqa: E402, F401  # registers lm-eval's own models
from lm_eval.api.instance import Instance  # noqa: E402  # after `require`
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402

log = logging.getLogger("whet")

MAX_TOKENS = 256  # where a task sets no limit; the default of lm-eval's own models
MAX_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1}
SELECTION = tuple(field.name for field in config_fields(SelectionConfig))
ADAPTER = tuple(field.name for field in config_fields(AdapterOptions) if field.name != "name")
TRAINING = ("order", "gradient_reuse", "long_texts", "loss", "learned_ratio")
METHOD = ("use",)
OPTIONS = (*SELECTION, "adapter", *ADAPTER, *TRAINING, *METHOD)
"""Names of the options: those of `whet.SelectionConfig`, of the adapter, of the training, and `use`
of `whet.evaluate.config.MethodConfig`."""


@register_model("whet")
class WhetLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """A language model of lm-eval that is adapted to each request with documents of a data space.

    lm = WhetLM("my.whet", "whet-nano", n=20, lam="auto", adapter="lora", r=8)
    """

    def __init__(
        self,
        space: str,
        model: str = "whet-nano",
        chunks: int = 2,
        device: str | None = None,
        max_length: int | None = None,
        batch_size: object = 1,
        max_batch_size: object = None,
        **options: Any,
    ) -> None:
        """Open the data space and load the model.

        Args:
            space: Folder of the data space.
            model: Bundled model, smollm2, folder, .gguf file, ollama:NAME, or Hugging Face id.
            chunks: Parts of a text that is scored as a whole.
            device: Device of the model; by default a GPU if there is one. lm-eval passes `cuda:0`;
                without such a device the CPU is used, and a log line says so, as with lm-eval's
                own models.
            max_length: Tokens that the model reads at once, by default as many as it accepts.
            batch_size: Not used: each request has its own weights.
            max_batch_size: Not used.
            options: Fields of `whet.SelectionConfig` (`lam="auto"` is resolved once, here),
                `adapter` (auto, full, lora or head), and its `lr`, `r`, `lora_alpha` and
                `target_modules`; `order`, `gradient_reuse`, `long_texts`, `loss` and
                `learned_ratio` of `whet.engine.TrainingConfig`; `use`: `steps` (the default),
                `context` or `both`.

        Raises:
            WhetError: If the data space or the model cannot be opened.
            ValueError: If an option is unknown or out of range.
        """
        super().__init__()
        for name in options:
            if name not in OPTIONS:
                raise ValueError(f"model_args: {unknown_name(name, OPTIONS)}")
        self._use = _take(MethodConfig, options, METHOD).get("use", "steps")
        selection = SelectionConfig(**_take(SelectionConfig, options, SELECTION))
        adapter = AdapterOptions(
            name=options.get("adapter", "auto"), **_take(AdapterOptions, options, ADAPTER)
        )
        loaded = LanguageModel.from_pretrained(model, device=_device(device), max_length=max_length)
        self._chunks = EvalConfig(leakage="score-first", chunks=as_count(chunks, "chunks"))
        self.engine = Engine(
            DataSpace.open(space),
            loaded,
            loaded.adapter_config(adapter.name, **adapter.options),
            selection=selection,
            training=TrainingConfig(**_take(TrainingConfig, options, TRAINING)),
        )

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding gives it.

        Requests with the same context, such as the choices of one question, share one training.
        """
        by_context: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_context.setdefault(request.args[0].rstrip(), []).append(index)
        results: dict[int, tuple[float, bool]] = {}
        with progress_bar("adapted", len(by_context), show=not disable_tqdm) as advance:
            for context, indices in by_context.items():
                texts = [  # white space at the end of a context belongs to the continuation
                    requests[index].args[0][len(context) :] + requests[index].args[1]
                    for index in indices
                ]
                scores = self._scores(context, context, texts)
                for index, score in zip(indices, scores, strict=True):
                    results[index] = _nats(score), score.is_greedy
                    self.cache_hook.add_partial(
                        "loglikelihood", requests[index].args, results[index]
                    )
                advance(1)
        return [results[index] for index in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each whole text, scored chunk by chunk."""
        results = []
        with progress_bar("adapted", len(requests), show=not disable_tqdm) as advance:
            for request in requests:
                tasks = self._parts(request.args[0])
                scores = [self._scores(task.query, task.context, [task.text])[0] for task in tasks]
                results.append(math.fsum(map(_nats, scores)))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
                advance(1)
        return results

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, up to the first of its stop texts."""
        results = []
        with progress_bar("adapted", len(requests), show=not disable_tqdm) as advance:
            for request in requests:
                context, options = request.args
                sampling = sampling_params(options)
                prompt = self.engine.model.truncate_left(context, sampling.max_tokens)
                generation = Request(prompt=prompt, sampling=sampling, use=self._use)
                try:
                    output = self.engine.submit(generation).result()
                except NoMatchError:  # nothing to train on: the base model
                    output = self.engine.submit(replace(generation, adapt=False)).result()
                results.append(output.text)
                self.cache_hook.add_partial("generate_until", request.args, results[-1])
                advance(1)
        return results

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation in the format of the model's chat template."""
        self.engine.model.parse_special_tokens = True  # as lm-eval's own models read them
        return str(
            self.engine.model.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    @property
    def tokenizer_name(self) -> str:
        return self.engine.model.name.replace("/", "__")

    def _parts(self, text: str) -> tuple[ScoringTask, ...]:
        """The parts of a whole text, as many as it has letters for; none of an empty one."""
        count = min(self._chunks.chunks, len(text)) if self.engine.selection.n else 1
        if count < 2:
            return (ScoringTask("", "", text),) if text else ()
        return ScoringTask.of(text, replace(self._chunks, chunks=count))

    def _scores(self, query: str, context: str, texts: Sequence[str]) -> list[Score]:
        """The score of each of `texts` after `context`, by the model adapted to `query`.

        That is the engine's score (`Output.score`), except that steps are never undone.
        """
        engine = self.engine
        try:
            retrieval = engine.retrieve(query) if engine.selection.n and query else None
        except NoMatchError:  # nothing to train on
            retrieval = None
        if not retrieval:
            return [engine.model.score(text, context=context) for text in texts]
        updates = plan_retrieval(retrieval, engine.model, engine.training, query)
        documents, read = retrieval.training_documents(), dict[int, None]()

        def score(text: str) -> Score:
            """With the documents of the steps in front, then those that were selected, too."""
            places = read | TrainingPlan(updates, len(retrieval)).planned
            in_context = InContext(engine.model, text, left=context)
            return in_context.score([documents[place].text for place in places])

        def after_update(update: Update, _: int) -> None:
            read.update(dict.fromkeys(example.place for example in update.examples))

        if self._use == "context":
            return [score(text) for text in texts]
        adapter = replace(engine.adapter, lr=engine.adapter.lr * lr_factor(self._use))
        with adapted(engine.model, adapter, engine.optimizer, engine.training) as session:
            session.train(updates, limit=len(retrieval), after_update=after_update)
            if self._use == "steps":
                return [session.score(text, context=context) for text in texts]
            _ = session.model  # computes with the session's weights
            return [session.check(score(text)) for text in texts]


def _take(kind: type, options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    values = {name: options[name] for name in names if name in options}
    return parse_fields(kind, values, "model_args")


def _device(device: str | None) -> str | None:
    if device and device.startswith("cuda") and not torch.cuda.is_available():
        log.warning("device %s is not available: using the CPU", device)
        return "cpu"
    return device


def _nats(score: Score) -> float:
    return -score.bits * math.log(2)


def sampling_params(options: dict[str, Any]) -> SamplingParams:
    """lm-eval's generation options; those that whet does not support are an error.

    Names and defaults are those of lm-eval's `normalize_gen_kwargs`; an option that is None, or
    that asks for nothing (`num_beams=1`, `repetition_penalty=1.0`), is ignored.
    """
    known = {"until", "do_sample", "temperature", "top_p", "top_k", *MAX_TOKENS_NAMES}
    options = {name: value for name, value in options.items() if value is not None}
    options = {n: v for n, v in options.items() if n not in NEUTRAL or v != NEUTRAL[n]}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"unknown generation option {unknown[0]!r}: expected {sorted(known)}")
    until = options.get("until") or []
    limits = [int(options[name]) for name in MAX_TOKENS_NAMES if name in options]
    return SamplingParams(
        max_tokens=limits[0] if limits else MAX_TOKENS,
        temperature=float(options.get("temperature", 0.0))
        if options.get("do_sample", True)
        else 0.0,
        top_p=float(options.get("top_p", 1.0)),
        top_k=int(options.get("top_k", 0)),
        stop=(until,) if isinstance(until, str) else tuple(stop for stop in until if stop),
    )
