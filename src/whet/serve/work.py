"""The work on one request: fit, choose, sharpen, answer, keep the adapter, count."""

import asyncio
import time
from dataclasses import replace

from whet.engine import Event, Output, Request, SamplingParams, TrainStep
from whet.serve.adapter_cache import Kept, adapter_id
from whet.serve.answers import Adapted, Usage
from whet.serve.asks import BASE, Ask
from whet.serve.errors import APIError
from whet.serve.events import Answered, Chosen, Stepped, Wrote
from whet.serve.retrieval import Choice, Size, choose, sizes
from whet.serve.stream import Asking

NOTHING = Choice((), (), (1.0,), BASE, 0.0)


def start(asked: Ask) -> Asking:
    """Begin to work on what is asked."""
    return Asking(lambda asking: Work(asked, asking).run())


class Work:
    """One request on its way. On the event loop; what takes long is computed in threads."""

    def __init__(self, asked: Ask, asking: Asking) -> None:
        self._ask, self._asking = asked, asking
        self._server = asked.caller.server
        self._engine = self._server.engines[asked.method]
        self._choice = NOTHING
        self._sizes: dict[str, Size] = {}
        self._losses: list[float] = []
        self._read = 0

    async def run(self) -> Answered:
        """Raises APIError if there is no room, or the prompt is longer than the context."""
        asked = self._ask
        with self._server.room():
            sampling = await asyncio.to_thread(self._fitting)
            if asked.view is not None:
                await self._server.off_loop(self._choose)
                self._asking.tell(self._chosen())
            kept = asked.kept or self._known()
            query = Request(
                prompt=asked.prompt,
                tokens=asked.tokens,
                text=asked.text,
                sampling=sampling,
                documents=() if kept else self._choice.documents,
                deadline_s=asked.deadline_s,
                adapter=kept.adapter if kept else None,
                keep=self._keeps and not kept,
            )
            answer = await self._submit(query)
            base = answer
            if kept and asked.text is not None:
                base = await self._submit(replace(query, adapter=None))
            return self._answered(answer, base, kept)

    @property
    def _keeps(self) -> bool:
        """Whether the adapter is kept: LoRA's alone travel."""
        asked = self._ask
        return asked.adapt.cache != "off" and asked.method == "lora" and asked.kept is None

    def _fitting(self) -> SamplingParams:
        """How the answer is drawn, no longer than fits."""
        asked, model = self._ask, self._server.model
        read = len(model.tokens(asked.prompt) if asked.tokens is None else asked.tokens) + 1
        self._read = read + (0 if asked.text is None else len(model.tokens(asked.text)))
        room = model.context - read
        most = asked.max_tokens or min(room, asked.caller.limits.max_tokens)
        if asked.text is None and not 0 < most <= room:
            raise APIError(
                400, f"the prompt has {read} tokens and the answer may have {most}, but the "
                f"context of {self._server.name} is {model.context}", param="max_tokens",
                code="context_length_exceeded",
            )  # fmt: skip
        return replace(asked.sampling, max_tokens=max(1, most))

    def _choose(self) -> None:
        asked = self._ask
        assert asked.view is not None
        start = time.perf_counter()
        self._choice = choose(asked.view, asked.query, asked.options)
        self._sizes = sizes(self._server.model, self._choice.documents)
        self._server.metrics.stages.labels("select").observe(time.perf_counter() - start)

    def _chosen(self) -> Chosen:
        texts = "texts" in self._ask.adapt.returns
        return Chosen(selection=self._choice.picked(texts), sigma=list(self._choice.sigma))

    def _name(self, rows: tuple[int, ...]) -> str:
        asked = self._ask
        assert asked.view is not None
        how = f"{self._server.revision} {self._engine.adaptation} {self._engine.optimizer}"
        where = f"{asked.view.name} {asked.view.built} {asked.view.version}"
        return adapter_id(asked.caller.key.id, asked.method, how, where, rows)

    def _known(self) -> Kept | None:
        """The kept adapter of the same documents in the same order, if one may be taken."""
        if not self._keeps or self._ask.adapt.cache != "reuse" or not self._choice.documents:
            return None
        found = self._server.adapters.get(self._ask.caller.key.id, self._name(self._choice.rows))
        self._server.metrics.cache.labels("miss" if found is None else "hit").inc()
        return found

    async def _submit(self, query: Request) -> Output:
        handle = self._engine.submit(query, self._on_event)
        self._asking.stops_by(handle.cancel)
        return await asyncio.wrap_future(handle.future)

    def _on_event(self, event: Event) -> None:
        """Told by the engine, in its thread."""
        match event:
            case str(text):
                self._asking.tell(Wrote(text=text))
            case TrainStep(id=name, loss=loss):
                self._losses.append(loss)
                self._asking.tell(
                    Stepped(
                        done=len(self._losses),
                        total=len(self._choice.documents),
                        loss=loss,
                        bits_per_byte=self._sizes[name].bits_per_byte(loss),
                        ms=1000 * (time.perf_counter() - self._ask.began),
                    )
                )

    def _answered(self, answer: Output, base: Output, kept: Kept | None) -> Answered:
        made = None if kept else self._keep(answer)
        taken = answer.trace.steps
        learned = sum(self._sizes[step.id].tokens for step in taken)
        usage = Usage(
            prompt_tokens=self._read,
            completion_tokens=answer.tokens,
            total_tokens=self._read + answer.tokens,
            adapt_tokens=learned,
        )
        self._ask.caller.account.tokens.level -= usage.total_tokens + learned
        adapted = self._adapted(answer, made, kept)
        self._count(answer, adapted)
        before, after = base.base, answer.score
        return Answered(
            text=answer.text,
            finish_reason="length" if answer.finish == "length" else "stop",
            usage=usage,
            adapted=adapted,
            scores=(before, after) if before and after else None,
        )

    def _adapted(self, answer: Output, made: Kept | None, kept: Kept | None) -> Adapted:
        asked, choice = self._ask, self._choice
        taken, reason = len(answer.trace), answer.trace.stop_reason
        steps = len(kept.rows) if kept else taken
        name = kept or made
        seconds = dict(answer.seconds) | {"select": choice.seconds}
        seconds["generate"] = seconds.pop("answer", 0.0)
        seconds["total"] = time.perf_counter() - asked.began
        returns = asked.adapt.returns
        shown = choice if kept else choice.first(taken)
        return Adapted(
            adapter=name.id if name else None,
            data_space=asked.view.name if asked.view else kept.space if kept else None,
            version=asked.view.version if asked.view else kept.version if kept else None,
            method=asked.method if steps else None,
            steps=steps,
            stop_reason="kept" if kept else choice.reason if reason == "n" else reason,
            cached=kept is not None,
            sigma=list(shown.sigma),
            loss=self._losses if "trace" in returns else None,
            selection=shown.picked("texts" in returns) if "selection" in returns else None,
            timing_ms={stage: round(1000 * spent, 3) for stage, spent in seconds.items()},
        )

    def _keep(self, answer: Output) -> Kept | None:
        """Keep the adapter for later requests of the key; None if there is none to keep."""
        asked, taken = self._ask, len(answer.trace)
        if answer.adapter is None or not taken or asked.view is None:
            return None
        rows = self._choice.rows[:taken]
        kept = Kept(
            id=self._name(rows),
            owner=asked.caller.key.id,
            space=asked.view.name,
            built=asked.view.built,
            version=asked.view.version,
            method=asked.method,
            rows=rows,
            created=int(time.time()),
            adapter=answer.adapter,
        )
        fits = self._server.adapters.put(kept)
        if not self._server.catalogue.is_newest(asked.view):
            self._server.adapters.drop(kept.owner, kept.id)  # a document of it may be gone by now
            return None
        return kept if fits else None

    def _count(self, answer: Output, adapted: Adapted) -> None:
        metrics = self._server.metrics
        metrics.steps.inc(len(answer.trace))
        metrics.stopped.labels(adapted.stop_reason).inc()
        for stage in ("queue", "train", "answer"):
            metrics.stages.labels(stage).observe(answer.seconds.get(stage, 0.0))
