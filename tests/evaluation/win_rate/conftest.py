from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pluralpref.evaluation.win_rate import Answer, Prompt, make_pairs


def completion(content, **message):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content, **message}}]}).encode()


class JudgeServer:
    """A chat endpoint on a free port. ``reply(body, number)`` gives (status, body) or (status, body, headers).

    ``number`` counts requests from 0. A float in the place of a status is a pause in seconds before status 200, None
    closes the connection without a word.
    """

    def __init__(self, reply, port=0):
        self.requests, self.headers = [], []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append((self.path, dict(self.headers)))
                status, content, *more = reply(body, number)
                if status is None:
                    self.connection.close()
                    return
                if isinstance(status, float):
                    time.sleep(status)
                    status = 200
                with contextlib.suppress(OSError):  # who waited too long has gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    for name, value in (more[0] if more else {}).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True

            def handle_error(self, request, client_address):
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(name="completion")
def completion_fixture():
    """The body of a chat completion with this content."""
    return completion


@pytest.fixture
def serve():
    servers = []

    def start(reply, port=0):
        servers.append(JudgeServer(reply, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def pairs_of():
    """Pairs from (policy's answer, baseline's answer), with prompts of their own unless they are given."""

    def make(answers, prompts=None):
        texts = prompts or [f"Question {i}?" for i in range(len(answers))]
        asked = [Prompt(i, text) for i, text in enumerate(texts)]
        sides = [[Answer(i, pair[k], "stop", None) for i, pair in enumerate(answers)] for k in (0, 1)]
        return make_pairs(asked, *sides)

    return make
