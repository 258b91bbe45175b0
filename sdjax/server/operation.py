"""What operators ask, and results by id: /health, /metrics, /results."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from sdjax.server.gateway import Gateway
from sdjax.server.refusals import Refused

MOST = 10000  # pictures of a job that can be asked for


def router(gateway: Gateway) -> APIRouter:
    """The routes."""
    routes, engine = APIRouter(), gateway.engine

    @routes.get("/health")
    def health() -> Response:
        told: dict[str, Any] = {"status": "ok" if engine.is_alive else "stopped", "waiting": engine.waiting}
        return JSONResponse(told, 200 if engine.is_alive else 503)

    @routes.get("/metrics")
    def metrics() -> Response:
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4")

    @routes.get("/results/{job}")
    async def results(job: str) -> dict[str, Any]:
        found = await run_in_threadpool(engine.journal.find, job)
        if found is None:
            raise Refused("there is no such job: results are kept for a time", 404)
        return found | {"done": len(found["results"]) == found["count"]}

    @routes.get("/results/{job}/{number}")
    async def result(job: str, number: Annotated[int, Path(ge=0, le=MOST)]) -> Response:
        found = await run_in_threadpool(engine.journal.result, job, number)
        if found is None:
            raise Refused("there is no such picture, or not yet: results are kept for a time", 404)
        if isinstance(found, str):
            raise Refused(found, 410)
        return Response(found.data, media_type=f"image/{found.form.kind}")

    return routes
