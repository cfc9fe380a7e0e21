"""A client of an OpenAI-compatible chat endpoint that waits, tries again, and says what failed."""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from typing import Any

import httpx2

from pluralpref.errors import ConfigError, InferenceError

#: A reply that is longer is none.
_MOST_BYTES = 4 * 2**20
_LONGEST_WAIT = 60.0
#: What the request itself is to blame for, such as a context that is too long.
_REFUSALS = (400, 413, 422)
#: What passes.
_PASSING = (408, 409, 425, 429)


class EndpointFailed(InferenceError):
    """No usable reply after all attempts."""


class RequestRefused(InferenceError):
    """The endpoint doesn't take this request."""


class _Failure(Exception):
    """One attempt that may be repeated; ``wait`` is what the endpoint asked for, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class ChatEndpoint:
    """``POST {base_url}/chat/completions``.

    Timeouts, lost connections, statuses 408, 409, 425, 429 and 5xx, and replies that are no chat completion are tried
    again after min(60, backoff·2^k)·U seconds, U uniform in [0.5, 1], or what ``Retry-After`` says up to 60 seconds.
    Threads may share a client.

    :param base_url: with the version, as in ``http://localhost:8000/v1``.
    :param model: the model's name there.
    :param api_key_env: the environment variable that holds the key; an unset one means no key. The key is sent to the
        endpoint and nowhere else: messages and replies that repeat it have it blacked out.
    :param timeout: seconds for a whole reply.
    :param max_retries: further attempts after the first.
    :param backoff: seconds before the first of them.
    :param request_options: further fields of the request.
    :raises ConfigError: for an address that isn't one or holds credentials, and numbers out of range.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        max_retries: int = 5,
        backoff: float = 1.0,
        request_options: dict[str, Any] | None = None,
    ) -> None:
        try:
            url = httpx2.URL(base_url)
        except (httpx2.InvalidURL, TypeError) as error:
            raise ConfigError(f"base_url={base_url!r} is no address: {error}") from None
        if url.userinfo or url.query:
            raise ConfigError(
                f"base_url holds credentials or a query: give the key in the variable {api_key_env} instead"
            )
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"base_url={base_url!r}: expected something like http://localhost:8000/v1")
        if timeout <= 0 or max_retries < 0 or backoff < 0:
            raise ConfigError(
                f"timeout={timeout} must be greater than 0, max_retries={max_retries} and backoff={backoff} at least 0"
            )
        self.url = f"{str(url).rstrip('/')}/chat/completions"
        self.model, self.timeout, self.max_retries, self.backoff = model, timeout, max_retries, backoff
        self.request_options = dict(request_options or {})
        for name in ("model", "messages", "stream", "n"):
            if name in self.request_options:
                raise ConfigError(f"request_options: {name!r} is not yours to set")
        self._key = os.environ.get(api_key_env, "").strip()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(timeout=timeout, headers=headers)
        self._stop = threading.Event()
        self._random = random.Random()

    def close(self) -> None:
        """End what is in flight."""
        self._stop.set()
        self._client.close()

    def stop_retrying(self) -> None:
        """Let requests in flight end, but repeat none."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether requests are no longer repeated, so that a failure says little."""
        return self._stop.is_set()

    def complete(self, messages: list[dict[str, str]]) -> str:
        """The text of the first choice; "" where the model said nothing.

        :raises EndpointFailed: after the last attempt, saying what happened at it.
        :raises RequestRefused: for status 400, 413 or 422.
        :raises ConfigError: for a key, an address or a model that the endpoint doesn't know (other 3xx and 4xx).
        """
        for attempt in range(self.max_retries + 1):
            try:
                return self._once(messages)
            except _Failure as failure:
                last, wait = str(failure), failure.wait
            if attempt == self.max_retries:
                break
            pause = min(_LONGEST_WAIT, self.backoff * 2**attempt) * self._random.uniform(0.5, 1.0)
            if self._stop.wait(max(pause, min(wait, _LONGEST_WAIT))):
                break
        raise EndpointFailed(
            f"the endpoint {self.url} gave no usable reply in {attempt + 1} attempts; the last: {last}"
        )

    def _once(self, messages: list[dict[str, str]]) -> str:
        request = {"model": self.model, "messages": messages, **self.request_options}
        deadline = time.monotonic() + self.timeout
        body = bytearray()
        try:
            with self._client.stream("POST", self.url, json=request) as response:
                # The client's own timeout is for each piece: a reply that trickles would never end.
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > _MOST_BYTES:
                        raise _Failure(f"a reply of more than {_MOST_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise _Failure(f"no whole reply within {self.timeout:g} seconds")
        except httpx2.TimeoutException:
            raise _Failure(f"no reply within {self.timeout:g} seconds") from None
        except (httpx2.TransportError, httpx2.DecodingError, httpx2.StreamError, RuntimeError) as error:
            # RuntimeError: the client was closed meanwhile
            raise _Failure(self.without_key(f"{type(error).__name__}: {error}")) from None
        text = self.without_key(body.decode("utf-8", errors="replace"))
        if response.status_code != 200:
            self._refuse(response.status_code, text, response.headers.get("retry-after", ""))
        return self.without_key(_content(body))

    def _refuse(self, status: int, text: str, retry_after: str) -> None:
        said = f"status {status}: {' '.join(text.split())[:300] or 'no text'}"
        if status in _REFUSALS:
            raise RequestRefused(f"the endpoint {self.url} refuses the request with {said}")
        if status in _PASSING or status >= 500:
            try:
                wait = max(0.0, float(retry_after))
            except ValueError:  # none, or a date
                wait = 0.0
            raise _Failure(said, wait if math.isfinite(wait) else 0.0)
        raise ConfigError(f"the endpoint {self.url} answers with {said}: check address, model and key")

    def without_key(self, text: str) -> str:
        """``text`` with the key blacked out."""
        return text.replace(self._key, "[key]") if self._key else text


def _content(body: bytes | bytearray) -> str:
    """The text of a chat completion.

    :raises _Failure: if the body is none.
    """
    try:
        message = json.loads(body)["choices"][0]["message"]
        content = message.get("content")
        if content is None:
            content = message.get("refusal") or ""
        if not isinstance(content, str):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        shown = " ".join(bytes(body[:300]).decode("utf-8", errors="replace").split())
        raise _Failure(f"a reply that is no chat completion: {shown[:200]!r}") from None
    return content
