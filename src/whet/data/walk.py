"""The files of a folder: in order, with what is left out and why.

Left out are what `.gitignore` files name (with Git's own rules, by pathspec), hidden files, virtual
environments, `node_modules`, caches, data spaces, links to folders, and what is not a file. A file
that cannot be read is not left out: it is an error of its own when it is read.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from whet.errors import SourceError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

MEGABYTE = 10**6
GENERATED = {
    "node_modules": "packages of Node.js",
    "bower_components": "packages of Bower",
    "__pycache__": "cache of Python",
}
ENVIRONMENTS = ("pyvenv.cfg", "conda-meta")  # entries of a virtual environment's folder
DATA_SPACES = (("meta.json", "segments"), ("staging/plan.json",))  # entries, finished or not


class LeftOut(SourceError):
    """A file or folder that is left out of a source by rule, such as a hidden or binary file."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: left out: {reason}")
        self.path = path
        """Path relative to the source; that of a folder ends in `/`."""
        self.reason = reason
        """A few words that are equal for all files left out by one rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """Which files of a folder are read."""

    max_file_mb: int = 100
    """Files of more megabytes, packed or unpacked, are not read, unless they hold records, which
    are read one at a time: then it is the limit of one record."""
    exclude: tuple[str, ...] = ()
    """Patterns of files to leave out, as in a `.gitignore`."""
    no_ignore: bool = False
    """Read also what `.gitignore` files name."""

    def __post_init__(self) -> None:
        if self.max_file_mb < 1:
            raise ValueError(f"max_file_mb is {self.max_file_mb}: expected 1 or more")
        if isinstance(self.exclude, str):
            raise ValueError(f"exclude is {self.exclude!r}: expected a list of patterns")

    @property
    def max_bytes(self) -> int:
        """`max_file_mb` in bytes."""
        return self.max_file_mb * MEGABYTE


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a folder, or one of its subfolders that is left out."""

    path: str
    """Relative to the folder, with `/`; that of a folder ends in `/`."""
    location: Path
    size: int = 0
    modified_ns: int = 0
    """Time of the last modification, in nanoseconds."""
    problem: SourceError | None = None
    """Why it is not read: `LeftOut` if a rule says so."""


def walk(folder: Path, options: FileOptions | None = None) -> Iterator[FoundFile]:
    """The files of `folder` and its subfolders, sorted by path, and what is left out.

    No file is opened except `.gitignore` files. A folder that vanishes meanwhile, or that cannot
    be read, is a `FoundFile` with a problem. Links to folders are not followed, so that there are
    no loops; of a file and links to it inside the folder, the file is read.

    Raises:
        ValueError: If a pattern of `options.exclude` is not valid.
    """
    options = options or FileOptions()
    yield from _Walk(folder, options).folder(folder, "", ())


@dataclass(frozen=True, slots=True)
class _Rules:
    """The patterns of one `.gitignore`, and what precedes paths below its folder."""

    spec: "GitIgnoreSpec"
    prefix: str
    """Path of the walked folder relative to that of the patterns, if that is above."""
    start: int
    """Characters of a path up to the folder of the patterns, if that is below."""

    def verdict(self, path: str) -> bool | None:
        """Whether `path` is ignored; None if no pattern matches."""
        return self.spec.check_file(self.prefix + path[self.start :]).include


class _Walk:
    def __init__(self, root: Path, options: FileOptions) -> None:
        self._root, self._options = root, options
        self._excluded = _spec(list(options.exclude), "exclude")

    @cached_property
    def _resolved(self) -> Path:
        return self._root.resolve()

    def folder(self, folder: Path, path: str, rules: tuple[_Rules, ...]) -> Iterator[FoundFile]:
        """The files below `folder`, whose relative path `path` is empty or ends in `/`."""
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield FoundFile(path, folder, problem=_unreadable(folder, error))
            return
        if not self._options.no_ignore:
            rules += _rules_above(folder) if not path else ()
            rules += _rules_of(folder / ".gitignore", start=len(path))
        for entry in found:
            name = path + entry.name
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                reason = self._reason(entry, name + "/" * is_folder, rules)
                if reason:
                    name += "/" * is_folder
                    yield FoundFile(name, Path(entry.path), problem=LeftOut(name, reason))
                elif is_folder:
                    yield from self.folder(Path(entry.path), name + "/", rules)
                else:
                    status = entry.stat()
                    yield FoundFile(name, Path(entry.path), status.st_size, status.st_mtime_ns)
            except OSError as error:
                path_of_entry = Path(entry.path)
                yield FoundFile(name, path_of_entry, problem=_unreadable(path_of_entry, error))

    def _reason(self, entry: os.DirEntry[str], path: str, rules: tuple[_Rules, ...]) -> str:
        """Why a file or folder is left out; empty if it is not."""
        if entry.name.startswith("."):
            return "hidden"
        if self._excluded and self._excluded.check_file(path).include:
            return "excluded"
        if _is_ignored(rules, path):
            return "ignored by .gitignore"
        if path.endswith("/"):
            if entry.name in GENERATED:
                return GENERATED[entry.name]
            if any(os.path.exists(os.path.join(entry.path, e)) for e in ENVIRONMENTS):
                return "virtual environment"
            return "data space" if _is_data_space(entry.path) else ""
        return self._reason_of_link(entry) if entry.is_symlink() else _reason_of_kind(entry)

    def _reason_of_link(self, entry: os.DirEntry[str]) -> str:
        try:
            if entry.is_dir():
                return "link to a folder"
            target = Path(entry.path).resolve(strict=True)
        except (OSError, RuntimeError):  # a loop is a RuntimeError before Python 3.13
            return "broken link"
        if target.is_relative_to(self._resolved):
            return "link to another file of the folder"
        return _reason_of_kind(entry)


def _is_data_space(folder: str) -> bool:
    """Whether `folder` is a data space: one in the folder that it indexes would index itself."""
    return any(
        all(os.path.exists(os.path.join(folder, name)) for name in names) for names in DATA_SPACES
    )


def _is_ignored(rules: tuple[_Rules, ...], path: str) -> bool:
    """Whether the deepest `.gitignore` with a pattern for `path` ignores it."""
    verdicts = (rule.verdict(path) for rule in reversed(rules))
    return next((verdict for verdict in verdicts if verdict is not None), False)


def _reason_of_kind(entry: os.DirEntry[str]) -> str:
    return "" if stat.S_ISREG(entry.stat().st_mode) else "not a regular file"


def _spec(lines: list[str], name: str) -> "GitIgnoreSpec | None":
    if not lines:
        return None
    from pathspec import GitIgnoreSpec

    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise ValueError(f"{name} holds an invalid pattern ({error})") from error


def _rules_of(file: Path, *, start: int = 0, prefix: str = "") -> tuple[_Rules, ...]:
    """The rules of a `.gitignore`; none if it does not exist. Invalid patterns match nothing."""
    try:
        lines = file.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    lines = [line for line in lines if _is_valid(line)]
    spec = _spec(lines, str(file))
    return (_Rules(spec, prefix, start),) if spec else ()


def _is_valid(line: str) -> bool:
    try:
        return bool(_spec([line], ""))
    except ValueError:
        return False


def _rules_above(folder: Path) -> tuple[_Rules, ...]:
    """The rules of the Git repository around `folder`; none if they ignore `folder` itself."""
    folder = folder.resolve()
    top = next((parent for parent in folder.parents if (parent / ".git").exists()), None)
    if top is None or (folder / ".git").exists():
        return _rules_of(folder / ".git/info/exclude")
    rules: tuple[_Rules, ...] = ()
    between = [*folder.relative_to(top).parts]
    for depth in range(len(between)):
        parent = top.joinpath(*between[:depth])
        prefix = "/".join(between[depth:]) + "/"
        files = [parent / ".git/info/exclude"] * (depth == 0) + [parent / ".gitignore"]
        rules += tuple(rule for file in files for rule in _rules_of(file, prefix=prefix))
    ignored = _ignores_folder(rules)
    return () if ignored else rules


def _ignores_folder(rules: tuple[_Rules, ...]) -> bool:
    """Whether the walked folder, or one around it, is ignored: then its user wants it anyway."""
    for rule in reversed(rules):
        parts = rule.prefix.rstrip("/").split("/")
        for depth in range(1, len(parts) + 1):
            if rule.spec.check_file("/".join(parts[:depth]) + "/").include:
                return True
    return False


def _unreadable(path: Path, error: OSError) -> SourceError:
    return SourceError(f"{path}: cannot be read: {error.strerror or error}")
