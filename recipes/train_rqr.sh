#!/usr/bin/env bash
# Train a query reasoner with GRPO: sets up .venv, prepares data, builds the index, starts the retriever, trains, evaluates.
#
#   bash recipes/train_rqr.sh                             # by this machine: the GPU profile, or the CPU one
#   bash recipes/train_rqr.sh --help                      # all options
#   bash recipes/train_rqr.sh --hardware gpu --dry-run    # what would run, on any machine
exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" rqr "$@"
