"""Refusals in the form that the clients of each API read."""

from typing import Any

from starlette.responses import JSONResponse

from sdjax.errors import SdjaxError
from sdjax.server.refusals import Refused, without_paths

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def answer_of(error: Exception, path: str) -> JSONResponse:
    """The answer to a request of a path that was not followed. What is no error of ours is a fault, and not told."""
    if isinstance(error, Refused):
        status, message = error.status, str(error)
    elif isinstance(error, SdjaxError):
        status, message = 400, str(without_paths(error))
    else:
        status, message = 500, "this is a fault of the server, whose log has more of it"
    headers = {"WWW-Authenticate": 'Basic realm="sdjax"'} if status == 401 else {}
    if isinstance(error, Refused) and error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return JSONResponse(_body(error, status, message, path), status, headers)


def _body(error: Exception, status: int, message: str, path: str) -> dict[str, Any]:
    if path.startswith(("/sdapi/", "/controlnet/")):
        return {"error": type(error).__name__, "detail": message, "body": "", "errors": message}
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param, code = (error.param, error.code) if isinstance(error, Refused) else (None, None)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
