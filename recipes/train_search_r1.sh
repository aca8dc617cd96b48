#!/usr/bin/env bash
# Train a search agent as Search-R1 did: its protocol, reward and hyper-parameters, on NQ and HotpotQA, or on the mini world.
#
#   bash recipes/train_search_r1.sh                             # by this machine: the GPU profile, or the CPU one
#   bash recipes/train_search_r1.sh --help                      # all options
#   bash recipes/train_search_r1.sh --hardware gpu --dry-run    # what would run, on any machine
exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" search_r1 "$@"
