"""The engine over a server, against a small one in this process: no network."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flopwise.data.tokenizer import ByteTokenizer
from flopwise.errors import FlopwiseError
from flopwise.infer.endpoint import Endpoint
from flopwise.infer.remote import RemoteEngine, complete

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


class Server:
    """Answers by `answer(path, question)`; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Answer = lambda path, question: (200, {"choices": [choice("ok")] * question["n"]})
        self.reply_headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(question)
                outer.headers.append(dict(self.headers))
                status, content = outer.answer(self.path, question)
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in outer.reply_headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"


def choice(text: str, reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"text": text, "message": {"role": "assistant", "content": text}, "finish_reason": reason, **more}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()


def ask(server: Server, **how: Any) -> Endpoint:
    return Endpoint(server.url, "tiny", **{"timeout_s": 5.0, "wait_s": 0.001, **how})


def test_completions_come_back_as_ids_with_the_stop_token_where_they_were_finished(server: Server) -> None:
    tok = ByteTokenizer()
    server.answer = lambda path, q: (
        200,
        {
            "choices": [choice("ab"), choice("abcd", "length")],
            "usage": {"prompt_tokens": 3, "completion_tokens": 6},
        },
    )
    prompts = [tok.encode("one"), tok.encode("two")]
    out = RemoteEngine(ask(server), tok).sample(prompts, n=2, max_tokens=4, stop=[tok.eos_id], seed=3)
    assert [q["prompt"] for q in server.asked] in (["one", "two"], ["two", "one"])
    assert out.finished.tolist() == [True, False, True, False]
    assert out.lengths.tolist() == [3, 4, 3, 4] and out.ids[0].tolist() == [*tok.encode("ab"), tok.eos_id, -1]
    assert out.prompt_index.tolist() == [0, 0, 1, 1] and out.sample_index.tolist() == [0, 1, 0, 1]
    assert (out.usage.prefill_tokens, out.usage.decode_tokens) == (6, 12)
    assert out.usage.unknown and out.usage.flops == 0.0
    assert np.isnan(out.logprobs[0, :3]).all() and out.logprobs[0, 3] == 0


def test_log_probabilities_are_taken_where_the_tokens_are_ours(server: Server) -> None:
    tok = ByteTokenizer()
    given = {"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.25], "top_logprobs": None}
    other = {"tokens": ["ab"], "token_logprobs": [-0.5], "top_logprobs": None}
    server.answer = lambda path, q: (
        200,
        {"choices": [choice("ab", "length", logprobs=given), choice("ab", "length", logprobs=other)]},
    )
    out = RemoteEngine(ask(server), tok, logprobs=True).sample([tok.encode("x")], n=2, max_tokens=2)
    assert out.logprobs[0].tolist() == [-0.5, -0.25] and np.isnan(out.logprobs[1]).all()


def test_prefixes_go_on_from_what_was_written_and_chats_cannot(server: Server) -> None:
    tok = ByteTokenizer()
    engine = RemoteEngine(ask(server), tok)
    engine.sample([tok.encode("q")], n=2, prefix_tokens=[tok.encode("1"), tok.encode("2")])
    assert sorted(q["prompt"] for q in server.asked) == ["q1", "q2"]
    chat = RemoteEngine(ask(server), tok, chat=True)
    chat.sample([tok.encode("q")])
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "q"}]
    with pytest.raises(FlopwiseError, match="cannot go on from a prefix"):
        chat.sample([tok.encode("q")], prefix_tokens=[[3]])
    with pytest.raises(FlopwiseError, match="no such call"):
        engine.score([[3, 4]], [1])


def test_a_server_that_gives_one_at_a_time_is_asked_again_with_other_seeds(server: Server) -> None:
    server.answer = lambda path, q: (200, {"choices": [choice(str(q["seed"]))]})
    found, _ = complete(ask(server), ["a"], n=3)
    assert len({c.text for c in found[0]}) == 3 and len(server.asked) == 3


def test_trouble_that_passes_is_tried_again_and_other_trouble_is_told(server: Server) -> None:
    tries: list[int] = []

    def busy(path: str, question: dict[str, Any]) -> tuple[int, Any]:
        tries.append(1)
        return (503, {"error": "starting"}) if len(tries) < 3 else (200, {"choices": [choice("ok")]})

    server.answer = busy
    assert complete(ask(server), ["a"])[0][0][0].text == "ok" and len(tries) == 3
    server.answer = lambda path, q: (429, {"error": {"message": "slow\ndown"}})
    with pytest.raises(FlopwiseError, match=r"answered 429 \(slow down\), after 2 tries; start again"):
        complete(ask(server, retries=1), ["a"])
    server.answer = lambda path, q: (404, {"error": {"message": "no model tiny"}})
    before = len(server.asked)
    with pytest.raises(FlopwiseError, match=r"404 \(no model tiny\); check url and model"):
        complete(ask(server), ["a"])
    assert len(server.asked) == before + 1


@pytest.mark.parametrize(
    "content", [b"<html>", b"[1]", b'{"choices": []}', b'{"choices": [{"x": 1}]}', b"{}"]
)
def test_answers_that_are_none_are_one_clear_line(server: Server, content: bytes) -> None:
    server.answer = lambda path, q: (200, content)
    with pytest.raises(FlopwiseError) as e:
        complete(ask(server, retries=1), ["a"])
    assert "\n" not in str(e.value) and "tiny@127.0.0.1" in str(e.value)


def test_nobody_there_and_bad_settings_are_told() -> None:
    with pytest.raises(FlopwiseError, match="cannot be reached"):
        complete(Endpoint("http://127.0.0.1:9/v1", "m", retries=0), ["a"])
    for how in ({"url": "file:///etc/passwd"}, {"timeout_s": 0.0}, {"retries": -1}, {"concurrency": 0}):
        with pytest.raises(FlopwiseError, match="endpoint:"):
            Endpoint(**{"url": "http://here/v1", "model": "m", **how})  # type: ignore[arg-type]


def test_a_slow_server_is_given_up(server: Server) -> None:
    release = threading.Event()
    server.answer = lambda path, q: (200 if release.wait(5) else 500, {"choices": [choice("late")]})
    with pytest.raises(FlopwiseError, match="cannot be reached"):
        complete(ask(server, timeout_s=0.1, retries=0), ["a"])
    release.set()


def test_what_was_answered_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    endpoint = ask(server, cache=tmp_path)
    first = endpoint.ask("/completions", [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 1}])
    assert len(server.asked) == 2 and len(list(tmp_path.iterdir())) == 2
    assert endpoint.ask("/completions", [{"prompt": "b", "n": 1}, {"prompt": "a", "n": 1}]) == first[::-1]
    assert len(server.asked) == 2
    next(tmp_path.iterdir()).write_text('{"cut')
    endpoint.ask("/completions", [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 1}])
    assert len(server.asked) == 3
    endpoint.ask("/completions", [{"prompt": "c", "n": 1}] * 5)
    assert len(server.asked) == 4


def test_the_key_goes_to_the_server_alone_and_no_redirect_takes_it_on(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-123")
    ask(server, key="SOME_KEY", cache=tmp_path).ask("/completions", [{"n": 1}])
    assert server.headers[0]["Authorization"] == "Bearer secret-123"
    assert not any("secret-123" in p.read_text() or "secret-123" in p.name for p in tmp_path.iterdir())
    server.reply_headers = {"Location": "http://127.0.0.1:9/elsewhere"}
    server.answer = lambda path, q: (307, {})
    with pytest.raises(FlopwiseError, match="307") as e:
        ask(server, key="SOME_KEY").ask("/completions", [{"n": 2}])
    assert "secret-123" not in str(e.value)
