"""What the values of an evaluation's configuration may be: a rule for each key. The keys themselves are
documented in research/config/eval_multihop.yaml and eval_bright.yaml.
"""

from collections.abc import Mapping
from typing import Any

from research.values import (
    ABOVE_0,
    ANY_TEXT,
    AT_LEAST_0,
    FROM_0_TO_1,
    LIMITS,
    PROTOCOL,
    RETRIEVER,
    SECTION,
    SERVER_MAXIMUM,
    SHARE,
    SWITCH,
    TEXT,
    URL,
    Rule,
    check,
    check_limits,
    flattened,
    integer,
    is_text,
    is_url,
    list_of,
    or_null,
)


def _is_model(value: Any) -> bool:
    return is_text(value) and (is_url(value) or not value.startswith(("http://", "https://")))


def _names(example: str) -> Rule:
    words = f"a list of at least one name, like [{example}]"
    return Rule(lambda value: isinstance(value, list) and bool(value) and all(map(is_text, value)), words)


MODEL = Rule(_is_model, "a model's folder or name, or an address like http://127.0.0.1:8000")
OPTIONAL = {"retriever.contents"}  # no key of the files, but a field of the client's configuration
COMMON = {
    **dict.fromkeys(("protocol", "retriever", "engine", "sampling"), SECTION),
    **PROTOCOL,
    "engine.tokenizer": or_null(TEXT),
    "engine.dtype": TEXT,
    "engine.max_model_len": or_null(integer(1)),
    "engine.tensor_parallel_size": integer(1),
    "engine.gpu_memory_utilization": SHARE,
    "engine.api_key_variable": or_null(ANY_TEXT),
    "engine.served_name": or_null(TEXT),
    "engine.timeout": ABOVE_0,
    "engine.deadline": ABOVE_0,
    "sampling.temperature": AT_LEAST_0,
    "sampling.top_p": SHARE,
    "sampling.top_k": integer(0),
    "sampling.repetition_penalty": ABOVE_0,
    "sampling.seed": integer(0),
    "concurrency": integer(1),
    "question_timeout": ABOVE_0,
}
MULTIHOP = {
    **COMMON,
    **dict.fromkeys(("limits", "baselines", "judge"), SECTION),
    **LIMITS,
    **RETRIEVER,
    "datasets": _names("hotpotqa"),
    "methods": _names("research"),
    "limit": or_null(integer(1)),
    "prompt": TEXT,
    "engine.model": MODEL,
    "baselines.answer_tokens": integer(1),
    "baselines.ircot_steps": integer(1),
    "baselines.iter_retgen_rounds": integer(1),
    "judge.url": or_null(URL),
    "judge.model": or_null(TEXT),
    "judge.api_key_variable": or_null(ANY_TEXT),
    "judge.concurrency": integer(1),
    "judge.timeout": ABOVE_0,
    "judge.deadline": ABOVE_0,
}
BRIGHT = {
    **COMMON,
    "rewriting": SECTION,
    "tasks": _names("biology"),
    **dict.fromkeys(("data", "revision", "queries", "field"), or_null(TEXT)),
    "long": SWITCH,
    "allow_missing": SWITCH,
    "mode": TEXT,
    "weight": integer(1),
    "fusion": TEXT,
    "rrf_k": integer(0),
    "engine.model": or_null(MODEL),
    "retriever.kind": TEXT,
    "retriever.k1": AT_LEAST_0,
    "retriever.b": FROM_0_TO_1,
    "retriever.options": list_of(is_text, "a list like [lexical=bm25_query_weighted]"),
    "retriever.top_k": integer(1, SERVER_MAXIMUM),
    "retriever.batch": integer(1),
    "retriever.in_flight": integer(1),
    "retriever.timeout": ABOVE_0,
    "retriever.deadline": ABOVE_0,
    "rewriting.prompt": TEXT,
    "rewriting.think": or_null(SWITCH),
    "rewriting.tokens": integer(1),
    "rewriting.samples": integer(1),
}


def check_multihop(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a key of eval_multihop.yaml that is gone, or whose value has no meaning."""
    flat = _checked(values, MULTIHOP)
    check_limits(flat)
    if flat["judge.url"] is not None and flat["judge.model"] is None:
        raise ValueError("judge.model: which model is the judge?")


def check_bright(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a key of eval_bright.yaml that is gone, or whose value has no meaning."""
    _checked(values, BRIGHT)


def _checked(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    flat = flattened(values)
    check(flat, rules)
    if gone := sorted(rules.keys() - flat.keys() - OPTIONAL):
        raise ValueError(f"no value for {', '.join(gone)}")
    return flat
