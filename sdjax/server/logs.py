"""What happens, as a line of JSON each."""

import json
import logging
import time
from typing import Any

log = logging.getLogger("sdjax.server")


def tell(event: str, **fields: Any) -> None:
    """Log an event with its fields."""
    log.info(event, extra={"fields": fields})


class Lines(logging.Formatter):
    """A record as JSON on one line: when, how bad, what, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        told = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        told |= getattr(record, "fields", {})
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told)


def log_as_lines() -> None:
    """Let all that the server says appear on standard error in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
