"""Errors in OpenAI's format: `{"error": {"message", "type", "param", "code"}}`."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from whet.errors import WhetError

CLIENT_CLOSED_REQUEST = 499
"""Status (as in nginx) of a request whose client disconnected before the response began."""
TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
    409: "conflict_error", 413: "invalid_request_error",
    415: "invalid_request_error", 429: "rate_limit_error",
    CLIENT_CLOSED_REQUEST: "cancelled_error", 500: "server_error", 503: "server_error",
}  # fmt: skip
ANY_ROUTE = (400, 401, 403, 413, 415, 429)
"""Statuses of errors that every route can answer with."""
MAX_MESSAGE = 300
"""Longest message in characters: it may contain a client's own text."""
MAX_VALUE = 40
"""Longest invalid value that is repeated in a message, in characters."""
UNKNOWN_FIELD = "unknown_field"
"""Type of the validation error for an unknown field."""
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
        """The JSON body of the response."""
        error = ErrorObject(
            message=_truncate(str(self)),
            type=TYPES[self.status],
            param=None if self.param is None else _truncate(self.param),
            code=self.code,
        )
        return ErrorBody(error=error).model_dump()

    def response(self) -> JSONResponse:
        """The response, with the headers that belong to its status."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, for the OpenAPI document."""
    return {status: {"model": ErrorBody} for status in sorted({*ANY_ROUTE, *statuses})}


def register_exception_handlers(app: FastAPI) -> None:
    """Answer expected errors in OpenAI's format; `whet.serve.http.middleware` handles all others."""

    @app.exception_handler(APIError)
    async def api_error(_: Request, error: APIError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return _from_validation_errors(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        status = error.status_code if error.status_code in TYPES else 400
        message = str(error.detail)
        if status == 400:  # FastAPI's own, as below
            message = "the body cannot be read: expected JSON in UTF-8, not deeply nested"
        if status in (404, 405):  # the router's own: routes raise `APIError`
            message = _no_route(request)
        return APIError(status, message).response()

    @app.exception_handler(ValidationError)
    async def invalid_response(_: Request, error: ValidationError) -> JSONResponse:
        raise error  # a response of ours is invalid, although pydantic calls that a ValueError

    @app.exception_handler(ValueError)
    @app.exception_handler(WhetError)
    async def expected_error(request: Request, error: ValueError | WhetError) -> JSONResponse:
        return to_api_error(error, request.state.id).response()


def _no_route(request: Request) -> str:
    """The message about a request that no route takes, with the method or path that exists."""
    method, path = request.method, request.url.path
    routes, message = request.app.openapi()["paths"], f"no route {method} {path}"
    if path in routes:
        return f"{message}: expected {' or '.join(sorted(map(str.upper, routes[path])))}"
    v1 = "/v1/" + path.removeprefix("/").removeprefix("v1/").removeprefix("v1/")
    if v1 in routes:
        return f"{message}: expected {v1}, for which a client's base URL ends in /v1"
    return f"{message}: see /openapi.json"


def to_api_error(error: ValueError | WhetError, request_id: str) -> APIError:
    """The response to an error: the full message only if the client caused the error."""
    if isinstance(error, ValueError):
        return APIError(400, str(error))
    log.error("request failed", extra={"reason": str(error), "request": request_id})
    return APIError(503, "the server cannot answer this request now: see its log", retry_after_s=1)


def _from_validation_errors(errors: Sequence[dict[str, Any]]) -> APIError:
    """The first of pydantic's errors, with those of a union's other members, as whet's messages."""
    error = errors[0]
    kind, message, path = error["type"], str(error["msg"]), _path(error)
    if kind == "json_invalid":
        return APIError(400, f"body is not valid JSON: {error['ctx']['error']}")
    if kind == UNKNOWN_FIELD:
        return APIError(400, message, param=".".join([*path, error["ctx"]["field"]]))
    param = ".".join(path) or None
    name = param or "body"
    if kind == "missing":
        return APIError(400, f"{name} is missing", param=param)
    expected = [_expected(other) for other in errors if _path(other) == path]
    if expected[0]:
        value = repr(error["input"])
        value = value if len(value) <= MAX_VALUE else value[:MAX_VALUE] + "…"
        either = " or ".join(dict.fromkeys(filter(None, expected)))
        return APIError(400, f"{name} is {value}: expected {either}", param=param)
    return APIError(400, f"{name}: {message.removeprefix('Value error, ')}", param=param)


def _path(error: dict[str, Any]) -> list[str]:
    """Where in the body the error is, without the members of unions."""
    location = error["loc"][1:]
    return [str(p) for p in location if isinstance(p, int) or p.isidentifier()]


def _expected(error: dict[str, Any]) -> str:
    """What pydantic expected, such as `a valid string`; empty if its message says something else."""
    if error["type"] in ("model_attributes_type", "model_type", "dict_type"):
        return "an object"
    wanted = re.match(r"(?:Input|List|String|Value) should (?:be|have) (.*)", str(error["msg"]))
    text = re.sub(r" after validation, not .*", "", wanted[1]) if wanted else ""
    return re.sub(r" item(s?)$", r" character\1", text) if isinstance(error["input"], str) else text


def _truncate(text: str) -> str:
    """At most `MAX_MESSAGE` characters of `text`, without unpaired surrogates."""
    return text[:MAX_MESSAGE].encode("utf-8", "replace").decode()
