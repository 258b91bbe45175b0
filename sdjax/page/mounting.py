"""The page as a part of the server, with the narrow door that it needs: nothing is fetched, nothing else is served."""

import json
import os
import re

import gradio as gr
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdjax.page.layout import page_of
from sdjax.page.look import CSS, THEME
from sdjax.server.gateway import Gateway

OURS = ("/v1/", "/sdapi/", "/controlnet/", "/results/", "/health", "/metrics", "/openapi.json")
# What the page itself asks of Gradio, which would do more than that: fetch addresses, for instance.
ASKED = re.compile(
    r"/|/(assets|static|svelte|config|theme\.css|favicon\.ico|manifest\.json|pwa_icon)(/.*)?|"
    r"/gradio_api/(queue/(join|data)|run/predict|upload|upload_progress|heartbeat/\w+|startup-events|cancel|reset|"
    r"file=(?!\w+:).*|app_id|user|login_check|component_server|theme\.css)/?"
)
EVENT = "event_data"


def put_page(app: FastAPI, gateway: Gateway) -> None:
    """Puts the page at "/" of a server's application. The default model is opened, if it is not."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    body = gateway.engine.limits.body
    facts = gateway.engine.facts(gateway.engine.models.default).result()
    gr.mount_gradio_app(
        app, page_of(gateway, facts), path="/", show_error=False, max_file_size=body, theme=THEME, css=CSS,
        footer_links=[], ssr_mode=False, pwa=False, mcp_server=False, run_history=False, enable_monitoring=False,
    )  # fmt: skip
    app.add_middleware(Narrow)


class Narrow:
    """Middleware that lets through to Gradio only what the page asks, and no address to fetch."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path.startswith(OURS):
            await self._app(scope, receive, send)
        elif not ASKED.fullmatch(path):
            await PlainTextResponse("there is nothing here", 404)(scope, receive, send)
        elif path.rstrip("/").endswith(("/queue/join", "/run/predict", "/component_server")):
            await self._read(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        if _names_an_address(body):
            await PlainTextResponse("this server fetches nothing", 400)(scope, receive, send)
            return

        left = [body]

        async def again() -> Message:
            return {"type": "http.request", "body": left.pop()} if left else await receive()

        await self._app(scope, again, send)


def _names_an_address(body: bytes) -> bool:
    """Whether JSON has a file somewhere whose path is an address. True for what is no JSON.

    What an event says of itself counts not: there the gallery names the picture that was clicked, which is not opened.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return True
    left = [{name: value for name, value in asked.items() if name != EVENT} if isinstance(asked, dict) else asked]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            path = each.get("path")
            if isinstance(path, str) and re.match(r"\s*\w+:", path):
                return True
            left += each.values()
        elif isinstance(each, list):
            left += each
    return False
