"""`create_app`: engines and a configuration in, an ASGI application out. Nothing runs at import."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from whet._version import __version__
from whet.engine import Engine
from whet.serve import completions, routes
from whet.serve import errors as problems
from whet.serve.answers import Health
from whet.serve.auth import Keys
from whet.serve.config import Config
from whet.serve.dependencies import Calling
from whet.serve.middleware import Door
from whet.serve.state import Server

PAGE = {"": "index.html", "page.css": "page.css", "page.js": "page.js"}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
about = APIRouter(tags=["operations"])


def create_app(engines: Mapping[str, Engine], config: Config, keys: Keys | None = None) -> FastAPI:
    """The server as an ASGI application, which owns the engines: they are closed when it ends.

    Args:
        engines: See `whet.serve.main.engines_of`.
        config: How to serve.
        keys: Who may ask; None for anyone.

    Raises:
        SpaceError: If a data space cannot be opened.
    """
    server = Server(engines, config, keys)
    app = FastAPI(
        title="whet", version=__version__, lifespan=_life, docs_url=None, redoc_url=None,
        description="A language model that is sharpened on your data for each request.",
    )  # fmt: skip
    app.state.server = server
    problems.install(app)
    for router in (completions.router, routes.router, about):
        app.include_router(router)
    if config.page:
        app.include_router(_page())
    app.add_middleware(
        Door,
        metrics=server.metrics,
        body_bytes=config.body_kib * 1024,
        body_s=config.body_s,
    )
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    server: Server = app.state.server
    await server.warm_up()
    looking = asyncio.create_task(server.look_for_versions())
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        await server.close()


@about.get("/health")
async def health(request: Request) -> Health:
    """Whether the process lives."""
    server: Server = request.app.state.server
    return Health(status="ok", model=server.name)


@about.get("/ready", responses={503: {"model": Health}})
async def ready(request: Request) -> Response:
    """Whether one more prompt would be taken: 503 while the queue is full."""
    server: Server = request.app.state.server
    told = Health(status="full" if server.full else "ok", model=server.name)
    return JSONResponse(told.model_dump(), 503 if server.full else 200)


@about.get("/metrics", response_class=Response, responses=problems.documented(403))
async def metrics(caller: Calling) -> Response:
    """Counters in Prometheus's format, for keys of role `operate`."""
    caller.must("operate")
    return Response(caller.server.metrics.text(), media_type="text/plain; version=0.0.4")


def _page() -> APIRouter:
    """The page for people: three files, read once."""
    router = APIRouter(include_in_schema=False)
    folder = files("whet") / "assets" / "page"
    for place, name in PAGE.items():
        content = (folder / name).read_bytes()
        kind = TYPES[name.rpartition(".")[2]]
        router.add_api_route(f"/{place}", _file(content, kind), methods=["GET"])
    return router


def _file(content: bytes, kind: str):  # type: ignore[no-untyped-def]
    async def answer() -> Response:
        return Response(content, media_type=kind)

    return answer
