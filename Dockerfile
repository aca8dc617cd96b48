# The GPU environment from its complete lock, and this checkout in it (docs/gpus.md). It has not been built yet.
#
#   docker build -t research-rl .
#   docker run --rm -it --gpus all --shm-size 16g -v "$PWD/runs:/research/runs" -v "$PWD/cache:/research/cache" research-rl \
#       bash recipes/train_musique.sh --dry-run
#
# CUDA 13 comes with the wheels of the lock, so the machine needs only NVIDIA's driver, 580 or newer, and the container toolkit.
# The image brings git, which setup_env.sh needs, and the C compiler that Triton calls.
FROM python:3.11-bookworm
WORKDIR /research

# The lock and what names the packages decide about this layer, of some 15 GB, and no other file.
COPY requirements/ requirements/
COPY recipes/setup_env.sh recipes/
COPY setup.py pyproject.toml ./
COPY research/__init__.py research/
COPY retriever_server/__init__.py retriever_server/
RUN --mount=type=cache,target=/root/.cache/pip bash recipes/setup_env.sh gpu

# With .git: a run writes down its commit.
COPY . .
ENV PATH=/research/.venv/bin:$PATH HF_HOME=/research/cache/huggingface
CMD ["bash", "recipes/train_musique.sh", "--help"]
