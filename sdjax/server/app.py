"""The server as an ASGI application."""

from collections.abc import Callable, Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sdjax.errors import SdjaxError
from sdjax.server import a1111, controlnet, openai, operation
from sdjax.server.answers import answer_of
from sdjax.server.doors import Doors
from sdjax.server.engine import Engine
from sdjax.server.gateway import Gateway
from sdjax.server.refusals import Refused
from sdjax.version import __version__

NOTHING = "Not Found: OpenAI's API is at /v1/images, A1111's at /sdapi/v1, and a page comes with `sdjax ui`"


def application(
    engine: Engine,
    tokens: Sequence[str] = (),
    origins: Sequence[str] = (),
    dress: Callable[[FastAPI, Gateway], None] | None = None,
) -> FastAPI:
    """The application over an engine. tokens, origins: see `Doors`. dress: puts a page on it, behind the doors."""
    app = FastAPI(title="sdjax", version=__version__, docs_url=None, redoc_url=None)
    gateway = Gateway(engine)
    app.include_router(a1111.router(gateway))
    app.include_router(controlnet.router(gateway))
    app.include_router(openai.router(gateway))
    app.include_router(operation.router(gateway))
    if dress:
        dress(app, gateway)
    app.add_middleware(Doors, tokens=tokens, body=engine.limits.body, origins=origins)

    @app.exception_handler(SdjaxError)
    def refused(request: Request, error: SdjaxError) -> Response:
        return answer_of(error, request.url.path)

    @app.exception_handler(HTTPException)
    def not_there(request: Request, error: HTTPException) -> Response:
        said = NOTHING if error.status_code == 404 else str(error.detail)
        return answer_of(Refused(said, error.status_code), request.url.path)

    @app.exception_handler(RequestValidationError)
    def unreadable(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:]))
        return answer_of(Refused(f"{where}: {first['msg']}", 422, where), request.url.path)

    @app.exception_handler(Exception)
    def fault(request: Request, error: Exception) -> Response:
        return answer_of(error, request.url.path)

    return app
