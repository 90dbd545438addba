"""All under `/v1` that is no completion: models, scores, selection, adapters, data spaces."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from whet.select.config import SelectionConfig
from whet.serve.adapter_cache import Kept
from whet.serve.answers import (
    AdapterList,
    AdapterObject,
    Deleted,
    FoundList,
    ModelList,
    ModelObject,
    Scored,
    SpaceList,
    SpaceObject,
    Written,
)
from whet.serve.asks import BASE, ask, named, options
from whet.serve.dependencies import Caller, Calling, unless_gone
from whet.serve.errors import APIError, documented
from whet.serve.export import archive
from whet.serve.requests import (
    AdapterRequest,
    AddRequest,
    DeleteRequest,
    ScoreRequest,
    SearchRequest,
    SelectRequest,
)
from whet.serve.retrieval import nearest, selected
from whet.serve.work import start
from whet.serve.writing import add, delete

router = APIRouter(prefix="/v1")
AdapterId = Annotated[str, Path(pattern="^ad_[0-9a-f]{32}$")]
SpaceName = Annotated[str, Path(min_length=1, max_length=256)]


@router.get("/models", tags=["models"], responses=documented())
async def models(caller: Calling) -> ModelList:
    """The model that sharpens itself, the model as it is, and every adapter kept for the key."""
    server = caller.server
    names = ["", f"@{BASE}", *(f"@{kept.id}" for kept in server.adapters.of(caller.key.id))]
    return ModelList(
        data=[
            ModelObject(
                id=server.name + suffix,
                created=server.started,
                parent=server.name if suffix else None,
            )
            for suffix in names
        ]
    )


@router.get("/models/{name:path}", tags=["models"], responses=documented(404))
async def model(name: str, caller: Calling) -> ModelObject:
    """One of them."""
    named(caller, name)
    own, server = name.partition("@")[2], caller.server
    return ModelObject(id=name, created=server.started, parent=server.name if own else None)


@router.post("/score", tags=["score"], responses=documented(403, 404, 503))
async def score(body: ScoreRequest, request: Request, caller: Calling) -> Scored:
    """Bits per byte of a text, before and after the model is sharpened on what comes before it."""
    asking = start(ask(caller, body.model, body.prompt, body.adapt, text=body.text))
    done = await unless_gone(request, asking.answer(), asking.cancel)
    assert done.scores is not None
    return Scored.of(body.model, *done.scores, done.usage, done.adapted)


@router.post("/select", tags=["data spaces"], responses=documented(403, 404))
async def select(body: SelectRequest, caller: Calling) -> FoundList:
    """The texts that tell most about a prompt's answer, in order, repeats included; no model."""
    caller.may_ask(body.prompt)
    view = caller.server.catalogue.view(body.data_space, caller.key)
    chosen = options(caller, body)
    picks, sigma = await caller.server.off_loop(selected, view, body.prompt, chosen, body.texts)
    return FoundList(data_space=view.name, version=view.version, data=picks, sigma=sigma)


@router.post("/search", tags=["data spaces"], responses=documented(403, 404))
async def search(body: SearchRequest, caller: Calling) -> FoundList:
    """The texts nearest a prompt, of either sign."""
    caller.may_ask(body.prompt)
    k = caller.bounded("k", body.k)
    view = caller.server.catalogue.view(body.data_space, caller.key)
    how = SelectionConfig(k=k, where=body.where, retriever=body.retriever)
    found = await caller.server.off_loop(nearest, view, body.prompt, how, body.texts)
    return FoundList(data_space=view.name, version=view.version, data=found)


@router.post("/adapters", tags=["adapters"], responses=documented(403, 404, 409, 503))
async def make(body: AdapterRequest, request: Request, caller: Calling) -> AdapterObject:
    """Sharpen for a prompt and keep the adapter, to be asked for as `model`."""
    asked = ask(caller, body.model, "", body.adapt, query=body.prompt)
    if asked.view is None or asked.adapt.cache == "off":
        raise APIError(400, "nothing would be kept: ask for steps, and for `cache` other than off")
    if asked.method != "lora":
        raise APIError(
            400, f"method is {asked.method!r}: expected lora, whose adapters alone are kept",
            param="adapt.method",
        )  # fmt: skip
    asking = start(asked)
    done = await unless_gone(request, asking.answer(), asking.cancel)
    if done.adapted.steps and done.adapted.adapter is None:
        raise APIError(
            409, "the adapter was not kept: it is larger than all that the server may keep "
            f"({caller.server.config.cache_mib} MiB), or the data space changed meanwhile",
            code="adapter_not_kept",
        )  # fmt: skip
    kept = _kept(
        caller, done.adapted.adapter or "", f"no step was taken: {done.adapted.stop_reason}"
    )
    return _described(caller, kept)


@router.get("/adapters", tags=["adapters"], responses=documented())
async def adapters(caller: Calling) -> AdapterList:
    """The adapters kept for the key, the latest used first."""
    own = caller.server.adapters.of(caller.key.id)
    return AdapterList(data=[_described(caller, kept) for kept in own])


@router.get("/adapters/{name}", tags=["adapters"], responses=documented(404))
async def adapter(name: AdapterId, caller: Calling) -> AdapterObject:
    """One of them."""
    return _described(caller, _kept(caller, name))


@router.delete("/adapters/{name}", tags=["adapters"], responses=documented(404))
async def drop(name: AdapterId, caller: Calling) -> Deleted:
    """Keep it no longer."""
    kept = _kept(caller, name)
    return Deleted(id=name, deleted=caller.server.adapters.drop(kept.owner, kept.id))


@router.get(
    "/adapters/{name}/peft",
    tags=["adapters"],
    response_class=Response,
    responses=documented(404) | {200: {"content": {"application/zip": {}}}},
)
async def export(name: AdapterId, caller: Calling) -> Response:
    """A LoRA adapter in PEFT's layout, zipped, as vLLM and SGLang load it: see docs/serving.md."""
    kept = _kept(caller, name)
    packed = await caller.server.off_loop(archive, kept)
    headers = {"content-disposition": f'attachment; filename="{kept.id}.zip"'}
    return Response(packed, media_type="application/zip", headers=headers)


@router.get("/data_spaces", tags=["data spaces"], responses=documented())
async def spaces(caller: Calling) -> SpaceList:
    """The data spaces, as far as the key may read them."""
    views = caller.server.catalogue.views(caller.key)
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


@router.post(
    "/data_spaces/{name}/documents", tags=["data spaces"], responses=documented(403, 404, 409)
)
async def add_documents(name: SpaceName, body: AddRequest, caller: Calling) -> Written:
    """Add documents, all or none; it is on the disk when this is answered."""
    caller.must("write")
    catalogue = caller.server.catalogue
    return await caller.server.writing(add, catalogue, name, caller.key, body.documents)


@router.post(
    "/data_spaces/{name}/documents/delete",
    tags=["data spaces"],
    responses=documented(403, 404, 409),
)
async def delete_documents(name: SpaceName, body: DeleteRequest, caller: Calling) -> Written:
    """Delete documents, and every adapter that learned from one of them."""
    caller.must("write")
    catalogue = caller.server.catalogue
    return await caller.server.writing(delete, catalogue, name, caller.key, body.ids)


def _kept(caller: Caller, name: str, why: str = "") -> Kept:
    kept = caller.server.adapters.get(caller.key.id, name)
    if kept is None:
        raise APIError(
            404, why or f"there is no adapter {name!r} of this key", code="adapter_not_found"
        )
    return kept


def _described(caller: Caller, kept: Kept) -> AdapterObject:
    return AdapterObject(
        id=kept.id,
        created=kept.created,
        model=f"{caller.server.name}@{kept.id}",
        data_space=kept.space,
        version=kept.version,
        method=kept.method,
        steps=len(kept.rows),
        documents=len(set(kept.rows)),
        bytes=kept.bytes,
    )
