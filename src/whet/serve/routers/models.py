"""The models that requests can name."""

from fastapi import APIRouter

from whet.serve.dependencies import ContextDep
from whet.serve.errors import error_responses
from whet.serve.generation.requests import resolve_model
from whet.serve.schemas.adapters import ModelList, ModelObject
from whet.serve.state import BASE

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", responses=error_responses())
async def list_models(context: ContextDep) -> ModelList:
    """List the adapted model, the base model, and the model with each of the key's adapters."""
    state = context.state
    cached = state.adapters.list_for(context.key.id)
    suffixes = ["", f"@{BASE}", *(f"@{adapter.id}" for adapter in cached)]
    return ModelList(data=[_to_response(context, state.name + suffix) for suffix in suffixes])


@router.get("/{name:path}", responses=error_responses(404))
async def get_model(name: str, context: ContextDep) -> ModelObject:
    """Retrieve a model."""
    resolve_model(context, name)
    return _to_response(context, name)


def _to_response(context: ContextDep, name: str) -> ModelObject:
    state = context.state
    parent = state.name if "@" in name else None
    return ModelObject(id=name, created=state.started, parent=parent)
