"""`create_app`: an ASGI application from engines and a configuration. Nothing runs at import."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from whet.errors import require

require("fastapi", "serve")

from fastapi import APIRouter, FastAPI, Response

from whet._version import __version__
from whet.engine import Engine
from whet.serve.access.auth import APIKeyStore
from whet.serve.config import ServeConfig
from whet.serve.errors import register_exception_handlers
from whet.serve.http.middleware import RequestMiddleware
from whet.serve.routers import (
    adapters,
    completions,
    embeddings,
    models,
    operations,
    responses,
    spaces,
)
from whet.serve.state import AppState

PAGE = {"": "index.html", "page.css": "page.css", "page.js": "page.js"}
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def create_app(
    engines: Mapping[str, Engine], config: ServeConfig, keys: APIKeyStore | None = None
) -> FastAPI:
    """The server as an ASGI application, which closes the engines when it shuts down.

    Args:
        engines: See `whet.serve.main.build_engines`.
        config: How to serve.
        keys: The API keys; None to give every client full access.

    Raises:
        SpaceError: If a data space cannot be opened.
        ValueError: If there are API keys, and web pages of any origin may use the server.
    """
    config.check_origins(has_keys=keys is not None)
    state = AppState(engines, config, keys)
    app = FastAPI(
        title="whet", version=__version__, lifespan=_lifespan, docs_url=None, redoc_url=None,
        description="A language model that is fine-tuned on your documents for each request.",
    )  # fmt: skip
    app.state.server = state
    register_exception_handlers(app)
    for module in (completions, responses, embeddings, spaces, adapters, models, operations):
        app.include_router(module.router)
    if config.ui:
        app.include_router(_page())
    app.add_middleware(RequestMiddleware, state=state)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: AppState = app.state.server
    await state.warm_up()
    watcher = asyncio.create_task(state.watch_spaces())
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        await state.close()


def _page() -> APIRouter:
    """The three files of the web page, read once."""
    router = APIRouter(include_in_schema=False)
    folder = files("whet") / "assets" / "page"
    for path, name in PAGE.items():
        content = (folder / name).read_bytes()
        media_type = MEDIA_TYPES[name.rpartition(".")[2]]
        router.add_api_route(f"/{path}", _file_route(content, media_type), methods=["GET"])
    return router


def _file_route(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def get_file() -> Response:
        return Response(content, media_type=media_type)

    return get_file
