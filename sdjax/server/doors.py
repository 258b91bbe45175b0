"""Who may come in, and with how much: tokens, browsers of other sites, and bodies that are too large."""

import base64
import binascii
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdjax.server.answers import answer_of
from sdjax.server.refusals import Refused

OPEN = ("/health",)
DRAINED = 4  # times the largest body that is followed
TOGETHER = 16  # times the largest body, of all requests that have no answer yet
OPEN_UNDER = "/results/"  # whose ids nobody can guess


class Doors:
    """Middleware that refuses what has no token, comes from another site's page, or is too large, alone or with others.

    tokens: as "Authorization: Bearer TOKEN", or as the password of "Basic", whatever the name; none are needed where
    there are none. body: bytes of a request, at most. origins: of pages whose scripts may ask.
    """

    def __init__(self, app: ASGIApp, tokens: Sequence[str], body: int, origins: Sequence[str] = ()):
        self._app, self._tokens, self._body, self._origins = app, tokens, body, origins
        self._held = 0  # bytes of the requests that have no answer yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except Refused as refused:
            await self._drain(receive)
            await answer_of(refused, scope["path"])(scope, receive, send)
            return
        came = 0

        async def bounded() -> Message:
            nonlocal came
            message = await receive()
            more = len(message.get("body", b""))
            came, self._held = came + more, self._held + more
            if came > self._body:
                raise _too_large(self._body)
            if self._held > TOGETHER * self._body:
                raise Refused("too much is being sent at once: try again", 429, code="rate_limit_exceeded",
                              retry_after=10)  # fmt: skip
            return message

        try:
            await self._app(scope, bounded, send)
        finally:
            self._held -= came

    def _check(self, scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin and origin not in self._origins and urlsplit(origin).netloc != headers.get("host"):
            raise Refused("a page of another site may not ask this server (--cors)", 403)
        path = scope["path"]
        if scope["method"] != "OPTIONS" and path not in OPEN and not path.startswith(OPEN_UNDER):
            scope["user_name"] = self._user(headers.get("authorization", ""))
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._body:
            raise _too_large(self._body)

    async def _drain(self, receive: Receive) -> None:
        """Reads on for a while: most clients hear no answer before they have sent what they have to send."""
        came, more = 0, True
        while more and came <= DRAINED * self._body:
            message = await receive()
            came += len(message.get("body", b""))
            more = message.get("more_body", False)

    def _user(self, authorization: str) -> str:
        """The name that comes with a token, "" for none. Raises Refused without one."""
        if not self._tokens:
            return ""
        scheme, _, given = authorization.partition(" ")
        name = ""
        if scheme.lower() == "basic":
            try:
                name, _, given = base64.b64decode(given, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                given = ""
        elif scheme.lower() != "bearer":
            given = ""
        matches = [hmac.compare_digest(token.encode(), given.encode()) for token in self._tokens]  # all, for time tells
        if not any(matches):
            raise Refused("a token is needed: as Authorization: Bearer, or as the password of Basic", 401,
                          code="invalid_api_key")  # fmt: skip
        return name


def _too_large(body: int) -> Refused:
    return Refused(f"the body can have {body} bytes at most", 413)
