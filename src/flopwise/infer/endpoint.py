"""Asking a server over HTTP: time limits, retries, several questions at once, answers kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from flopwise.errors import FlopwiseError, one_line

KEY_VARIABLE = "OPENAI_API_KEY"
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Answers of a server that is busy or starting: worth another try."""
MOST_BYTES = 64 << 20
"""Of an answer."""
LONGEST_WAIT_S = 60.0


class _Stay(HTTPRedirectHandler):
    """A redirect would take the key, and the questions, to somebody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks the OpenAI protocol (vLLM, SGLang, llama.cpp, hosted ones).

    The key is read from the environment when something is asked and is in no file.

    Args:
        url: up to and with `/v1`.
        model: its name for the server.
        key: name of the environment variable with the key; none is sent where it is not set.
        timeout_s: of one try.
        retries: further tries, each after twice the wait of the one before, `wait_s` at first, or after what
            the server asks for.
        concurrency: questions under way at once.
        cache: folder in which answers are kept by the hash of their question: what is asked again, by a step
            that was stopped and goes on, is read there.

    Raises:
        FlopwiseError: the URL or a limit is out of range.
    """

    url: str
    model: str
    key: str = KEY_VARIABLE
    timeout_s: float = 60.0
    retries: int = 5
    wait_s: float = 0.5
    concurrency: int = 8
    cache: Path | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FlopwiseError(
                f"endpoint: url is {self.url!r:.120}, must be http(s)://host[:port]/v1 of the server"
            )
        if not self.timeout_s > 0 or self.retries < 0 or not 1 <= self.concurrency <= 256:
            raise FlopwiseError(
                f"endpoint: timeout_s={self.timeout_s} must be above 0, retries={self.retries} at least 0, "
                f"concurrency={self.concurrency} from 1 to 256"
            )

    @property
    def name(self) -> str:
        """For messages and ledgers: the model and where it runs."""
        parts = urlsplit(self.url)
        return f"{self.model}@{parts.hostname}" + (f":{parts.port}" if parts.port else "")

    def ask(
        self, path: str, questions: Sequence[dict[str, Any]], progress: Callable[[float], None] | None = None
    ) -> list[dict[str, Any]]:
        """The answers, in the order of the questions; equal questions are asked once.

        Raises:
            FlopwiseError: the server cannot be reached, refuses, or sends no JSON object.
        """
        keys = [self._hash(path, q) for q in questions]
        todo = dict(zip(keys, questions, strict=True))
        answers = {key: kept for key in todo if (kept := self._kept(key)) is not None}
        with ThreadPoolExecutor(self.concurrency) as pool:
            running = {
                pool.submit(self._answer, path, key, q): key for key, q in todo.items() if key not in answers
            }
            try:
                left = set(running)
                while left:
                    done, left = wait(left, return_when=FIRST_EXCEPTION, timeout=1.0)
                    answers |= {running[f]: f.result() for f in done}
                    if progress is not None:
                        progress(len(answers) / len(todo))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [answers[key] for key in keys]

    def _hash(self, path: str, question: dict[str, Any]) -> str:
        text = json.dumps([self.url.rstrip("/"), path, question], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _kept(self, key: str) -> dict[str, Any] | None:
        """An answer of before; what a killed process left half-written does not count."""
        if self.cache is None:
            return None
        try:
            content = json.loads((self.cache / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _answer(self, path: str, key: str, question: dict[str, Any]) -> dict[str, Any]:
        """Try until the server answers; keep what it said."""
        pause = self.wait_s
        for attempt in range(self.retries + 1):
            try:
                answer = self._once(path, question)
                break
            except _Passing as e:
                if attempt == self.retries:
                    raise FlopwiseError(f"{e}, after {attempt + 1} tries; start again when it answers") from e
                # Spread, so that all who were refused at once do not come back at once.
                time.sleep(min(LONGEST_WAIT_S, max(e.wait_s, pause * (0.5 + random.random()))))
                pause *= 2
        if self.cache is not None:
            from flopwise.records.folder import atomic_write

            self.cache.mkdir(parents=True, exist_ok=True)
            atomic_write(self.cache / f"{key}.json", json.dumps(answer))
        return answer

    def _once(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if secret := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {secret}"
        url = self.url.rstrip("/") + path
        request = Request(url, json.dumps(question).encode(), headers, method="POST")
        try:
            with build_opener(_Stay).open(request, timeout=self.timeout_s) as response:
                content = response.read(MOST_BYTES + 1)
        except HTTPError as e:
            said = _message(e.read(10_000))
            text = f"{self.name} answered {e.code}" + (f" ({said})" if said else "")
            if e.code in PASSING:
                raise _Passing(text, _seconds(e.headers)) from None
            hint = {401: f"set {self.key}", 403: f"check {self.key}", 404: "check url and model"}
            raise FlopwiseError(f"{text}; {hint.get(e.code, 'check the settings')}") from None
        except (URLError, OSError) as e:  # timeouts are OSErrors
            reason = getattr(e, "reason", e)
            raise _Passing(f"{self.name} cannot be reached ({one_line(reason, 120)})") from None
        if len(content) > MOST_BYTES:
            raise FlopwiseError(f"{self.name} sent more than {MOST_BYTES >> 20} MiB; lower max_tokens or n")
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise _Passing(f"{self.name} sent no JSON object but {one_line(content[:60], 80)}")
        return answer


class _Passing(Exception):
    """A trouble that may pass; `wait_s` is what the server asks for."""

    def __init__(self, text: str, wait_s: float = 0.0):
        super().__init__(text)
        self.wait_s = wait_s


def _seconds(headers: Message) -> float:
    """What Retry-After asks for, where it is a number."""
    try:
        return max(0.0, float(headers.get("Retry-After") or 0.0))
    except ValueError:
        return 0.0


def _message(body: bytes) -> str:
    """What a server says went wrong."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return one_line(body.decode(errors="replace"), 120)
    while isinstance(said, dict):
        said = said.get("error") or said.get("message") or said.get("detail") or ""
    return one_line(said, 200)
