"""lm-evaluation-harness: any of its tasks, answered by a model sharpened for each document.

    python -m whet.integrations.lm_eval run --model whet \
        --model_args space=my.whet,model=whet-nano,n=20 --tasks my_task --include_path tasks

This is lm-eval's own command line, which knows the model `whet` besides. From Python,
`lm_eval.simple_evaluate(model=WhetLM(space="my.whet"), …)`.

What a request is sharpened on is never what it is scored on: a continuation is scored after
training for its context, a whole text (`loglikelihood_rolling`) chunk by chunk, each after training
for what comes before it. The base model answers where nothing comes before.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from whet.adapt.model import LanguageModel, Score
from whet.adapt.sampling import SamplingParams
from whet.adapt.session import adapted
from whet.adapt.updates import plan_updates
from whet.engine import Engine, Request
from whet.errors import NoMatchError, require
from whet.evaluate.config import EvalConfig
from whet.evaluate.tasks import ScoringTask
from whet.io import progress_bar
from whet.maths.arrays import as_count
from whet.select.config import SelectionConfig
from whet.space.space import DataSpace

require("lm_eval", "lm-eval")

import lm_eval.models  # noqa: E402, F401  # its own models are known beside ours
from lm_eval.api.instance import Instance  # noqa: E402  # after the extra was named
from lm_eval.api.model import LM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402

log = logging.getLogger("whet")

MAX_TOKENS = 256  # of an answer whose task names none; as lm-eval's own models have it


@register_model("whet")
class WhetLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """A language model of lm-eval that is sharpened on a data space for every request."""

    def __init__(
        self,
        space: str,
        model: str = "whet-nano",
        mode: str = "full",
        lr: float | None = None,
        rank: int | None = None,
        n: int = 50,
        k: int = 200,
        lam: float = 0.01,
        selector: str = "sift",
        alpha: float | None = None,
        chunks: int = 2,
        device: str | None = None,
        batch_size: object = 1,
        max_batch_size: object = None,
    ) -> None:
        """Options as `whet score` has them.

        Args:
            space: Folder of the data space.
            model: Bundled model, folder, or Hugging Face id.
            mode: What is trained: full, lora or head.
            lr: Learning rate; none for the model's or the mode's.
            rank: Of LoRA.
            n: Gradient steps a request.
            k: Candidates.
            lam: λ'.
            selector: By name.
            alpha: Stop before the first step m with σ_m > 1 / (α m).
            chunks: Parts of a text that is scored whole.
            device: For the model; none for a GPU if there is one. lm-eval says `cuda:0` unless
                told otherwise; where there is no such device, the CPU is used and the log says so,
                as by lm-eval's own models.
            batch_size: Not used: each request has weights of its own.
            max_batch_size: Not used.

        Raises:
            WhetError: If the space or the model cannot be opened.
            ValueError: If an option is out of range.
        """
        super().__init__()
        loaded = LanguageModel.from_pretrained(model, device=_device(device))
        self._chunks = EvalConfig(leakage="score-first", chunks=as_count(chunks, "chunks"))
        self._engine = Engine(
            DataSpace.open(space),
            loaded,
            loaded.adapter_config(mode, lr=lr, r=rank),
            selection=SelectionConfig(n=n, k=k, lam=lam, selector=selector, stop_alpha=alpha),
        )

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Nats of each continuation, negated, and whether greedy decoding would give it.

        Requests of one context, such as the choices of one question, share one training.
        """
        by_context: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            by_context.setdefault(request.args[0], []).append(place)
        found: dict[int, tuple[float, bool]] = {}
        with progress_bar("sharpened", len(by_context), show=not disable_tqdm) as advance:
            for context, places in by_context.items():
                texts = [requests[place].args[1] for place in places]
                scores = self._scores(context, context, texts)
                for place, score in zip(places, scores, strict=True):
                    found[place] = _nats(score), score.is_greedy
                    self.cache_hook.add_partial("loglikelihood", requests[place].args, found[place])
                advance(1)
        return [found[place] for place in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Nats of each whole text, negated, scored chunk by chunk before it is learned from."""
        found = []
        with progress_bar("sharpened", len(requests), show=not disable_tqdm) as advance:
            for request in requests:
                tasks = ScoringTask.of(request.args[0], self._chunks)
                scores = [self._scores(task.query, task.context, [task.text])[0] for task in tasks]
                found.append(math.fsum(map(_nats, scores)))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
                advance(1)
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Each context's continuation, before the first of its stop texts."""
        found = []
        with progress_bar("sharpened", len(requests), show=not disable_tqdm) as advance:
            for request in requests:
                context, options = request.args
                sampling = _sampling(options)
                prompt = self._engine.model.truncate_left(context, sampling.max_tokens)
                query = Request(prompt=prompt, sampling=sampling)
                try:
                    answer = self._engine.submit(query).result()
                except NoMatchError:  # the base model's answer, then
                    answer = self._engine.submit(replace(query, adapt=False)).result()
                found.append(answer.text)
                self.cache_hook.add_partial("generate_until", request.args, found[-1])
                advance(1)
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the model's own template has it."""
        return str(
            self._engine.model.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    @property
    def tokenizer_name(self) -> str:
        return self._engine.model.name.replace("/", "__")

    def _scores(self, query: str, context: str, texts: Sequence[str]) -> list[Score]:
        """Each of `texts` after `context`, by the model sharpened for `query`."""
        engine = self._engine
        try:
            documents = engine.retrieve(query).documents
        except NoMatchError:  # the base model's scores, then
            return [engine.model.score(text, context=context) for text in texts]
        texts_of = [(document.id, document.text) for document in documents]
        updates = plan_updates(texts_of, engine.model, engine.training)
        with adapted(engine.model, engine.adapter, engine.optimizer, engine.training) as session:
            session.train(updates)
            return [session.score(text, context=context) for text in texts]


def _device(asked: str | None) -> str | None:
    if asked and asked.startswith("cuda") and not torch.cuda.is_available():
        log.warning("device %s is not there: using the CPU", asked)
        return "cpu"
    return asked


def _nats(score: Score) -> float:
    return -score.bits * math.log(2)


def _sampling(options: dict[str, Any]) -> SamplingParams:
    """lm-eval's options of a generation; those of Hugging Face that whet has not are refused."""
    known = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"generation option {unknown[0]!r} is not known: expected {sorted(known)}")
    until = options.get("until") or []
    return SamplingParams(
        max_tokens=int(options.get("max_gen_toks", MAX_TOKENS)),
        temperature=float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0,
        top_p=float(options.get("top_p", 1.0)),
        top_k=int(options.get("top_k", 0)),
        stop=(until,) if isinstance(until, str) else tuple(stop for stop in until if stop),
    )
