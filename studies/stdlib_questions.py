"""Questions about Python's standard library, with the documentation that answers them.

python -m studies.stdlib_questions FOLDER    # writes documentation.jsonl and questions.jsonl

The documents are the public functions, classes and methods of some modules: name, parameters and
docstring. There are three sets of questions, about what a function does, the default of one of its
parameters, and the module that has it. Texts are those of the Python that runs this.
"""

import argparse
import hashlib
import importlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "argparse ast asyncio base64 bisect calendar cmd codecs collections colorsys configparser "
    "contextlib copy csv dataclasses datetime decimal difflib dis email.message email.utils enum "
    "filecmp fileinput fnmatch fractions ftplib functools gettext glob graphlib gzip heapq hmac "
    "html http.client http.cookies http.server imaplib inspect ipaddress json keyword linecache "
    "locale logging lzma mailbox mimetypes netrc numbers operator os.path pathlib pickle pkgutil "
    "platform plistlib poplib pprint profile queue quopri random reprlib sched secrets selectors "
    "shelve shlex shutil smtplib socketserver statistics string subprocess symtable sysconfig "
    "tarfile tempfile textwrap threading timeit tokenize traceback types typing unittest "
    "urllib.parse urllib.request uuid venv warnings wave weakref webbrowser xml.dom.minidom "
    "xml.etree.ElementTree xmlrpc.client zipapp zipfile"
).split()
LONGEST = 90  # characters of an answer
SAME = 3  # questions that may have the same answer


@dataclass(frozen=True)
class Entry:
    """One function, class or method."""

    module: str
    name: str
    """Name without the module, such as `Path.glob`."""
    kind: str
    signature: str
    doc: str
    defaults: dict[str, str]
    """The defaults of its parameters as text, where they are short."""

    @property
    def text(self) -> str:
        """The document."""
        title = f"{self.kind} {self.module}.{self.name}{self.signature}"
        return f"{title}\n\n{self.doc}" if self.doc else title


def entries() -> Iterator[Entry]:
    """What the modules offer, each once, by name."""
    seen: set[int] = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        for name in sorted(name for name in names if name[0] != "_"):
            value = getattr(module, name, None)
            owner = getattr(value, "__module__", None)
            if owner not in (module_name, f"_{module_name}") or id(value) in seen:
                continue
            seen.add(id(value))
            if inspect.isclass(value):
                yield _entry(module_name, name, "class", value)
                for method, function in sorted(vars(value).items()):
                    if method[0] != "_" and inspect.isfunction(function):
                        yield _entry(module_name, f"{name}.{method}", "method", function)
            elif inspect.isroutine(value):
                yield _entry(module_name, name, "function", value)


def _entry(module: str, name: str, kind: str, value: object) -> Entry:
    signature, defaults = "", dict[str, str]()
    try:
        found = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = None
    if found:
        signature = re.sub(r" at 0x[0-9a-f]+", "", str(found))
        for parameter in found.parameters.values():
            default = parameter.default
            if isinstance(default, int | float | str) and re.search(r"\w", str(default)):
                defaults[parameter.name] = str(default)
    doc = inspect.getdoc(value) or ""
    own = value.__doc__ if kind != "class" else vars(value).get("__doc__")
    return Entry(module, name, kind, signature, doc if own else "", defaults)


def questions(found: list[Entry]) -> Iterator[dict[str, str]]:
    """All questions, in an order that depends on their texts only."""
    named = Counter(entry.name for entry in found)
    records = []
    for entry in found:
        full = f"{entry.module}.{entry.name}"
        sentence = re.split(r"(?<=[.!?])\s|\n\n", entry.doc, maxsplit=1)[0]
        sentence = " ".join(sentence.split()).rstrip(".")
        if 20 <= len(sentence) <= LONGEST and entry.kind != "class":
            records.append(
                ("purpose", full, f"What does the Python {entry.kind} {full} do?", sentence)
            )
        for parameter, default in entry.defaults.items():
            question = (
                f"What is the default value of the parameter {parameter} of {full} in Python?"
            )
            records.append(("default", f"{full}.{parameter}", question, default))
        if entry.kind == "function" and named[entry.name] == 1 and entry.doc:
            question = f"Which module of Python's standard library has the function {entry.name}?"
            records.append(("module", full, question, entry.module))
    answers: Counter[tuple[str, str]] = Counter()
    for kind, name, question, answer in sorted(records, key=_order):
        answers[kind, answer] += 1
        if answers[kind, answer] <= SAME:
            yield {"id": f"{kind}/{name}", "question": question, "answer": answer, "set": kind}


def _order(record: tuple[str, ...]) -> bytes:
    return hashlib.sha256(record[2].encode()).digest()


def write(folder: Path) -> None:
    """Write the documents and the questions."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(entries())
    documents = ({"id": f"{e.module}.{e.name}", "text": e.text} for e in found)
    for name, records in (("documentation", documents), ("questions", questions(found))):
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write questions about the standard library.")
    parser.add_argument("folder", type=Path, help="where to write")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
