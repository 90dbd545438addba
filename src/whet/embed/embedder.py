"""The interface of embedders, which map texts to vectors."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

from jaxtyping import Float

from whet.maths.arrays import Array

WRITTEN = " :;.!?'\"()/+_-"  # characters of an option's value that are written as they are


@runtime_checkable
class Embedder(Protocol):
    """Maps texts to unit vectors; a text without any known term becomes the zero vector.

    An embedder whose vectors do not have length 1 has an attribute `normalized = False`. One that
    reads only the beginning of long texts has `max_tokens`, the number of tokens that it reads, and
    a method `count_truncated(texts)`, which returns how many of the texts are longer. One whose
    fingerprints were computed in another way before lists these as `former_fingerprints`.

    >>> import numpy as np
    >>> class LetterFrequencies:
    ...     name, dimension, fingerprint = "letters", 26, "1"
    ...
    ...     def encode(self, texts):
    ...         codes = [[ord(c) - 97 for c in text.lower() if "a" <= c <= "z"] for text in texts]
    ...         rows = np.array([np.bincount(c, minlength=26) for c in codes], np.float32)
    ...         return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    >>> isinstance(LetterFrequencies(), Embedder)
    True
    """

    @property
    def name(self) -> str:
        """Specification of the embedder, or any other name for one that is a Python object."""
        ...

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two embedders only if they return the same vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> Float[Array, "n d"]:
        """One float32 row per text, of length 1 or 0, that does not depend on the other texts."""
        ...


def has_fingerprint(embedder: Embedder, fingerprint: str) -> bool:
    """Whether `embedder` has this fingerprint, or had it in an older version of whet."""
    former: Sequence[str] = getattr(embedder, "former_fingerprints", ())
    return fingerprint == embedder.fingerprint or fingerprint in former


def encode_queries(embedder: Embedder, texts: Sequence[str]) -> Float[Array, "n d"]:
    """The vectors of texts that documents are selected for: by its `encode_queries` if it has one.

    Some embedders, such as E5 and BGE, put other words in front of queries than of documents.
    """
    encode = getattr(embedder, "encode_queries", embedder.encode)
    rows: Float[Array, "n d"] = encode(texts)
    return rows


def spec_of(kind: str, model: str, **options: object) -> str:
    """The specification of an embedder, with the options that are not None.

    >>> spec_of("st", "e5", query_prompt="query: ", truncate_dim=None)
    'st:e5@query_prompt=query: '
    """
    written = ",".join(
        f"{key}={quote(str(value), safe=WRITTEN)}"
        for key, value in options.items()
        if value is not None
    )
    return f"{kind}:{model}" + (f"@{written}" if written else "")


def check_embedder(embedder: Any) -> None:
    """Check that `embedder` is a specification or has the attributes of an `Embedder`.

    Raises:
        ValueError: If an attribute is missing.
    """
    if isinstance(embedder, str):
        return
    attributes = ("name", "dimension", "fingerprint", "encode")
    missing = [name for name in attributes if not hasattr(embedder, name)]
    if missing:
        raise ValueError(
            f"embedder is {embedder!r}, without {missing[0]}: expected a string such as 'lsa', or "
            f"an object with {', '.join(attributes)} (see whet.Embedder)"
        )
