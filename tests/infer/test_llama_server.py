"""`RemoteEngine` and all strategies against a server that others wrote: llama.cpp's, through `xllamacpp`.

Its environment is one of its own: FLOPWISE_LLAMA_SERVER names the Python with xllamacpp. The model is
SmolLM2-135M-Instruct, the very file that `flopwise get smollm2-135m-instruct` fetches and converts.
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest

from flopwise.data.carriers import cache_folder
from flopwise.data.tokenizer import Tokenizer
from flopwise.infer.endpoint import Endpoint
from flopwise.infer.remote import RemoteEngine, complete
from flopwise.infer.solving import solve
from flopwise.infer.strategies import REGISTRY, make
from flopwise.models import shipped

NAME = "smollm2-135m-instruct"
PYTHON = os.environ.get("FLOPWISE_LLAMA_SERVER")
WHEEL = cache_folder() / shipped.MODELS[NAME].file
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="FLOPWISE_LLAMA_SERVER names no Python with xllamacpp"),
    pytest.mark.skipif(shipped.cached(NAME) is None or not WHEEL.is_file(), reason=f"{NAME} not fetched"),
]

SERVE = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_parallel, p.n_ctx, p.port, p.warmup = sys.argv[1], 4, 4096, 0, False
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(p)
print("ADDRESS", server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with zipfile.ZipFile(WHEEL) as z:
        file = z.extract(shipped.MODELS[NAME].member, tmp_path_factory.mktemp("gguf"))
    assert PYTHON is not None
    with subprocess.Popen(
        [PYTHON, "-c", SERVE, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        said = next((line for line in process.stdout if line.startswith("ADDRESS")), "")
        assert said, "the server did not start"
        yield said.split()[1] + "/v1"
        process.stdin.close()
        process.wait(30)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(shipped.here(NAME))


def test_samples_log_probabilities_stops_prefixes_and_usage(url: str, tokenizer: Tokenizer) -> None:
    engine = RemoteEngine(Endpoint(url, "any"), tokenizer, logprobs=True)
    prompts = tokenizer.encode_batch(["Q: 2 + 3\nA: 5\nQ: 4 + 1\nA:", "One, two, three,"])
    stop = [tokenizer.eos_id, *tokenizer.encode("\n")]
    out = engine.sample(prompts, n=3, max_tokens=8, stop=stop, seed=1)
    assert out.ids.shape[0] == 6 and (out.lengths <= 9).all() and out.finished.any()
    assert len({tuple(row) for row in out.ids[3:].tolist()}) > 1
    assert out.usage.prefill_tokens >= sum(map(len, prompts))
    # Of several answers to a prompt the server counts one; all are counted here.
    assert out.usage.decode_tokens >= out.lengths.sum() - out.finished.sum()
    written = out.completions()
    greedy = engine.sample(prompts, max_tokens=6, stop=stop, temperature=0.0)
    again = engine.sample(prompts, max_tokens=6, stop=stop, temperature=0.0)
    assert (greedy.ids == again.ids).all()
    # Going on from what was written is going on from the prompt with it.
    start = [ids[:2] for ids in greedy.completions()]
    rest = engine.sample(prompts, max_tokens=4, stop=stop, temperature=0.0, prefix_tokens=start)
    for i in range(2):
        assert start[i] + rest.completions()[i] == greedy.completions()[i]
    # The same file read here: log-probabilities differ by its rounding of activations and our seeds alone.
    from flopwise.infer.local import LocalEngine
    from flopwise.models import hf

    local = LocalEngine(hf.load(shipped.here(NAME)).eval(), weights="int4")
    rows = [i for i in range(6) if len(written[i]) > 1]
    scored = local.score([prompts[i // 3] + written[i] for i in rows], [len(prompts[i // 3]) for i in rows])
    given = [out.logprobs[i, : len(written[i])] for i in rows]
    known = [np.isfinite(g) for g in given]
    assert sum(k.sum() for k in known) > 10
    differences = np.concatenate([np.abs(s - g)[k] for s, g, k in zip(scored, given, known, strict=True)])
    assert np.median(differences) < 0.1


def test_chats_are_answered(url: str) -> None:
    answers, usage = complete(Endpoint(url, "any"), [[{"role": "user", "content": "Say hi."}]], 2, 6)
    assert len(answers[0]) == 2 and all(a.text for a in answers[0])
    assert usage.prefill_tokens > 5 and usage.decode_tokens > 5


def strategies() -> list[str]:
    judged = {"best_of_n": "logprob", "weighted": "verifier"}
    judged |= {name: "checker" for name in REGISTRY if "process" in make(name).__dict__.values()}
    return [f"{name}:{judged[name]}" if name in judged else name for name in REGISTRY]


@pytest.mark.parametrize("strategy", strategies())
def test_every_strategy_runs_against_it(url: str, strategy: str) -> None:
    found = solve(
        "any", ["3+4-2"], strategy, 2, task="chain", seed=1, style="few_shot", shots=2, max_tokens=12,
        endpoint=url, tokenizer=shipped.here(NAME),
    )  # fmt: skip
    (answer,) = found.answers
    assert answer.candidates and answer.tokens > 0 and not found.flops_known
