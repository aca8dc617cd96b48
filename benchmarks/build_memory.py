"""Build memory: what a build holds in main memory as the corpus grows, and so at 21 million passages.

    python -m benchmarks.build_memory --passages 250000 --passages 1000000

Made-up passages of 100 words; a tiny encoder stands in, since a real one holds the same few hundred MB
whatever the corpus. Memory is the process's own, sampled ten times a second: pages of mapped files, which the
system takes back when it needs them, are told apart.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.serving import ROOT

WIKI_PASSAGES = 21_015_324
WORDS = [f"w{number:x}" for number in range(50_000)]
MB = 1e6


@click.command()
@click.option("--passages", "sizes", multiple=True, type=int, default=(250_000, 1_000_000), show_default=True)
@click.option("--index", "kind", default="flat", show_default=True)
def main(sizes: tuple[int, ...], kind: str) -> None:
    """See the top of this file."""
    found = []
    with tempfile.TemporaryDirectory(prefix="build-memory-") as name:
        folder = Path(name)
        encoder = write_encoder(folder / "encoder")
        for size in sizes:
            corpus = write_corpus(folder / f"{size}.jsonl", size)
            own, mapped, seconds = build(corpus, folder / f"{size}", encoder, kind)
            found.append((size, own))
            print(
                f"{kind}, {size:,} passages, {corpus.stat().st_size / MB:,.0f} MB: "
                f"{own / MB:,.0f} MB of its own, {mapped / MB:,.0f} MB of mapped files, {seconds:.0f} s",
                flush=True,
            )
    (few, at_few), (many, at_many) = found[0], found[-1]
    slope = (at_many - at_few) / (many - few)
    print(
        f"{slope:.1f} bytes a further passage: {(at_many + slope * (WIKI_PASSAGES - many)) / 1e9:.1f} GB at "
        f"{WIKI_PASSAGES:,} passages"
    )


def write_encoder(folder: Path) -> Path:
    """A sentence-transformers folder that looks 32 numbers a word up."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*WORDS, "?"])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = torch.randn(len(WORDS) + 1, 32, generator=torch.Generator().manual_seed(0)).numpy()
    modules = [StaticEmbedding(tokenizer, embedding_weights=table)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


def write_corpus(path: Path, size: int) -> Path:
    """Rows of id and contents."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(size):
            words = " ".join(draw.choices(WORDS, k=100))
            file.write(json.dumps({"id": str(number), "contents": f"Title {number}\n{words}"}) + "\n")
    return path


def build(corpus: Path, index: Path, encoder: Path, kind: str) -> tuple[int, int, float]:
    """(most bytes of its own, most bytes of mapped files, seconds)"""
    command = [sys.executable, "-m", "retriever_server", "build", str(corpus), str(index), "--index", kind]
    began, own, mapped = time.monotonic(), 0, 0
    with subprocess.Popen(
        [*command, "--encoder", str(encoder)], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            sizes = memory(process.pid)
            own, mapped = max(own, sizes.get("RssAnon", 0)), max(mapped, sizes.get("RssFile", 0))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit("the build failed")
    return own, mapped, time.monotonic() - began


def memory(pid: int) -> dict[str, int]:
    """Bytes by the names of /proc/PID/status; empty when the process has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":") for line in lines if line.startswith("Rss"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


if __name__ == "__main__":
    main()
