"""How the page's events behave: private, quick, and what users can act on becomes a message that passes, in their language."""

from __future__ import annotations

import functools
import html
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from gradio.context import LocalContext

from modules.access import ANYONE
from modules.app import App
from modules.errors import UserError
from modules.i18n.sentences import SCOPE_KEY, said, spoken
from modules.services.workspace import Workspace

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""For every event: /v1 is the one API of this server."""


ASKS = "tl-asks"
"""The class of buttons that ask the server: static/busy.js has them off, and saying so, from the click until the answer."""


def note() -> gr.JSON:
    """Where the handler of a button puts what the page is to say of it (undo.told); placed once in a tab."""
    return gr.JSON(visible="hidden", show_label=False)


def asks(
    button: gr.Button,
    function: Callable[..., Any],
    inputs: Any = None,
    outputs: Any = None,
    said: gr.JSON | None = None,
    **more: Any,
) -> None:
    """What a button asks the server for. said: where `function` puts what the page says when it is answered."""
    assert button.elem_id, "the script finds the button by its id"
    button.elem_classes = [*(button.elem_classes or ()), ASKS]
    asked = button.click(function, inputs, outputs, **{**PRIVATE, **more})
    answered(asked, button.elem_id)
    if said is not None:
        say_it(asked, said)


def answered(event: Any, id_: str) -> None:
    """Tells the script when the server has answered `event`, however; id_: of the button, or as `untilAnswered` is told."""
    event.then(None, None, None, js=f"() => {{ TEXTLOOM.answered({json.dumps(id_)}); }}", **PRIVATE)


def say_it(event: Any, said: gr.JSON) -> None:
    """After `event`, what its handler put into `said`."""
    event.success(None, said, None, js="(note) => { TEXTLOOM.say(note); }", **PRIVATE)


def owner_of(request: gr.Request) -> str:
    """Who did this: the login name, or everyone's where no login is asked for."""
    return request.username or ANYONE


def workspace_of(app: App, request: gr.Request) -> Workspace:
    """What whoever did this can do."""
    return Workspace(app, owner_of(request))


def _language() -> str:
    """Of whoever did what is being answered; Gradio answers later and elsewhere, and keeps the request."""
    request = LocalContext.request.get(None)
    return request.request.scope.get(SCOPE_KEY, "en") if request is not None and request.request is not None else "en"


def told(function: Callable[P, R]) -> Callable[P, R]:
    """A handler whose UserErrors are shown as messages; anything else keeps its traceback in the log and says so.

    Gradio shows the message as HTML, and names of files and models are in it.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def steps(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            language = _language()  # Gradio tells it at the first step alone, and makes each in another thread
            with closing(function(*args, **kwargs)) as made:
                while True:
                    with _told(language):
                        try:
                            step = next(made)
                        except StopIteration:
                            return
                    yield step

        return steps  # pyright: ignore[reportReturnType]

    @functools.wraps(function)
    def handler(*args: P.args, **kwargs: P.kwargs) -> R:
        with _told(_language()):
            return function(*args, **kwargs)

    return handler


@contextmanager
def _told(language: str) -> Iterator[None]:
    with spoken(language):
        try:
            yield
        except UserError as error:
            raise gr.Error(html.escape(said(error.message)), duration=9, title="", print_exception=False) from None
        except gr.Error:
            raise
        except Exception as error:
            log.exception("an event of the page failed")
            sentence = f"Something broke: {error}. The server's log says more."
            raise gr.Error(html.escape(said(sentence)), print_exception=False) from error
