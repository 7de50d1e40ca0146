"""What ends a command early: one line for stderr, and the exit status.

ClientError
├── WrongUse          2: an option, a file or a folder is not what it must be
├── BatchNotAnswered  1: the batch ended, and some of its lines have no answer
└── ServerError       3
    ├── Unreachable     no answer came, or not all of it
    ├── Refused         the server said no
    └── BadReply        the answer is not that of a batch server
"""

from __future__ import annotations

EXIT_NOT_ANSWERED = 1
EXIT_WRONG_USE = 2
EXIT_SERVER = 3
EXIT_INTERRUPTED = 130  # as shells have it for SIGINT


class ClientError(Exception):
    """The message says what was given, what is allowed and what to do."""

    exit_status = EXIT_SERVER


class WrongUse(ClientError):  # noqa: N818  # the tree above reads better so
    exit_status = EXIT_WRONG_USE


class BatchNotAnswered(ClientError):  # noqa: N818
    exit_status = EXIT_NOT_ANSWERED


class ServerError(ClientError):
    pass


class Unreachable(ServerError):  # noqa: N818
    """No answer came, or not all of it.

    Attributes:
        was_silent: connected, but nothing came in time.
    """

    def __init__(self, message: str, *, was_silent: bool = False) -> None:
        super().__init__(message)
        self.was_silent = was_silent


class Refused(ServerError):  # noqa: N818
    """The server said no.

    Attributes:
        status_code: HTTP status.
    """

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


class BadReply(ServerError):  # noqa: N818
    pass
