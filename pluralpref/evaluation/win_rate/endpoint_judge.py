"""A language model behind an OpenAI-compatible endpoint as judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from pluralpref.errors import ConfigError
from pluralpref.evaluation.win_rate.endpoint import ChatEndpoint, EndpointFailed, RequestRefused
from pluralpref.evaluation.win_rate.judge import Comparison, Verdict
from pluralpref.evaluation.win_rate.protocol import CRITERION, first_messages, read_verdict, reminder

#: Any judge can be asked this; whether it replies tells an endpoint that is gone from a comparison that it can't take.
_PROBE = Comparison(-1, "policy_first", "What is 2 + 2?", "4", "5")


class EndpointJudge:
    """Asks a model through :class:`~pluralpref.evaluation.win_rate.endpoint.ChatEndpoint`, several requests at a time.

    A reply outside of the protocol is answered with a reminder; after ``max_attempts`` replies the verdict is INVALID,
    with all of them in ``raw``. Where the endpoint refuses a comparison or fails on it after all retries, a made-up one is
    tried: if that is answered the comparison is asked once more and then recorded as INVALID with the reason, otherwise
    the endpoint is gone and judging ends.

    :param endpoint: the client; closed when judging ends.
    :param criterion: a sentence that says which answer is better, for the system prompt.
    :param max_attempts: replies to a comparison, at least 1.
    :param concurrency: requests at a time.
    """

    def __init__(
        self, endpoint: ChatEndpoint, *, criterion: str = CRITERION, max_attempts: int = 3, concurrency: int = 1
    ) -> None:
        if max_attempts < 1 or concurrency < 1:
            raise ConfigError(f"max_attempts={max_attempts} and concurrency={concurrency} must be at least 1")
        self.endpoint, self.criterion = endpoint, criterion
        self.max_attempts, self.concurrency = max_attempts, concurrency

    @property
    def settings(self) -> dict[str, Any]:
        """Model, request and system prompt. Not the address: the same model may come back elsewhere."""
        return {
            "kind": "endpoint",
            "model": self.endpoint.model,
            "request_options": self.endpoint.request_options,
            "system_prompt": first_messages(_PROBE, self.criterion)[0]["content"],
            "max_attempts": self.max_attempts,
        }

    def judge(self, comparisons: Sequence[Comparison]) -> Iterator[Verdict]:
        """Verdicts as replies come in.

        :raises EndpointFailed: when the endpoint is gone, once the requests in flight have ended.
        :raises ConfigError: when it doesn't know address, model or key.
        :raises RequestRefused: when it refuses every request.
        """
        waiting = iter(comparisons)
        failure: BaseException | None = None
        pending: set[Future[Verdict]] = set()
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while True:
                    while failure is None and len(pending) < self.concurrency:
                        following = next(waiting, None)
                        if following is None:
                            break
                        pending.add(pool.submit(self._ask, following))
                    if not pending:
                        break
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        error = future.exception()
                        if error is None:
                            yield future.result()
                        else:
                            failure = failure or error
                            self.endpoint.stop_retrying()
            finally:
                self.endpoint.close()
        if failure is not None:
            raise failure

    def _ask(self, c: Comparison) -> Verdict:
        try:
            return self._converse(c)
        except (EndpointFailed, RequestRefused):
            if self.endpoint.stopped:
                raise
            self.endpoint.complete(first_messages(_PROBE, self.criterion))  # raises if nothing gets through
        try:
            return self._converse(c)
        except (EndpointFailed, RequestRefused) as error:
            if self.endpoint.stopped:
                raise
            return Verdict(c.prompt_id, c.order, "INVALID", [str(error)])

    def _converse(self, c: Comparison) -> Verdict:
        messages = first_messages(c, self.criterion)
        replies: list[str] = []
        while len(replies) < self.max_attempts:
            replies.append(self.endpoint.complete(messages))
            verdict = read_verdict(replies[-1])
            if verdict is not None:
                return Verdict(c.prompt_id, c.order, verdict, replies, len(replies))
            messages = messages + reminder(replies[-1])
        return Verdict(c.prompt_id, c.order, "INVALID", replies, len(replies))
