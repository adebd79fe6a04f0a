#!/usr/bin/env bash
# One machine: one process drives all of its accelerators.
# usage: single_node.sh CONFIG.py [--FIELD VALUE ...]
set -euo pipefail
exec dora-jax "${COMMAND:-train}" "$@"
