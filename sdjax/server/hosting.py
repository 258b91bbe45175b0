"""The server at an address: started, and stopped without losing anything."""

import socket
import threading
import time

import uvicorn
from fastapi import FastAPI

from sdjax.errors import InputError
from sdjax.server.engine import Engine

PATIENCE = 30.0  # seconds in which what was accepted may be finished when the server stops
CLOSING = 5.0  # seconds in which answers may be sent then
KEPT = 75  # seconds for which an unused connection is kept: whoever keeps it for less, as httpx (5) and nginx (60) do,
# closes it first, so that no request is sent on a connection that the server has just closed


class Host:
    """An application that answers at an address from its making on, in a thread of its own.

    url: without a "/" at its end. Raises InputError for an address that cannot be listened at.
    """

    def __init__(self, app: FastAPI, engine: Engine, host: str = "127.0.0.1", port: int = 0):
        self._engine = engine
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family)
        except (OSError, OverflowError) as error:
            raise InputError(f"{host}:{port} cannot be listened at: {error}") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            app, log_level="warning", timeout_keep_alive=KEPT, timeout_graceful_shutdown=round(CLOSING)
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="sdjax-http", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def stop(self, patience: float = PATIENCE) -> None:
        """Refuse what comes from now on and finish what was accepted; the next start goes on with what is left then."""
        self._engine.close(patience)
        self._server.should_exit = True
        self._thread.join()
        self._engine.journal.close()
