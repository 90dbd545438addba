"""Source code: its text as it is, with a section for each definition.

Python is parsed. In other languages a definition begins at a line after a blank line; its level is
its indentation, and its name follows a keyword such as `func`, or precedes a parenthesis.
"""

import ast
import re
import warnings

from whet.data.formats.sections import Converted, Section
from whet.io import ast_lock

ENDINGS = (
    *(
        "c",
        "h",
        "cc",
        "cpp",
        "cxx",
        "hh",
        "hpp",
        "hxx",
        "ino",
        "cu",
        "cuh",
        "m",
        "mm",
        "cs",
        "java",
    ),
    *("kt", "kts", "scala", "groovy", "gradle", "swift", "go", "rs", "zig", "nim", "d", "v", "sv"),
    *(
        "js",
        "jsx",
        "mjs",
        "cjs",
        "ts",
        "tsx",
        "vue",
        "svelte",
        "php",
        "rb",
        "pl",
        "pm",
        "lua",
        "tcl",
    ),
    *("r", "jl", "hs", "ml", "mli", "fs", "elm", "ex", "exs", "erl", "clj", "cljs", "lisp", "el"),
    *(
        "scm",
        "dart",
        "pas",
        "f90",
        "f95",
        "f03",
        "sql",
        "proto",
        "sh",
        "bash",
        "zsh",
        "fish",
        "ps1",
    ),
    *(
        "awk",
        "css",
        "scss",
        "less",
        "cmake",
        "mk",
        "toml",
        "ini",
        "cfg",
        "yaml",
        "yml",
        "tf",
        "nix",
    ),
)
BLOCK = re.compile(r"(?:\A|\n[ \t]*\r?\n)(?:[ \t]*\r?\n)*(?P<indent>[ \t]*)(?=[^\s)\]}])")
KEYWORD = re.compile(
    r"^[^\n\"'#(]*?\b(?:class|struct|union|enum|interface|trait|impl|module|namespace|record|protocol"
    r"|object|func|fn|function|fun|def|sub|proc|macro|type|defmodule|defp?|message|service)\s+"
    r"(?:\([^)\n]*\)\s*)?(?P<name>[A-Za-z_$][\w$.:]*)"
)
CALL = re.compile(r"^(?!\s*(?:if|for|while|switch|return|else|catch)\b)[\w\s*&:<>,~\[\]]*?"
                  r"(?P<name>[A-Za-z_~][\w:]*)\s*\(")  # fmt: skip
COMMENT = re.compile(r"\s*(?://|#|/?\*|--|;|%|@|\[|template\s*<|$)")
BODY = re.compile(r"[{;]")  # what follows the name of a definition, or of a call
WORDS = re.compile(r"[\w\s*&:<>]+$")
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")  # as Python counts them
HEADER_LINES = 40  # of comments and attributes before a definition's own line
LONGEST_LINE = 300  # characters in which a name is looked for
TAB = 4


def convert_python(text: str) -> Converted:
    """The text with a section for each function, class and method; by `convert` if it is invalid."""
    try:
        with ast_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return convert(text)
    lines = LINE.findall(text)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    sections = _definitions(tree.body, 1, "", lines)
    return Converted(text, tuple(Section(starts[line], level, {"symbol": name} if name else {})
                                 for line, level, name in sections))  # fmt: skip


def _definitions(
    body: list[ast.stmt], level: int, parent: str, lines: list[str]
) -> list[tuple[int, int, str]]:
    """First line (from 0), level and qualified name of each definition, and of what follows one."""
    found: list[tuple[int, int, str]] = []
    after_definition = False
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            while first and lines[first - 1].lstrip().startswith("#"):
                first -= 1
            name = f"{parent}.{node.name}" if parent else node.name
            found.append((first, level, name))
            if isinstance(node, ast.ClassDef):
                found += _definitions(node.body, level + 1, name, lines)
            after_definition = True
        elif after_definition:
            found.append((node.lineno - 1, level, parent))
            after_definition = False
    return [each for i, each in enumerate(found) if not i or each[0] > found[i - 1][0]]


def convert(text: str) -> Converted:
    """The text with a section for each block after a blank line; its level is its indentation."""
    path: list[tuple[int, str]] = []
    sections = []
    for match in BLOCK.finditer(text):
        indent = len(match["indent"].expandtabs(TAB))
        name = _name(text, match.start("indent"))
        path = [(above, symbol) for above, symbol in path if above < indent]
        if name:
            path.append((indent, name))
        symbol = ".".join(symbol for _, symbol in path)
        sections.append(
            Section(match.start("indent"), 1 + indent, {"symbol": symbol} if symbol else {})
        )
    return Converted(text, tuple(sections))


def _name(text: str, start: int) -> str:
    """The name that the block at `start` defines; empty if none is recognized."""
    for _ in range(HEADER_LINES):
        stop = text.find("\n", start)
        line = text[start : min(stop if stop >= 0 else len(text), start + LONGEST_LINE)]
        if not COMMENT.match(line):
            found = KEYWORD.match(line)
            if not found and (call := CALL.match(line)):
                rest = BODY.search(text, start + call.end(), start + LONGEST_LINE)
                found = call if rest and rest[0] == "{" else None
            if found:
                return found["name"].strip(":.")
            if not WORDS.match(line):  # the type of a function in C may have its own line
                return ""
        if stop < 0:
            return ""
        start = stop + 1
    return ""
