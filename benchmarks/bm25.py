"""How long BM25 takes to build and to search, and whether its answers are those of scoring every passage.

    python -m benchmarks.bm25                          # 188,002 generated passages, in three minutes
    python -m benchmarks.bm25 --corpus corpus.jsonl    # passages of your own

The comparison with gensim wants `pip install gensim`, that with Lucene `pip install pyserini` and Java 11 or
later; where they are absent it says so.

Generated passages have 150 to 200 words drawn by Zipf's law, the stop words most often, as in English. 194
queries are two passages long and each leaves out 5,000 passages, as BRIGHT's TheoremQA does.
"""

import json
import math
import resource
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from retriever_server.building.build import BuildOptions, create_index
from retriever_server.corpus import Corpus
from retriever_server.indexes import Queries, Settings, index_class
from retriever_server.indexes.analysis import STOP_WORDS, Analyzer
from retriever_server.indexes.bm25 import Bm25Index
from retriever_server.indexes.options import Bm25Options

SEED = 42
KINDS = ("bm25", "bm25_query_weighted")
QUERIES, EXCLUDED, TOP_K = 194, 5000, 1000
VOCABULARY = 300_000
SHORTEST, LONGEST = 150, 200
CHECKED = 3


@click.command()
@click.option("--passages", default=188_002, show_default=True, help="To generate.")
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), help="Read this one instead.")
@click.option("--compared", default=2000, show_default=True, help="Passages to compare with others over.")
def main(passages: int, corpus: Path | None, compared: int) -> None:
    """Build, search, compare, and print the figures."""
    random = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = corpus or _generate(folder / "corpus.jsonl", passages, random)
        for kind in KINDS:
            _build(source, folder / kind, kind)
        texts = _queries(Corpus(folder / KINDS[0]), random)
        excluded = _excluded(len(Corpus(folder / KINDS[0])), random)
        for kind in KINDS:
            _search(folder / kind, kind, texts, excluded)
        _compare_with_gensim(folder, compared)
        _compare_with_lucene(Corpus(folder / KINDS[0]), compared)


def _generate(path: Path, count: int, random: np.random.Generator) -> Path:
    """Corpus rows of words by Zipf's law: the word of rank r is r^-1.07 as frequent as the first."""
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    lengths = random.integers(3, 12, VOCABULARY)
    words = np.array([*STOP_WORDS, *("".join(random.choice(letters, length)) for length in lengths)])
    shares = np.cumsum(np.arange(1, len(words) + 1) ** -1.07)
    with path.open("w") as file:
        for row in range(count):
            drawn = random.random(random.integers(SHORTEST, LONGEST + 1)) * shares[-1]
            text = " ".join(words[np.searchsorted(shares, drawn)].tolist())
            file.write(json.dumps({"id": row, "contents": text}) + "\n")
    return path


class Clock:
    """Time since it was made, as text: of the clock on the wall, and of processors, which other programs that
    run at the same time do not lengthen.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        wall, processors = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        return f"{wall:.2f} s ({processors:.2f} s of processors)"


def _build(source: Path, target: Path, kind: str) -> None:
    clock = Clock()
    manifest, _ = create_index(BuildOptions(corpus=source, target=target, encoder="", kind=kind))
    took, memory = str(clock), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = sum(mark.bytes for mark in manifest.files.values()) / 1e9
    print(
        f"{kind}: {manifest.count:,} passages built in {took}, index of {size:.2f} GB, "
        f"at most {memory:.2f} GB of memory so far"
    )


def _queries(corpus: Corpus, random: np.random.Generator) -> list[str]:
    pairs = random.integers(len(corpus), size=(QUERIES, 2))
    return [f"{corpus[first].contents} {corpus[second].contents}" for first, second in pairs.tolist()]


def _excluded(count: int, random: np.random.Generator) -> list[np.ndarray]:
    size = min(EXCLUDED, count // 2)
    return [random.choice(count, size, replace=False) for _ in range(QUERIES)]


def _search(folder: Path, kind: str, texts: list[str], excluded: list[np.ndarray]) -> None:
    """Time the search with excluded passages left out of a longer list, and check the first answers."""
    clock = Clock()
    index = _opened(folder, kind)
    print(f"{kind}: opened in {clock}")
    for which in ("first", "second"):  # the first reads the file
        clock = Clock()
        scores, rows = index.search(Queries(texts), TOP_K + len(excluded[0]))
        answers = [_without(*answer) for answer in zip(scores, rows, excluded, strict=True)]
        took = str(clock)
        words = np.mean([len(text.split()) for text in texts])
        print(
            f"{kind}: {len(texts)} queries of {words:.0f} words, {len(excluded[0]):,} passages excluded, "
            f"top {TOP_K}, on one thread, {which} time: {took}"
        )
    everything = exhaustive(kind, Corpus(folder), texts[:CHECKED])
    for scored, left_out, answer in zip(everything, excluded, answers, strict=False):
        scored[left_out] = 0
        _assert_best(scored, *answer)
    print(f"{kind}: the answers to {CHECKED} queries are those of scoring every passage")


def _opened(folder: Path, kind: str) -> Bm25Index:
    index: Bm25Index = index_class(kind)(folder, Settings(Bm25Options()))
    return index


def _without(scores: np.ndarray, rows: np.ndarray, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = ~np.isin(rows, excluded)
    return scores[kept][:TOP_K], rows[kept][:TOP_K]


def _assert_best(expected: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
    """`rows` are the best of all `expected` scores, in order, up to what float32 weights can tell apart."""
    found = rows[rows >= 0]
    assert len(found) == min(TOP_K, np.count_nonzero(expected)) and len(set(found.tolist())) == len(found)
    best = np.sort(expected)[::-1][: len(found)]
    assert np.allclose(scores[: len(found)], best, rtol=1e-6) and np.allclose(
        expected[found], best, rtol=1e-6
    )


def exhaustive(kind: str, corpus: Corpus, queries: list[str]) -> np.ndarray:
    """The formulas of indexes/bm25.py over each passage, analysed anew: float64 [queries, passages]."""
    analyzer, k1, b = Analyzer(), 0.9, 0.4
    asked = [Counter(analyzer.terms(query)) for query in queries]
    wanted = set().union(*asked)
    counts, lengths = [], []
    for row in tqdm(range(len(corpus)), desc="scoring every passage", mininterval=1, leave=False):
        terms = analyzer.terms(corpus[row].contents)
        lengths.append(len(terms))
        counts.append(Counter(filter(wanted.__contains__, terms)))
    frequencies, mean = Counter(term for found in counts for term in found), sum(lengths) / len(lengths)

    def saturation(count: int, length: int) -> float:
        return count / (count + k1 * (1 - b + b * length / mean))

    scores = np.zeros((len(queries), len(corpus)))
    for i, query in enumerate(asked):
        known = {term: count for term, count in query.items() if term in frequencies}
        idf = {term: math.log((len(corpus) + 1) / (frequencies[term] + 0.5)) for term in known}
        weights = (
            known
            if kind == "bm25"
            else {term: idf[term] * saturation(count, sum(known.values())) for term, count in known.items()}
        )
        for row, (found, length) in enumerate(zip(counts, lengths, strict=True)):
            scores[i, row] = sum(
                weights[term] * idf[term] * saturation(count, length)
                for term, count in found.items()
                if term in known
            )
    return scores


def _compare_with_gensim(folder: Path, count: int) -> None:
    """Both kinds against the library that BRIGHT's figures come from, over some passages: there, too, they
    differ in what the query's terms weigh.
    """
    if not find_spec("gensim"):
        print("gensim: not installed, not compared")
        return
    from gensim.corpora import Dictionary
    from gensim.models import LuceneBM25Model
    from gensim.similarities import SparseMatrixSimilarity

    texts = _contents(Corpus(folder / KINDS[0]), count)
    analyzed = [Analyzer().terms(text) for text in texts]
    dictionary = Dictionary(analyzed)
    model = LuceneBM25Model(dictionary=dictionary, k1=0.9, b=0.4)
    weighted = model[[dictionary.doc2bow(terms) for terms in analyzed]]
    options = {"normalize_queries": False, "normalize_documents": False}
    theirs = SparseMatrixSimilarity(weighted, num_docs=len(texts), num_terms=len(dictionary), **options)
    source = folder / "some.jsonl"
    source.write_text("".join(json.dumps({"id": i, "contents": text}) + "\n" for i, text in enumerate(texts)))
    bags = [dictionary.doc2bow(terms) for terms in analyzed[:50]]
    asked = {"bm25": bags, "bm25_query_weighted": [model[bag] for bag in bags]}
    for kind, queries in asked.items():
        create_index(BuildOptions(corpus=source, target=folder / f"some_{kind}", encoder="", kind=kind))
        scores, rows = _opened(folder / f"some_{kind}", kind).search(Queries(texts[:50]), len(texts))
        expected = np.stack([theirs[query] for query in queries])
        found = np.take_along_axis(expected, np.maximum(rows, 0), axis=1)
        different = np.abs(found / scores - 1)[rows >= 0].max()
        print(f"gensim: {kind}: 50 queries over {len(texts):,} passages differ by at most {different:.1e}")


def _compare_with_lucene(corpus: Corpus, count: int) -> None:
    """Our terms against those of Lucene's English analyser, over some passages."""
    if not find_spec("pyserini"):
        print("Lucene: Pyserini is not installed, not compared")
        return
    try:
        from pyserini.analysis import Analyzer as Theirs
        from pyserini.analysis import get_lucene_analyzer

        theirs = Theirs(get_lucene_analyzer())
    except Exception as error:  # of Java: absent, too old
        print(f"Lucene: cannot be started, not compared ({error})")
        return
    ours, texts = Analyzer(), _contents(corpus, count)
    equal = sum(ours.terms(text) == list(theirs.analyze(text)) for text in texts)
    print(f"Lucene: {equal:,} of {len(texts):,} passages have the same terms")


def _contents(corpus: Corpus, count: int) -> list[str]:
    return [corpus[row].contents for row in range(min(count, len(corpus)))]


if __name__ == "__main__":
    main()
