"""Cached adapters: create, list, retrieve, delete, and download in PEFT's format."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from whet.serve.adapter_cache import CachedAdapter
from whet.serve.dependencies import ContextDep, cancel_on_disconnect
from whet.serve.errors import APIError, error_responses
from whet.serve.generation.requests import build_request
from whet.serve.generation.runner import start_request
from whet.serve.schemas.adapters import (
    AdapterDeleted,
    AdapterList,
    AdapterObject,
    AdapterRequest,
)

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])
AdapterId = Annotated[str, Path(pattern="^ad_[0-9a-f]{32}$")]


@router.post("", responses=error_responses(403, 404, 409, 503))
async def create_adapter(
    body: AdapterRequest, request: Request, context: ContextDep
) -> AdapterObject:
    """Create an adapter for a prompt; use its id as `model="NAME@ID"`."""
    adapted = build_request(context, body.model, "", body.adapt, query=body.prompt)
    if adapted.view is None or adapted.params.cache == "off":
        raise APIError(
            400, 'this request would not create an adapter: set `n` > 0 and `cache` ≠ "off"'
        )
    if adapted.adapter != "lora":
        raise APIError(
            400, f"adapter is {adapted.adapter!r}: expected lora, the only kind that is cached",
            param="adapt.adapter",
        )  # fmt: skip
    stream = start_request(adapted)
    completed = await cancel_on_disconnect(request, stream.result(), stream.cancel)
    info = completed.adapt
    if info.steps and info.adapter_id is None:
        raise APIError(
            409, "the adapter was not cached: it is larger than this key's share of "
            f"the cache ({context.state.adapters.share / 2**20:.3g} MiB), or the data space has changed",
            code="adapter_not_cached",
        )  # fmt: skip
    if info.adapter_id is None:
        reason = f"no adapter was created, because no step was taken: {info.stop_reason}"
        raise APIError(404, reason, code="adapter_not_found")
    return _to_response(context, get_adapter_or_404(context, info.adapter_id))


@router.get("", responses=error_responses())
async def list_adapters(context: ContextDep) -> AdapterList:
    """List the key's cached adapters, the most recently used first."""
    cached = context.state.adapters.list_for(context.key.id)
    return AdapterList(data=[_to_response(context, adapter) for adapter in cached])


@router.get("/{name}", responses=error_responses(404))
async def get_adapter(name: AdapterId, context: ContextDep) -> AdapterObject:
    """Retrieve an adapter."""
    return _to_response(context, get_adapter_or_404(context, name))


@router.delete("/{name}", responses=error_responses(404))
async def delete_adapter(name: AdapterId, context: ContextDep) -> AdapterDeleted:
    """Delete an adapter."""
    cached = get_adapter_or_404(context, name)
    deleted = context.state.adapters.delete(cached.owner, cached.id)
    return AdapterDeleted(id=name, deleted=deleted)


@router.get(
    "/{name}/peft",
    response_class=Response,
    responses=error_responses(404) | {200: {"content": {"application/zip": {}}}},
)
async def download_adapter(name: AdapterId, context: ContextDep) -> Response:
    """Download a LoRA adapter as a zip file in PEFT's format, which vLLM and SGLang can load."""
    cached = get_adapter_or_404(context, name)
    archive = await context.run_in_pool(cached.to_zip)
    headers = {"content-disposition": f'attachment; filename="{cached.id}.zip"'}
    return Response(archive, media_type="application/zip", headers=headers)


def get_adapter_or_404(context: ContextDep, name: str) -> CachedAdapter:
    """The key's adapter with the id `name`. Raises APIError, 404, if it does not exist."""
    cached = context.state.adapters.get(context.key.id, name)
    if cached is None:
        raise APIError(
            404, f"adapter {name!r} does not exist for this key", code="adapter_not_found"
        )
    return cached


def _to_response(context: ContextDep, cached: CachedAdapter) -> AdapterObject:
    return AdapterObject(
        id=cached.id,
        created=cached.created,
        model=f"{context.state.name}@{cached.id}",
        data_space=cached.space_name,
        version=cached.version,
        adapter=cached.adapter_name,
        steps=len(cached.rows),
        documents=len(set(cached.rows)),
        bytes=cached.num_bytes,
    )
