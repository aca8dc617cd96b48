#!/usr/bin/env bash
# Train a search agent with GRPO: sets up .venv, prepares data, builds the index, starts the retriever, trains, evaluates.
#
#   bash recipes/train_musique.sh                             # by this machine: the GPU profile, or the CPU one
#   bash recipes/train_musique.sh --help                      # all options
#   bash recipes/train_musique.sh --hardware gpu --dry-run    # what would run, on any machine
exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" musique "$@"
