"""The cold start: tokenizer, demonstrations, and a short training run that transformers can load."""

import random
import unicodedata
from itertools import islice
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from research.datasets.mini import demonstrations as mini_demonstrations
from research.datasets.mini import tokenizer as mini_tokenizer
from research.datasets.mini.demonstrations import CLEAN, FAULTS, SearchDemonstration, demonstrations
from research.datasets.mini.language import first_names, name_words
from research.datasets.mini.policy import (
    SIZES,
    TOKENS_PER_STEP,
    Training,
    batches,
    build_model,
    cold_start,
    main,
    stages_of,
    tokenised,
)
from research.datasets.mini.tokenizer import BOX, END, PAD, START, TAGS, train_tokenizer
from research.datasets.mini.world import pool_of
from research.episode.protocol import Protocol, extract_answer, format_fault


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="module")
def shown() -> list[SearchDemonstration]:
    """Demonstrations of every kind."""
    return list(islice(demonstrations(seed=1, hops=(1, 2, 3, 4)), 600))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that 20 steps leave, and what was printed."""
    out = tmp_path_factory.mktemp("policy") / "new"
    result = CliRunner().invoke(main, ["--out", str(out), "--steps", "20", "--hops", "2"])
    assert result.exit_code == 0, result.output
    return out, result.output


@settings(max_examples=300)
@given(text=st.text() | st.text(alphabet=" \n\t.<>/\\{}the founder of was born in"))
def test_tokenizer_keeps_any_text(tokenizer: Qwen2Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_tags_are_single_tokens_and_not_special(tokenizer: Qwen2Tokenizer) -> None:
    assert tokenizer.encode("".join(TAGS)) == tokenizer.convert_tokens_to_ids(list(TAGS))
    assert set(tokenizer.all_special_tokens) == {PAD, START, END}
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
    ids = tokenizer.encode(f"<think> x</think>{END}")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think> x</think>"


def test_names_tags_and_box_are_cheap(tokenizer: Qwen2Tokenizer) -> None:
    single = [*first_names(), *(f" {word}" for word in name_words()), BOX, *TAGS]
    assert [text for text in single if len(tokenizer.encode(text)) != 1] == []
    assert len(tokenizer) < 1500


def test_chat_template(tokenizer: Qwen2Tokenizer) -> None:
    messages = [{"role": "system", "content": "Search."}, {"role": "user", "content": "Who?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    system, user = f"{START}system\nSearch.{END}\n", f"{START}user\nWho?{END}\n"
    assert text == f"{system}{user}{START}assistant\n"


def test_demonstrations_keep_the_protocol(shown: list[SearchDemonstration]) -> None:
    for each in shown:
        turns = [text for text, is_policy in each.segments if is_policy]
        assert format_fault(turns, Protocol()) is None, each
        assert extract_answer(turns, Protocol()) == each.answer
        assert len(each.segments) == 2 * len(turns) - 1
        assert all(text.count("\n") == 3 for text, is_policy in each.segments if not is_policy)


def test_demonstrations_are_imperfect_as_documented() -> None:
    several = list(islice(demonstrations(seed=1, hops=(2, 3)), 1000))
    # Two thirds of relations lead to a person or a city.
    assert sum("early" in each.faults for each in several) / 1000 == pytest.approx(
        0.78 * FAULTS.early, abs=0.08
    )
    assert sum("guess" in each.faults for each in several) / 1000 == pytest.approx(FAULTS.guess, abs=0.03)
    assert {fault for each in several for fault in each.faults} == set(vars(FAULTS))
    assert not [each for each in several if each.right and each.faults & {"early", "guess", "resign"}]
    assert 0.15 < sum(each.right for each in several) / 1000 < 0.5


def test_clean_demonstrations_are_right_and_search_again_after_a_miss() -> None:
    clean = list(islice(demonstrations(seed=1, hops=(2,), rates=CLEAN), 500))
    assert not [each for each in clean if each.faults]
    assert sum(each.right for each in clean) / 500 > 0.85
    assert any(len(each.segments) > 5 for each in clean)


def test_demonstrations_know_practice_names_only(shown: list[SearchDemonstration]) -> None:
    names = {name for each in shown for name in (each.answer, *each.golden_answers) if name != "no idea"}
    assert {pool_of(name) for name in names if len(name.split()) == 2} == {"practice"}


def test_loss_covers_turns_and_nothing_else(
    tokenizer: Qwen2Tokenizer, shown: list[SearchDemonstration]
) -> None:
    for each in shown[:200]:
        example = tokenised(tokenizer, each)
        pairs = list(zip(*example, strict=True))
        trained = tokenizer.decode([token for token, counted in pairs if counted])
        ignored = tokenizer.decode([token for token, counted in pairs if not counted])
        assert trained == "".join(text for text, is_policy in each.segments if is_policy) + END
        blocks = "".join(text for text, is_policy in each.segments if not is_policy)
        assert ignored == f"{START}user\n{each.question}{END}\n{START}assistant\n{blocks}"


def test_episodes_are_short(tokenizer: Qwen2Tokenizer) -> None:
    episodes = list(islice(demonstrations(seed=2, hops=(2,)), 300))
    blocks = [text for each in episodes for text, is_policy in each.segments if not is_policy]
    assert sum(len(tokenizer.encode(text)) for text in blocks) / len(blocks) < 40
    lengths = sorted(len(tokenised(tokenizer, each)[0]) for each in episodes)
    assert lengths[int(0.9 * len(lengths))] < 200


def test_batches_pad_on_the_right_within_the_budget(tokenizer: Qwen2Tokenizer) -> None:
    examples = [tokenised(tokenizer, each) for each in islice(demonstrations(seed=3, hops=(2, 3)), 160)]
    seen = 0
    for ids, mask in islice(batches(iter(examples * 2), random.Random(0), tokenizer.pad_token_id), 12):
        assert ids.shape == mask.shape and ids.numel() <= TOKENS_PER_STEP
        for row, counted in zip(ids.tolist(), mask.tolist(), strict=True):
            length = len(row) - row[::-1].index(tokenizer.eos_token_id)
            assert set(row[length:]) <= {tokenizer.pad_token_id} and not any(counted[length:])
            seen += 1
    assert seen > 60


def test_a_fresh_model_already_looks_at_the_token_to_copy(tokenizer: Qwen2Tokenizer) -> None:
    names = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(" ".join(first_names()[1:60])))
    model = build_model(tokenizer, SIZES["tiny"], seed=0).eval()
    model.set_attn_implementation("eager")
    followed = []
    with torch.no_grad():
        for place in range(5, 55, 5):
            seen = model(torch.tensor([[*names, names[place]]]), output_attentions=True).attentions
            followed.append(seen[1][0, 0, -1, place + 1].item())
    back = seen[0][0, 0].diagonal(-1)[5:]
    assert back.mean() > 0.8  # layer 0, head 0 looks at the previous token
    assert sum(followed) / len(followed) > 0.1  # layer 1, head 0 at what followed; evenly spread it were 0.02


def test_training_lowers_the_loss_and_repeats_itself(tokenizer: Qwen2Tokenizer) -> None:
    def train(seed: int) -> tuple[list[float], torch.Tensor]:
        model = build_model(tokenizer, SIZES["tiny"], seed)
        losses = list(cold_start(model, tokenizer, Training(stages_of(seed, (2,)), seed, steps=6)))
        return losses, torch.cat([weights.flatten() for weights in model.parameters()])

    (losses, weights), (again, same), (_, other) = train(0), train(0), train(1)
    assert losses == again and torch.equal(weights, same) and not torch.equal(weights, other)
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_training_by_the_clock_ends(tokenizer: Qwen2Tokenizer) -> None:
    model = build_model(tokenizer, SIZES["tiny"], 0)
    stages = stages_of(0, (1,), clean=True)
    assert list(cold_start(model, tokenizer, Training(stages, 0, seconds=0.5)))


def test_saved_folder_loads_as_it_was(tokenizer: Qwen2Tokenizer, trained: tuple[Path, str]) -> None:
    folder, _ = trained
    model, loaded = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen2" and model.dtype == torch.float32
    assert model.generation_config.eos_token_id == loaded.eos_token_id == loaded.convert_tokens_to_ids(END)
    assert model.config.max_position_embeddings >= 2048 and model.config.tie_word_embeddings
    assert {path.suffix for path in folder.iterdir()} >= {".safetensors", ".json"}
    for each in islice(demonstrations(seed=4, hops=(2,)), 50):
        # transformers chooses the tokenizer's class by the model's: the ids must survive that.
        assert tokenised(loaded, each) == tokenised(tokenizer, each)
    prompt = loaded("Who?", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3).shape[1] <= prompt["input_ids"].shape[1] + 3


def test_the_command_reports_and_leaves_nothing_else(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert "step 20: loss" in printed and f"saved in {folder}" in printed
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "1", "--seconds", "1"], "not both"),
        (["--hops", "5"], "give numbers from 1 to 4"),
        (["--size", "huge"], "'huge' is not one of"),
        ([], "exists already"),
    ],
)
def test_mistakes_end_in_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    result = CliRunner().invoke(main, ["--out", str(tmp_path), *options])
    assert result.exit_code in (1, 2)
    assert message in result.output and "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_showing_commands() -> None:
    result = CliRunner().invoke(mini_demonstrations.main, ["--count", "2", "--hops", "3"])
    assert result.exit_code == 0 and result.output.count("# ") == 2
    result = CliRunner().invoke(mini_tokenizer.main, ["the founder of Nalnia Wuskcorp"])
    assert result.exit_code == 0 and "' Wuskcorp'" in result.output
