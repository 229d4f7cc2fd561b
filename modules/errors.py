"""What a user can act on: a small family of errors, turned into a toast or an API answer at the edge, once.

UserError                400  the request or setting is wrong; the message says what to change
├── ContextTooLong       400  the prompt does not fit the model's context
├── NoChatTemplate       400  a conversation, and no template to put it to the model with
├── NotAllowed           401  a key or login is missing or wrong
│   └── TooManyTries     429  wrong ones too often: it is not looked at before some seconds are over
├── Forbidden            403  who asks is known, and may not do this
├── NotFound             404  no such model, chat, preset, …
├── ReadOnly             403  the server may not write there
├── Conflict             409  the thing is in use, or exists already
├── TooLarge             413  more was sent than is taken at once
├── Unavailable          503  right now this cannot be done: no model loaded, out of memory, queue full
│   └── EngineGone       503  the engine behind the model has died
└── DiskFull             507  there is no room to keep it
"""

from __future__ import annotations


class UserError(Exception):
    """A sentence for the person who asked: what is wrong, and what to do. Never a traceback.

    `param` names the field of the request or setting that is at fault, where there is one.
    """

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ContextTooLong(UserError):
    """tokens: how long the prompt is, where that is known."""

    code = "context_length_exceeded"

    def __init__(self, message: str, *, param: str | None = None, tokens: int | None = None) -> None:
        super().__init__(message, param=param)
        self.tokens = tokens


class NoChatTemplate(UserError):
    """The one sentence for it, wherever the template is looked for."""

    def __init__(self) -> None:
        super().__init__(
            "This model has no chat template, and its name fits none that is known. "
            "Choose one by name, or continue plain text (in the API: /v1/completions).",
            param="template",
        )


class NotAllowed(UserError):
    status = 401
    code = "invalid_api_key"


class TooManyTries(NotAllowed):
    """seconds: how long to wait before the next try."""

    status = 429
    code = "too_many_tries"

    def __init__(self, seconds: int) -> None:
        super().__init__(f"Too many wrong passwords or keys from here: wait {seconds} s before the next try.")
        self.seconds = seconds


class Forbidden(UserError):
    status = 403
    code = "forbidden"


class ReadOnly(UserError):
    """where: a file or folder that may not be written."""

    status = 403
    code = "read_only"

    def __init__(self, where: object, reason: str | None) -> None:
        super().__init__(
            f"{where} cannot be written ({reason or 'no permission'}), and nothing can be saved there. "
            "Let the user who runs this program write it."
        )


class NotFound(UserError):
    status = 404
    code = "not_found"


class Conflict(UserError):
    status = 409
    code = "conflict"


class TooLarge(UserError):
    status = 413
    code = "request_too_large"


class Unavailable(UserError):
    status = 503
    code = "unavailable"


class EngineGone(Unavailable):
    """Whoever holds the model lets go of it: it answers nothing any more."""


class DiskFull(UserError):
    """where: a file or folder on that disk."""

    status = 507
    code = "disk_full"

    def __init__(self, where: object) -> None:
        super().__init__(f"The disk of {where} is full, and nothing can be saved on it. Make room there, then try again.")
