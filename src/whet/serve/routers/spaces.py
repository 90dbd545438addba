"""Selection and search in data spaces, and their documents."""

from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path

from whet.serve.dependencies import ContextDep
from whet.serve.errors import error_responses
from whet.serve.generation.requests import selection_config
from whet.serve.schemas.spaces import (
    AddDocumentsRequest,
    DeleteDocumentsRequest,
    DocumentHitList,
    DocumentsChanged,
    SearchRequest,
    SelectRequest,
    SpaceList,
    SpaceObject,
)
from whet.serve.spaces.documents import add_documents, delete_documents
from whet.serve.spaces.retrieval import search, select_hits
from whet.serve.state import BASE

router = APIRouter(prefix="/v1", tags=["data spaces"])
SpaceName = Annotated[str, Path(min_length=1, max_length=256)]


@router.post("/select", responses=error_responses(403, 404))
async def select(body: SelectRequest, context: ContextDep) -> DocumentHitList:
    """Select the documents that a request with this prompt would be adapted on, in order."""
    context.check_prompt(body.prompt)
    view = context.state.spaces.view(body.data_space, context.key)
    config = selection_config(context, body)
    config = replace(config, n=max(1, config.n))
    select_all = partial(select_hits, context.state.engines[BASE], texts=body.texts)
    hits, sigma = await context.run_in_pool(select_all, view, body.prompt, config)
    return DocumentHitList(data_space=view.name, version=view.version, data=hits, sigma=sigma)


@router.post("/search", responses=error_responses(403, 404))
async def search_documents(body: SearchRequest, context: ContextDep) -> DocumentHitList:
    """Search for the documents nearest to a prompt, by descending absolute cosine similarity."""
    context.check_prompt(body.prompt)
    view = context.state.spaces.view(body.data_space, context.key)
    config = replace(selection_config(context, body), lam=1.0, stop_alpha=None)
    search_all = partial(search, texts=body.texts)
    hits = await context.run_in_pool(search_all, view, body.prompt, config)
    return DocumentHitList(data_space=view.name, version=view.version, data=hits)


@router.get("/data_spaces", responses=error_responses())
async def list_spaces(context: ContextDep) -> SpaceList:
    """List the data spaces that the key may read, at least in part."""
    views = context.state.spaces.views(context.key)
    return SpaceList(
        data=[
            SpaceObject(
                id=view.name,
                documents=len(view.space),
                version=view.version,
                embedder=view.space.embedder.name,
            )
            for view in views
        ]
    )


@router.post("/data_spaces/{name}/documents", responses=error_responses(403, 404, 409))
async def add(name: SpaceName, body: AddDocumentsRequest, context: ContextDep) -> DocumentsChanged:
    """Add documents, all or none. They are on disk when the response arrives."""
    context.require_role("write")
    state = context.state
    return await state.run_write(add_documents, state.spaces, name, context.key, body.documents)


@router.post("/data_spaces/{name}/documents/delete", responses=error_responses(403, 404, 409))
async def delete(
    name: SpaceName, body: DeleteDocumentsRequest, context: ContextDep
) -> DocumentsChanged:
    """Delete documents, and every cached adapter that was trained on one of them."""
    context.require_role("write")
    state = context.state
    return await state.run_write(delete_documents, state.spaces, name, context.key, body.ids)
