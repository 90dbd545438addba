"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from whet.errors import WhetError

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
    409: "conflict_error", 413: "invalid_request_error", 429: "rate_limit_error",
    499: "cancelled_error", 500: "server_error", 503: "server_error",
}  # fmt: skip
SHOWN = 300
"""Characters of a message: a caller's own text may be in it."""
VALUE = 40  # characters of a value that is refused
SHOULD = "Input should be "
OBJECT = SHOULD + "an object"
UNKNOWN = "unknown_field"
"""The type of pydantic's error of a field that there is not."""
log = logging.getLogger("whet.serve")


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorObject


class APIError(Exception):
    """A request that is answered with an error; `status` is HTTP's."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        error = ErrorObject(
            message=_shown(str(self)),
            type=TYPES[self.status],
            param=None if self.param is None else _shown(self.param),
            code=self.code,
        )
        return ErrorBody(error=error).model_dump()

    def response(self) -> JSONResponse:
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, for the OpenAPI document."""
    return {status: {"model": ErrorBody} for status in sorted({400, 401, 413, 429, *statuses})}


def install(app: FastAPI) -> None:
    """Every error that is foreseen in OpenAI's shape; `whet.serve.middleware` sees to the rest."""

    @app.exception_handler(APIError)
    async def refused(_: Request, error: APIError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return _told(error.errors()[0]).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        status = error.status_code if error.status_code in TYPES else 400
        asked, told = f"{request.method} {request.url.path}", str(error.detail)
        if status in (404, 405):  # of the router: what a route does not find is `APIError`
            told = f"there is no {asked}: see /openapi.json for what there is"
        return APIError(status, told).response()

    @app.exception_handler(ValidationError)
    async def own(_: Request, error: ValidationError) -> JSONResponse:
        raise error  # an answer of ours is wrong, though pydantic calls that a ValueError

    @app.exception_handler(ValueError)
    @app.exception_handler(WhetError)
    async def foreseen(request: Request, error: ValueError | WhetError) -> JSONResponse:
        return refusal(error, request.state.id).response()


def _told(error: dict[str, Any]) -> APIError:
    """The first of pydantic's errors, in the words of ours."""
    kind, told, loc = error["type"], str(error["msg"]), error["loc"][1:]
    if kind == "json_invalid":
        return APIError(400, f"body is no JSON: {error['ctx']['error']}")
    places = [str(p) for p in loc if isinstance(p, int) or p.isidentifier()]  # no union's members
    if kind == UNKNOWN:
        places.append(error["ctx"]["field"])
    param = ".".join(places) or None
    place = param or "body"
    if kind == UNKNOWN:
        return APIError(400, told, param=param)
    if kind == "missing":
        return APIError(400, f"{place} is missing", param=param)
    wanted = OBJECT if kind in ("model_attributes_type", "model_type", "dict_type") else told
    if wanted.startswith(SHOULD):
        value = repr(error["input"])
        value = value if len(value) <= VALUE else value[:VALUE] + "…"
        return APIError(
            400, f"{place} is {value}: {wanted.replace(SHOULD, 'expected ')}", param=param
        )
    return APIError(400, f"{place}: {told.removeprefix('Value error, ')}", param=param)


def _shown(text: str) -> str:
    """`text` so far as it is shown; half a surrogate pair cannot be sent."""
    return text[:SHOWN].encode("utf-8", "replace").decode()


def refusal(error: ValueError | WhetError, request: str) -> APIError:
    """What a client is told of an error: its own mistake in full, the world's not at all."""
    if isinstance(error, ValueError):
        return APIError(400, str(error))
    log.error("failed", extra={"reason": str(error), "request": request})
    return APIError(503, "the server cannot answer this now: see its log", retry_after_s=1)
