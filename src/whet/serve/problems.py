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
log = logging.getLogger("whet.serve")


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorObject


class Refused(Exception):
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
        message = str(self)[:SHOWN].encode("utf-8", "replace").decode()
        error = ErrorObject(
            message=message, type=TYPES[self.status], param=self.param, code=self.code
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
    """Every error that is foreseen in OpenAI's shape; `whet.serve.door` sees to the rest."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"] if p not in ("body", "query", "path"))
        return Refused(400, f"{place or 'body'}: {first['msg']}", param=place or None).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        status = error.status_code if error.status_code in TYPES else 400
        return Refused(status, str(error.detail)).response()

    @app.exception_handler(ValidationError)
    async def own(_: Request, error: ValidationError) -> JSONResponse:
        raise error  # an answer of ours is wrong, though pydantic calls that a ValueError

    @app.exception_handler(ValueError)
    @app.exception_handler(WhetError)
    async def foreseen(request: Request, error: ValueError | WhetError) -> JSONResponse:
        return refusal(error, request.state.id).response()


def refusal(error: ValueError | WhetError, request: str) -> Refused:
    """What a client is told of an error: its own mistake in full, the world's not at all."""
    if isinstance(error, ValueError):
        return Refused(400, str(error))
    log.error("failed", extra={"reason": str(error), "request": request})
    return Refused(503, "the server cannot answer this now: see its log", retry_after_s=1)
