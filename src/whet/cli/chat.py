"""`whet chat`: a conversation in the terminal, each answer by a model adapted to its question.

The model reads the conversation through its chat template; a model without one continues a written
dialogue. Standard input can be a pipe: one question or command per line.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from whet.adapt.config import UseOption
from whet.cli.generate import NO_MATCH, new_engine, report
from whet.cli.options import (
    ADAPTATION,
    QUIET,
    SELECTION_WITHOUT_N,
    SPACE,
    USE,
    Command,
    GroupedOption,
)
from whet.errors import NoMatchError, WhetError
from whet.io import printable

USES: tuple[UseOption, ...] = get_args(UseOption)
STEPS = 8
DEADLINE_S = 6.0  # leaves time for reading the passages, so that an answer begins within 10 seconds
NEXT_SPEAKER = ("\nuser:", "\nassistant:")  # where a model without a template goes on by itself
HELP = """\
/base                    the base model's answer to the last question, without passages
/why                     why the passages of the last answer were selected
/use context|steps|both  put passages into the context, take steps on them, or both;
                         /use auto: context, if the model has a chat template, otherwise steps
/reset                   forget the conversation
/quit                    leave, as Ctrl-D does; Ctrl-C stops an answer"""


class Conversation:
    """Questions and answers so far, and how the next question is answered."""

    def __init__(
        self, engine: Any, use: UseOption, max_tokens: int, temperature: float, deadline_s: float
    ) -> None:
        from whet.adapt.decoding.sampling import SamplingParams

        self.use, self._engine, self._model = use, engine, engine.model
        self._deadline_s = deadline_s
        stop = () if self._model.has_chat_template else NEXT_SPEAKER
        self._sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, stop=stop)
        self.messages: list[dict[str, str]] = []
        """The conversation so far, without passages."""
        self.retrieval: Any = None
        """What was selected for the last question."""

    @property
    def question(self) -> str | None:
        """The last question; None before the first."""
        asked = [message["content"] for message in self.messages if message["role"] == "user"]
        return asked[-1] if asked else None

    def ask(self, question: str) -> Iterator[Any]:
        """Yield the events and the output of an answer, which joins the conversation.

        An answer that is stopped joins it as far as it went.

        Raises:
            ValueError: If the question does not fit the model's context.
        """
        from whet.engine import Request

        messages = [*self.messages, {"role": "user", "content": question}]
        try:
            self.retrieval = self._engine.retrieve(question)
        except NoMatchError:
            self.retrieval = None
        request = Request(
            question,
            messages=self._fitting(messages),
            retrieval=self.retrieval,
            use=self.use,
            adapt=self.retrieval is not None,
            deadline_s=self._deadline_s,
            sampling=self._sampling,
        )
        answer = ""
        try:
            for event in self._engine.stream(request):
                if isinstance(event, str):
                    answer += event
                yield event
        finally:
            self.messages = [*messages, {"role": "assistant", "content": answer.strip()}]

    def base(self) -> Iterator[Any]:
        """Yield the events and the output of the base model's answer to the last question."""
        from whet.engine import Request

        messages = self.messages[:-1]  # without the answer
        request = Request(
            messages[-1]["content"],
            messages=self._fitting(messages),
            adapt=False,
            sampling=self._sampling,
        )
        yield from self._engine.stream(request)

    def _fitting(self, messages: list[dict[str, str]]) -> tuple[dict[str, str], ...]:
        """The messages that fit the model's context, the oldest left out first."""
        limit = self._model.max_length - 1 - self._sampling.max_tokens
        while len(messages) > 2 and len(self._model.encode_chat(messages)) > limit:
            messages = messages[2:]
        return tuple(messages)


@click.command(cls=Command)
@SPACE
@USE
@click.option("--max-tokens", default=256, show_default=True, help="Longest answer, in tokens.")
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    help="Sampling temperature; 0 takes the most likely token.",
)
@click.option(
    "--deadline-s",
    type=float,
    default=DEADLINE_S,
    show_default=True,
    help="Seconds for the steps on the passages of a question; a step that would end later is not "
    "taken. inf for no limit.",
)
@QUIET
@ADAPTATION
@click.option(
    "-n",
    "--n",
    "n",
    default=STEPS,
    show_default=True,
    cls=GroupedOption,
    group="Selection",
    type=int,
    help="Number of picks and of gradient steps.",
)
@SELECTION_WITHOUT_N
def chat(
    space: Path | str, use: UseOption, max_tokens: int, temperature: float, deadline_s: float,
    quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Answer questions with the help of the documents of SPACE.

    For each question, passages are selected and put into the model's context, trained on, or both;
    then the model is restored. Type /help for the commands. Questions are read from standard input,
    one per line.
    """
    if not deadline_s >= 0:
        raise click.UsageError(f"--deadline-s is {deadline_s}: expected 0 or more, or inf")
    engine = new_engine(space, values, quiet)
    conversation = Conversation(engine, use, max_tokens, temperature, deadline_s)
    if sys.stdin.isatty():
        import readline  # noqa: F401  # edits the line, and remembers the former ones

        print("Ask a question, or type /help.", file=sys.stderr)
    with engine:
        while (line := _read_line()) is not None:
            if line in ("/quit", "/exit"):
                break
            try:
                _answer(conversation, line, quiet)
            except KeyboardInterrupt:
                print("\n(stopped)", file=sys.stderr)
            except (WhetError, ValueError) as error:
                print(printable(str(error)), file=sys.stderr)


def _read_line() -> str | None:
    """The next line that is not blank; None at the end."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        except EOFError:
            return None
        if line:
            return line


def _answer(conversation: Conversation, line: str, quiet: bool) -> None:
    """Print what a line asks for."""
    command, _, argument = line.partition(" ")
    if not line.startswith("/"):
        _print_answer(
            conversation.ask(line), quiet, near=lambda: conversation.retrieval is not None
        )
    elif command == "/help":
        print(HELP)
    elif command == "/reset":
        conversation.messages, conversation.retrieval = [], None
    elif command == "/use" and argument.strip() in USES:
        conversation.use = next(use for use in USES if use == argument.strip())
    elif command == "/use":
        print(f"/use is followed by {' or '.join(USES)}", file=sys.stderr)
    elif command in ("/base", "/why") and conversation.question is None:
        print(f"{command} needs a question before it: ask one", file=sys.stderr)
    elif command == "/base":
        _print_answer(conversation.base(), quiet=True)
    elif command == "/why" and conversation.retrieval is None:
        print("no document is near the last question: the base model has answered")
    elif command == "/why":
        print(printable(str(conversation.retrieval.explain())))
    else:
        print(f"{printable(line)} is not a command: type /help for them", file=sys.stderr)


def _print_answer(events: Any, quiet: bool, near: Any = lambda: True) -> None:
    """Print an answer as it comes, then what it rests on."""
    from whet.adapt.session import AdaptationTrace, TrainStep
    from whet.engine import Output

    show_steps, taken = not quiet and sys.stderr.isatty(), 0
    try:
        for event in events:
            if isinstance(event, TrainStep) and show_steps:
                taken += 1
                print(f"\rstep {taken}", end="", file=sys.stderr, flush=True)
            elif isinstance(event, str):
                print("\r" * bool(taken) + printable(event), end="", flush=True)
                taken = 0
            elif isinstance(event, Output):
                print(flush=True)
                if not near():
                    event = replace(event, trace=AdaptationTrace((), NO_MATCH))
                report(event, quiet)
    finally:
        events.close()
