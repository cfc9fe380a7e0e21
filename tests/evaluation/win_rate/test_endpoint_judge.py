from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from pluralpref.errors import ConfigError, InferenceError
from pluralpref.evaluation.win_rate import ChatEndpoint, EndpointJudge, collect_verdicts, summarize

ANSWERS = [("good", "bad"), ("bad", "good"), ("good", "good"), ("good", "bad")]


def judge(url, *, max_attempts=3, concurrency=1, **more):
    options = {"timeout": 5.0, "max_retries": 2, "backoff": 0.01, **more}
    return EndpointJudge(ChatEndpoint(url, "some-judge", **options), max_attempts=max_attempts, concurrency=concurrency)


def material(body):
    return json.loads(body["messages"][1]["content"])


def honest(body):
    """The verdict of a judge that likes "good"."""
    shown = material(body)
    first, second = shown["answer_A"].startswith("good"), shown["answer_B"].startswith("good")
    return "TIE" if first == second else "A" if first else "B"


def collect(pairs, url, path, **options):
    return collect_verdicts(pairs, judge(url, **options), path, progress=False)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_both_orders_are_asked_and_saved(serve, completion, pairs_of, tmp_path, concurrency):
    server = serve(lambda body, n: (200, completion(json.dumps({"verdict": honest(body)}))))
    path = tmp_path / "verdicts.jsonl"
    options = {"concurrency": concurrency, "request_options": {"temperature": 0}}
    verdicts = collect(pairs_of(ANSWERS), server.url, path, **options)
    assert [(v.prompt_id, v.order, v.winner) for v in verdicts] == [
        (0, "policy_first", "policy"), (0, "baseline_first", "policy"),
        (1, "policy_first", "baseline"), (1, "baseline_first", "baseline"),
        (2, "policy_first", "tie"), (2, "baseline_first", "tie"),
        (3, "policy_first", "policy"), (3, "baseline_first", "policy"),
    ]  # fmt: skip
    assert sorted(lines(path), key=lambda r: (r["prompt_id"], r["order"] != "policy_first")) == [
        v.as_record() for v in verdicts
    ]
    assert len(server.requests) == 8
    assert {(b["model"], b["temperature"]) for b in server.requests} == {("some-judge", 0)}
    assert {path for path, _ in server.headers} == {"/v1/chat/completions"}
    assert summarize(pairs_of(ANSWERS), verdicts, num_bootstrap=10).estimates["win_rate"].value == 0.625
    # Everything is there: nothing is asked, also where the endpoint has gone.
    server.close()
    before = path.read_bytes()
    assert collect(pairs_of(ANSWERS), server.url, path, **options) == verdicts
    assert path.read_bytes() == before


def test_replies_outside_of_the_protocol_are_asked_again_then_invalid(serve, completion, pairs_of, tmp_path):
    def reply(body, n):
        if material(body)["prompt"] == "odd":
            return 200, completion("I like A")
        return 200, completion("Hm." if len(body["messages"]) == 2 else "TIE")

    server = serve(reply)
    pairs = pairs_of(ANSWERS[:2], ["odd", "even"])
    verdicts = collect(pairs, server.url, tmp_path / "v.jsonl")
    assert [(v.verdict, v.raw, v.attempts) for v in verdicts] == [
        ("INVALID", ["I like A"] * 3, 3),
        ("INVALID", ["I like A"] * 3, 3),
        ("TIE", ["Hm.", "TIE"], 2),
        ("TIE", ["Hm.", "TIE"], 2),
    ]
    asked = server.requests[-1]["messages"]
    assert [m["role"] for m in asked] == ["system", "user", "assistant", "user"]
    assert asked[2]["content"] == "Hm."
    counts = summarize(pairs, verdicts, num_bootstrap=10).counts
    assert (counts["invalid_verdicts"], counts["pairs_with_invalid_verdicts"], counts["pairs_used"]) == (2, 1, 1)


def test_no_content_is_an_invalid_reply(serve, completion, pairs_of, tmp_path):
    server = serve(lambda body, n: (200, completion(None, refusal="I can't help with that.")))
    verdicts = collect(pairs_of(ANSWERS[:1]), server.url, tmp_path / "v.jsonl", max_attempts=1)
    assert [(v.verdict, v.raw) for v in verdicts] == [("INVALID", ["I can't help with that."])] * 2


@pytest.mark.parametrize(
    "trouble",
    [
        (429, b"slow down"),
        (429, b"", {"Retry-After": "0.05"}),
        (500, b"oops"),
        (503, b"", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
        (200, b"<html>maintenance</html>"),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [{"message": {"content": 7}}]}'),
        (200, b'[{"choices": 1}]'),
        (200, b"\xff\xfe"),
        (0.5, b"{}"),
        (None, b""),
    ],
    ids=str,
)
def test_passing_trouble_is_waited_for(serve, completion, pairs_of, tmp_path, trouble):
    server = serve(lambda body, n: trouble if n in (1, 2) else (200, completion("A")))
    verdicts = collect(pairs_of(ANSWERS[:1]), server.url, tmp_path / "v.jsonl", timeout=0.2)
    assert [v.verdict for v in verdicts] == ["A", "A"]
    assert len(server.requests) == 4
    assert [r["attempts"] for r in lines(tmp_path / "v.jsonl")] == [1, 1]  # replies, not requests


def test_retry_after_is_heeded(serve, completion, pairs_of, tmp_path):
    times = []

    def reply(body, n):
        times.append(time.monotonic())
        return (429, b"", {"Retry-After": "0.4"}) if n == 0 else (200, completion("A"))

    collect(pairs_of(ANSWERS[:1]), serve(reply).url, tmp_path / "v.jsonl")
    assert times[1] - times[0] >= 0.4


def test_a_reply_that_trickles_ends(pairs_of, tmp_path):
    """Each byte comes in time, the whole never would."""
    listener = socket.create_server(("127.0.0.1", 0))
    going = threading.Event()

    def trickle(connection):
        try:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not going.wait(0.05):
                connection.sendall(b" ")
        except OSError:
            pass
        connection.close()

    def listen():
        try:
            while True:
                threading.Thread(target=trickle, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            pass

    threading.Thread(target=listen, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    begin = time.monotonic()
    with pytest.raises(InferenceError, match=r"no whole reply within 0\.3 seconds"):
        collect(pairs_of(ANSWERS[:1]), url, tmp_path / "v.jsonl", timeout=0.3, max_retries=0)
    assert time.monotonic() - begin < 3
    going.set()
    listener.close()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_endpoint_that_goes_away_loses_no_verdict(serve, completion, pairs_of, tmp_path, concurrency):
    pairs = pairs_of([("good", "bad")] * 6)
    path = tmp_path / "v.jsonl"

    def dying(body, n):
        return (200, completion(honest(body))) if n < 5 else (None, b"")

    server = serve(dying)
    with pytest.raises(
        InferenceError, match=r"no usable reply in \d attempts; the last: .*\. 5 of 12 verdicts are in"
    ) as caught:
        collect(pairs, server.url, path, concurrency=concurrency)
    assert "run the same again to go on" in str(caught.value)
    first = path.read_bytes()
    assert len(lines(path)) == 5
    server.close()
    with pytest.raises(InferenceError, match="5 of 12 verdicts"):  # nobody listens
        collect(pairs, server.url, path, concurrency=concurrency)
    assert path.read_bytes() == first
    path.write_bytes(first[:-4])  # and the last line was cut
    back = serve(lambda body, n: (200, completion(honest(body))))
    verdicts = collect(pairs, back.url, path, concurrency=concurrency)
    assert [v.winner for v in verdicts] == ["policy"] * 12
    assert len(back.requests) == 12 - 4
    assert path.read_bytes().startswith(first[: first[:-4].rfind(b"\n") + 1])


def test_a_comparison_that_the_endpoint_cannot_take_is_invalid(serve, completion, pairs_of, tmp_path):
    def reply(body, n):
        prompt = material(body)["prompt"]
        if prompt == "long":
            return 400, b'{"error": "context length exceeded"}'
        return (500, b"crash") if prompt == "bad" else (200, completion("TIE"))

    server = serve(reply)
    pairs = pairs_of(ANSWERS[:3], ["long", "bad", "fine"])
    verdicts = collect(pairs, server.url, tmp_path / "v.jsonl", max_retries=1)
    assert [v.verdict for v in verdicts] == ["INVALID"] * 4 + ["TIE"] * 2
    assert "status 400" in verdicts[0].raw[0]
    assert "context length exceeded" in verdicts[0].raw[0]
    assert "status 500: crash" in verdicts[2].raw[0]


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, ConfigError, "status 401: no: check address, model and key"),
        (404, ConfigError, "status 404"),
        (302, ConfigError, "status 302"),
        (400, InferenceError, "refuses the request with status 400: no"),
    ],
)
def test_what_retries_cannot_mend_ends_at_once(serve, pairs_of, tmp_path, status, error, message):
    server = serve(lambda body, n: (status, b"no"))
    with pytest.raises(error, match=message) as caught:
        collect(pairs_of(ANSWERS), server.url, tmp_path / "v.jsonl")
    assert "0 of 8 verdicts" in str(caught.value)
    assert len(server.requests) == (2 if status == 400 else 1)
    assert lines(tmp_path / "v.jsonl") == []


def test_the_key_is_sent_and_never_written(serve, completion, pairs_of, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server = serve(lambda body, n: (200, completion("A sk-secret")) if n < 3 else (401, b"wrong key sk-secret"))
    with pytest.raises(ConfigError) as caught:
        collect(pairs_of(ANSWERS), server.url, tmp_path / "v.jsonl", api_key_env="MY_KEY")
    assert server.headers[0][1]["Authorization"] == "Bearer sk-secret"
    content = (tmp_path / "v.jsonl").read_text()
    assert "A [key]" in content
    assert "secret" not in content + str(caught.value)
    monkeypatch.delenv("MY_KEY")
    quiet = serve(lambda body, n: (200, completion("A")))
    collect(pairs_of(ANSWERS[:1]), quiet.url, tmp_path / "w.jsonl", api_key_env="MY_KEY")
    assert "Authorization" not in quiet.headers[0][1]


def test_verdicts_of_other_judges_and_answers_are_refused(serve, completion, pairs_of, tmp_path):
    server = serve(lambda body, n: (200, completion("A")))
    path = tmp_path / "v.jsonl"
    collect(pairs_of(ANSWERS), server.url, path)
    with pytest.raises(ConfigError, match=r"judge\.max_attempts was 3, is 2"):
        collect(pairs_of(ANSWERS), server.url, path, max_attempts=2)
    with pytest.raises(ConfigError, match="baseline_answers was"):
        collect(pairs_of([*ANSWERS[:3], ("good", "new")]), server.url, path)
    with pytest.raises(ConfigError, match="prompts was"):
        collect(pairs_of(ANSWERS, list("abcd")), server.url, path)
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        ("http://user:pass@localhost/v1", {}, "holds credentials"),
        ("http://localhost/v1?key=1", {}, "holds credentials or a query"),
        ("localhost:8000/v1", {}, "expected something like"),
        ("ftp://localhost/v1", {}, "expected something like"),
        ("http://localhost:abc", {}, "is no address"),
        ("http://localhost/v1", {"timeout": 0}, "timeout=0"),
        ("http://localhost/v1", {"max_retries": -1}, "max_retries=-1"),
        ("http://localhost/v1", {"request_options": {"stream": True}}, "'stream' is not yours to set"),
        ("http://localhost/v1", {"concurrency": 0}, "concurrency=0"),
    ],
)
def test_options_out_of_range(url, more, message):
    with pytest.raises(ConfigError, match=message):
        judge(url, **more)
