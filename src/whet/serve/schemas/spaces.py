"""Requests and responses about data spaces: selection, search, and their documents."""

from typing import Annotated, Any, Literal

from pydantic import Field

from whet.serve.schemas import (
    Name,
    PositiveCount,
    ResponseModel,
    SearchParams,
    SelectionParams,
    StrictModel,
    Text,
)

Integer = Annotated[int, Field(ge=-(2**53), le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = Annotated[Text, Field(max_length=4096)] | bool | Integer | Finite


class SelectRequest(SelectionParams):
    """Select documents for a prompt, without a model."""

    prompt: Text
    """Text to select documents for."""
    texts: bool = True
    """Whether the response contains the texts of the documents."""


class SearchRequest(SearchParams):
    """Search for the documents nearest to a prompt."""

    prompt: Text
    """Text to search for."""
    k: PositiveCount = 10
    """Number of documents; with the hybrid retriever, of each of its two searches."""
    texts: bool = True
    """Whether the response contains the texts of the documents."""


class NewDocument(StrictModel):
    """A document to add to a data space."""

    id: Name
    """Id, unique in the data space."""
    text: Annotated[Text, Field(min_length=1)]
    """Text of the document."""
    label: Annotated[Text, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    """Access label, in a data space that has labels."""
    meta: Annotated[dict[Name, Value], Field(max_length=64)] = Field(default_factory=dict)
    """Other fields, which filters can use."""


class AddDocumentsRequest(StrictModel):
    """Documents to add: all are added, or none."""

    documents: Annotated[list[NewDocument], Field(min_length=1, max_length=10_000)]
    """The documents, which are cut into passages by the rule of the data space. One that exists with
    the same text is left as it is."""


class DeleteDocumentsRequest(StrictModel):
    """Documents to delete: all are deleted, or none."""

    ids: Annotated[list[Name], Field(min_length=1, max_length=10_000)]
    """Ids of the documents, or of those that were cut into passages. Unknown ids are ignored."""


class DocumentHit(ResponseModel):
    """A document that was selected or found."""

    id: str
    """Id of the document."""
    label: str | None = None
    """Access label of the document."""
    text: str | None = None
    """Text of the document."""
    meta: dict[str, Any]
    """All other fields of the document."""
    score: float | None = None
    """Cosine similarity to the prompt."""
    sigma: float | None = None
    """Standard deviation after this pick, relative to the prior's."""
    gain: float | None = None
    """Reduction of the variance by this pick."""


class DocumentHitList(ResponseModel):
    """Documents in the order of selection, or by descending absolute similarity."""

    object: Literal["list"] = "list"
    data_space: str
    """Name of the data space."""
    version: str
    """Version of the data space."""
    data: list[DocumentHit]
    """The documents; a document that is selected twice occurs twice."""
    sigma: list[float] | None = None
    """Standard deviation before the first pick and after each, relative to the prior's."""


class SpaceObject(ResponseModel):
    """The part of a data space that the key may read."""

    id: str
    """Name of the data space."""
    object: Literal["data_space"] = "data_space"
    documents: int
    """Number of documents that the key may read."""
    version: str
    """Version of the data space."""
    embedder: str
    """Name of the embedder."""


class SpaceList(ResponseModel):
    """The data spaces that the key may read, at least in part."""

    object: Literal["list"] = "list"
    data: list[SpaceObject]


class DocumentsChanged(ResponseModel):
    """What a request changed in a data space."""

    object: Literal["data_space.change"] = "data_space.change"
    data_space: str
    """Name of the data space."""
    version: str
    """Version of the data space after the change."""
    added: int = 0
    """Number of documents added."""
    existing: int = 0
    """Number of documents that existed already with the same text."""
    deleted: int = 0
    """Number of documents deleted."""
