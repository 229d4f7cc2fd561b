"""Our end of the OpenAI protocol: one client for each engine, requests that can be cut at any moment, errors in sentences."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from modules.errors import ContextTooLong, EngineGone, NotFound, Unavailable, UserError
from modules.settings import proxies
from modules.settings.addresses import is_loopback

if TYPE_CHECKING:
    import httpx2
    import openai
    from openai import OpenAI

_SECONDS_TO_CONNECT = 10
_SECONDS_FOR_HEALTH = 5
_DEAD = ("EngineDeadError", "EngineCore encountered an issue", "engine loop has died", "loop has errored already")
"""What vLLM says, as a bad request too, once the process that computes has died: its server outlives that by a moment."""
_LONG_CONTEXT = ("context_length_exceeded", "exceed_context_size", "maximum context length", "context length of")


class Line:
    """One request's connection. `cut` ends it from any thread, whether it waits for an answer or reads one."""

    def __init__(self) -> None:
        self.cut_off = False
        self._stream: Any = None

    def note(self, event: str, details: dict[str, Any]) -> None:
        """Called by httpcore at each step; the newest stream is the one that carries the request."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = details["return_value"]
            if self.cut_off:
                self._shut()

    def cut(self) -> None:
        self.cut_off = True
        self._shut()

    def _shut(self) -> None:
        wire = self._stream and self._stream.get_extra_info("socket")
        if wire is not None:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)


class Client:
    """The pinned openai client for one address. Safe to use from any thread."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._api_key = api_key or "none"
        self._here = threading.local()
        self._client: OpenAI | None = None
        self._making = threading.Lock()

    @property
    def openai(self) -> OpenAI:
        with self._making:
            if self._client is None:
                import httpx2
                from openai import OpenAI

                # A connection for each request, so that cutting one is cutting that request.
                http = httpx2.Client(
                    timeout=httpx2.Timeout(None, connect=_SECONDS_TO_CONNECT),
                    limits=httpx2.Limits(max_keepalive_connections=0),
                    event_hooks={"request": [self._trace]},
                    trust_env=not is_loopback(urlsplit(self.base_url).hostname or ""),
                )
                self._client = OpenAI(base_url=self.base_url, api_key=self._api_key, max_retries=0, http_client=http)
            return self._client

    def _trace(self, request: httpx2.Request) -> None:
        if line := getattr(self._here, "line", None):
            request.extensions["trace"] = line.note

    @contextmanager
    def on(self, line: Line) -> Iterator[OpenAI]:
        """The client, whose requests on this thread go over `line`."""
        self._here.line = line
        try:
            yield self.openai
        finally:
            self._here.line = None

    def root(self, path: str) -> str:
        """The address of something that the engine has beside the protocol: http://host/path for http://host/v1."""
        return f"{self.base_url.removesuffix('/v1')}{path}"

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON that stands beside the protocol at `path`; None where there is nothing. Raises UserError."""
        import openai

        with self.errors():
            try:
                if body is None:
                    return self.openai.get(self.root(path), cast_to=object)
                return self.openai.post(self.root(path), cast_to=object, body=body)
            except (openai.NotFoundError, openai.APIResponseValidationError):
                return None

    @contextmanager
    def errors(self, model: str = "") -> Iterator[None]:
        """What goes wrong inside becomes a UserError that says what to do."""
        import httpx2
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._refusal(error.status_code, _message(error), model) from error
        except openai.APIConnectionError as error:
            raise Unavailable(
                f"No engine answers at {self.base_url}{self._through}. Start it, or correct the address."
            ) from error
        except openai.APIError as error:  # within a stream, whose status was sent long ago
            raise self._refusal(self._status_within(error), _message(error), model) from error
        except httpx2.HTTPError as error:
            raise Unavailable(f"The connection to {self.base_url}{self._through} broke off: {error}.") from error

    @property
    def _through(self) -> str:
        return proxies.through(self.base_url)

    def is_well(self) -> bool:
        """Whether an engine is there that does not call itself ill; one without a word for its health is well."""
        import openai

        try:
            self.openai.get(self.root("/health"), cast_to=object, options={"timeout": _SECONDS_FOR_HEALTH})
        except openai.APIStatusError as error:
            return error.status_code < 500
        except openai.APIConnectionError:
            return False
        except openai.APIError:
            return True
        return True

    def _status_within(self, error: openai.APIError) -> int:
        """The status that a failure in the middle of a reply would have had: a bad request, or a fault of the engine's own."""
        body = error.body if isinstance(error.body, dict) else {}
        told, kind = body.get("code"), str(body.get("type") or "").lower()
        bad = 400 <= told < 500 if isinstance(told, int) else "badrequest" in kind or "invalid_request" in kind
        return 400 if bad and self.is_well() else 500

    def _refusal(self, status: int, message: str, model: str) -> UserError:
        host = urlsplit(self.base_url).netloc
        if any(sign in message for sign in _DEAD):
            return EngineGone(f"The engine at {host} has died: {message}")
        if any(sign in message for sign in _LONG_CONTEXT):
            return ContextTooLong(f"{host} says: {message}", param="messages")
        match status:
            case 401 | 403:
                return UserError(f"{host} refuses the key: {message} Set --remote-api-key.", param="remote_api_key")
            case 404:
                return NotFound(f"{host} has no model called {model}: {message}", param="model")
            case 429:
                return Unavailable(f"{host} has too much to do: {message}")
            case _ if status >= 500 or status == 407:
                return Unavailable(f"{host} failed{self._through} (status {status}): {message}")
            case _:
                return UserError(f"{host} refuses the request: {message}")

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _message(error: Any) -> str:
    """Engines put their sentence in different places; openai's own text has the whole answer in it."""
    body = error.body
    if isinstance(body, str) and body:
        return body
    if isinstance(body, dict):
        found = body.get("message") or body.get("detail") or body.get("error")
        kind = body.get("type") or body.get("code") or ""
        if isinstance(found, str):
            return f"{found} ({kind})" if any(sign in str(kind) for sign in _LONG_CONTEXT) else found
    return error.message
