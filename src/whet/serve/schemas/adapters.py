"""Requests and responses about cached adapters, models and the server's state."""

from typing import Literal

from whet.serve.schemas import Name, ResponseModel, StrictModel, Text
from whet.serve.schemas.adapt import AdaptParams


class AdapterRequest(StrictModel):
    """Adapt the model to a prompt and cache the adapter, to use as `model="NAME@ID"`."""

    prompt: Text
    """Text to adapt to."""
    model: Name
    """Name of the model."""
    adapt: AdaptParams | None = None


class AdapterObject(ResponseModel):
    """A cached adapter."""

    id: str
    """Id of the adapter."""
    object: Literal["adapter"] = "adapter"
    created: int
    """Unix time in seconds."""
    model: str
    """Name of the model with this adapter, for the field `model` of requests."""
    data_space: str
    """Name of the data space."""
    version: str
    """Version of the data space."""
    adapter: str
    """What was trained."""
    steps: int
    """Number of gradient steps."""
    documents: int
    """Number of different documents."""
    bytes: int
    """Memory in bytes."""


class AdapterList(ResponseModel):
    """The cached adapters of a key."""

    object: Literal["list"] = "list"
    data: list[AdapterObject]


class AdapterDeleted(ResponseModel):
    """The result of deleting an adapter."""

    id: str
    object: Literal["adapter"] = "adapter"
    deleted: bool


class ModelObject(ResponseModel):
    """A model that requests can name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "whet"
    parent: str | None = None
    """Name of the model that this one is a variant of."""


class ModelList(ResponseModel):
    """The models that a key can use."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(ResponseModel):
    """The state of the server."""

    status: Literal["ok", "full"]
    model: str


class Version(ResponseModel):
    """The version of the server."""

    version: str
