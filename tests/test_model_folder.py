"""A model folder of the user's is looked at before the start: what is missing, cut or without a meaning."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from research.model_folder import folder_faults


@pytest.fixture
def model(tmp_path):
    """A folder with all that is looked at."""
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1, "pad_token_id": None}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file({"weight": np.ones(1000, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_whole_folder_has_no_faults(model):
    assert list(folder_faults(model)) == []
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert list(folder_faults(model)) == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "its tokenizer is missing"),
        ("model.safetensors", "its weights are missing"),
    ],
)
def test_a_missing_file_is_named(model, name, fault):
    (model / name).unlink()
    (found,) = folder_faults(model)
    assert found.startswith(fault)


@pytest.mark.parametrize("left", [0, 4, 20, 2000])
def test_weights_that_were_cut_are_named(model, left):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    (found,) = folder_faults(model)
    assert found.startswith("model.safetensors is damaged: ") and "\n" not in found


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_description_that_was_cut_is_named(model, name, text):
    (model / name).write_text(text)
    (found,) = folder_faults(model)
    assert found.startswith(f"{name} is damaged: ")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("eos_token_id", "</s>"), ("eos_token_id", [1, "2"]), ("eos_token_id", 1.5), ("pad_token_id", [1])],
)
def test_a_token_that_is_no_number_is_named(model, name, key, value):
    (model / name).write_text(json.dumps({key: value}))
    (found,) = folder_faults(model)
    assert found == f"{name}: {key} is {value!r}, not the number of a token"


def test_a_shard_that_is_missing_is_named(model):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (found,) = folder_faults(model)
    assert found.startswith("model-00002-of-00002.safetensors is missing")
