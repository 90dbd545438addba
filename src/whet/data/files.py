"""The files of a folder with their documents, for whatever keeps a data space in step with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from whet.data.chunking import get_chunker
from whet.data.documents import Document, from_records
from whet.data.records import file_records
from whet.data.walk import FileOptions, FoundFile, walk
from whet.errors import SourceError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a folder, as it was when the folder was listed."""

    path: str
    """Path relative to the folder, with `/`: the id of its document, or of the document that its
    passages name as `parent`."""
    size: int
    """Bytes."""
    modified_ns: int
    """Time of the last modification, in nanoseconds."""
    problem: SourceError | None
    """Why the file is not read: `LeftOut` if a rule says so. Its `path` is then that of a file, or
    of a folder, which ends in `/`."""
    _found: FoundFile
    _options: FileOptions

    def documents(
        self, *, text_field: str = "text", chunks: str = "whole"
    ) -> Iterator[Document | SourceError]:
        """Read the documents now; an error in place of each that cannot be read.

        A file that turns out to be empty or binary gives one `LeftOut`; a file that vanished, or
        that nobody may read, one `SourceError`.

        Raises:
            ValueError: If `chunks` is not a chunking rule.
        """
        split = get_chunker(chunks)
        if self.problem is not None:
            return iter([self.problem])
        found = file_records(
            self._found.location, self.path, text_field, self._options, in_folder=True
        )
        return from_records(found, text_field, split)


def iter_files(folder: str | Path, options: FileOptions | None = None) -> Iterator[SourceFile]:
    """The files of `folder`, sorted by path, and what is left out; none is opened before it is read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "bees.md").write_text("Bees dance.")
    ...     _ = Path(folder, ".cache").write_text("")
    ...     for file in iter_files(folder):
    ...         print(file.path, [getattr(d, "text", str(d)) for d in file.documents()])
    .cache ['.cache: left out: hidden']
    bees.md ['Bees dance.']

    Args:
        folder: Folder to list.
        options: Which files are read.

    Raises:
        SourceError: If `folder` is not a folder.
        ValueError: If a pattern of `options.exclude` is not valid.
    """
    if not Path(folder).is_dir():
        raise SourceError(f"{folder} is not a folder: expected one with files to read")
    used = options or FileOptions()
    return (
        SourceFile(found.path, found.size, found.modified_ns, found.problem, found, used)
        for found in walk(Path(folder), used)
    )
