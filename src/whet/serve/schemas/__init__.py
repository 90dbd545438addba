"""Types that the schemas of requests and responses share.

The docstring under a field is its description in the OpenAPI document.
"""

from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from whet.errors import require

require("fastapi", "serve")

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from whet.config import ConfigField, config_fields, unknown_name
from whet.select.config import SelectionConfig
from whet.select.own import is_own
from whet.select.registry import SELECTORS, check_name
from whet.serve.errors import UNKNOWN_FIELD

MAX_NAME = 64
"""Longest unknown field name that is repeated in a message, in characters."""
LARGEST = 1_000_000
"""Largest count that a request may contain."""


def _encodable(text: str) -> str:
    """Raises UnicodeEncodeError for an unpaired surrogate, which JSON can spell."""
    text.encode()
    return text


def _selector_of_whet(name: str) -> str:
    """Raises ValueError for any other name: a client must not name Python code that is then run."""
    if is_own(name):
        raise ValueError(
            f"selector is {name[:MAX_NAME]!r}, but requests cannot name a Python function: expected "
            f"one of {', '.join(SELECTORS)}"
        )
    check_name(name)
    return name


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[Text, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveCount = Annotated[int, Field(ge=1, le=LARGEST)]
PositiveNumber = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
SelectorName = Annotated[
    str,
    AfterValidator(_selector_of_whet),
    Field(json_schema_extra={"enum": list(SELECTORS)}),
]


class ResponseModel(BaseModel):
    """A response, or a part of one."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class StrictModel(BaseModel):
    """A request, or a part of one, in which an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check_field_names(cls, values: Any) -> Any:
        known = list(cls.model_fields)
        for name in values if isinstance(values, dict) else ():
            if name not in known:
                name = name[:MAX_NAME].encode("utf-8", "replace").decode()
                message = unknown_name(name, known)
                raise PydanticCustomError(
                    UNKNOWN_FIELD, "{message}", {"field": name, "message": message}
                )
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if v is not None or not cls._has_default(k)}

    @classmethod
    def _has_default(cls, name: str) -> bool:
        """Whether null is the same as leaving a field out: its default is a value."""
        field = cls.model_fields[name]
        return not field.is_required() and field.default is not None


class SpaceParams(StrictModel):
    """Which data space a request uses, and how documents of it are selected."""

    data_space: Name | None = None
    """Name of the data space [default: the server's first]."""

    def selection(self, default: SelectionConfig) -> dict[str, Any]:
        """The fields of `SelectionConfig` that the request sets; the others are those of `default`.

        A field that is null has no value where the configuration allows that, as without a filter;
        otherwise it is as if it was not set.
        """
        values = {}
        for field in config_fields(SelectionConfig):
            value = getattr(self, field.name, None)
            is_set = field.name in self.model_fields_set
            if value is None and not (is_set and field.default is None):
                value = getattr(default, field.name)
            values[field.name] = value
        return values


TYPES: dict[str, Any] = {
    "selector": SelectorName,
    "n": Count,
    "k": PositiveCount,
    "where": Annotated[Text, Field(max_length=1024)],
}
"""Types of the fields of `SelectionConfig` whose annotation does not give the valid values."""


def _field(field: ConfigField) -> Any:
    """The annotation and default of the schema's field for one of `SelectionConfig`."""
    members = get_args(field.type) if get_origin(field.type) is not None else (field.type,)
    if float in members:
        words = Annotated[str, Field(pattern=f"^({'|'.join(field.choices)})$")]
        kind: Any = PositiveNumber | words
    else:
        kind = TYPES.get(field.name, field.type)
    return (kind | None, Field(default=None, description=field.help))


def _params(name: str, doc: str, *names: str) -> Any:
    fields = {f.name: _field(f) for f in config_fields(SelectionConfig) if f.name in names}
    return create_model(name, __base__=SpaceParams, __doc__=doc, **fields)


if TYPE_CHECKING:  # a type checker cannot follow `create_model`

    class SearchParams(SpaceParams): ...

    class SelectionParams(SpaceParams): ...

else:
    SearchParams = _params(
        "SearchParams",
        "Where documents are searched for, and how.",
        *("retriever", "metric", "where"),
    )
    SelectionParams = _params(
        "SelectionParams",
        "How documents are selected. Fields that are not set have the server's defaults.",
        *(f.name for f in config_fields(SelectionConfig)),
    )
