"""What is answered to a request that is not followed."""

from pathlib import Path

from sdjax.errors import SdjaxError


class Refused(SdjaxError):
    """A request that is not followed: one line that says why, for the one who asked.

    status: of HTTP. param: the field that is wrong, or None. code: OpenAI's word for it, or None. retry_after: seconds
    after which it may go well, or None.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


class Stopped(Refused):
    """A picture that nobody waits for any more."""

    def __init__(self) -> None:
        super().__init__("the picture was interrupted", 409, code="interrupted")


def too_long(seconds: float) -> Refused:
    """For a picture that took longer than a request may."""
    return Refused(f"the picture was not done within {seconds:g} seconds, the most of this server", 503, retry_after=60)


def without_paths(error: Exception) -> Exception:
    """The same error, for somebody whom it does not concern where files lie."""
    if not isinstance(error, SdjaxError) or isinstance(error, Refused):
        return error
    message = str(error)
    for word in message.replace(":", " ").split():
        if "/" in word and Path(word).is_absolute():
            message = message.replace(word, Path(word).name)
    return Refused(message)
