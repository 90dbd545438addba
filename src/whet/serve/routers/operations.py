"""Health, readiness and metrics."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from whet._version import __version__
from whet.serve.dependencies import ContextDep
from whet.serve.errors import error_responses
from whet.serve.schemas.adapters import Health, Version
from whet.serve.state import AppState

router = APIRouter(tags=["operations"])


@router.get("/health")
async def health(request: Request) -> Health:
    """Report that the server is running."""
    state: AppState = request.app.state.server
    return Health(status="ok", model=state.name)


@router.get("/version")
async def version() -> Version:
    """Report whet's version."""
    return Version(version=__version__)


@router.get("/ready", responses={503: {"model": Health}})
async def ready(request: Request) -> Response:
    """Report whether the server accepts another request: status 503 while the queue is full."""
    state: AppState = request.app.state.server
    health = Health(status="full" if state.is_full else "ok", model=state.name)
    return JSONResponse(health.model_dump(), 503 if state.is_full else 200)


@router.get("/metrics", response_class=Response, responses=error_responses(403))
async def metrics(context: ContextDep) -> Response:
    """Get metrics in Prometheus's text format. Needs the role `metrics`."""
    context.require_role("metrics")
    return Response(context.state.metrics.text(), media_type="text/plain; version=0.0.4")
