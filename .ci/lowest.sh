#!/usr/bin/env bash
# A part of the tests with the oldest versions that pyproject.toml allows, in .venv-lowest:   .ci/lowest.sh UV
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(realpath -- "$(command -v "$1")")
# a copy without [tool.uv], which pins the newest
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sed '/^\[tool\.uv\]/,/^\]/d' pyproject.toml >"$folder/pyproject.toml"
(cd "$folder" && "$uv" pip compile --quiet --resolution lowest-direct --group dev --python-version 3.11 \
    --no-annotate --no-header --output-file lowest.txt pyproject.toml >/dev/null)
"$uv" venv --quiet --allow-existing --python 3.11 .venv-lowest
export VIRTUAL_ENV=$PWD/.venv-lowest
"$uv" pip sync --quiet "$folder/lowest.txt"
"$uv" pip install --quiet --no-deps --editable .
grep -E '^(torch|transformers|accelerate|peft|deepspeed)==' "$folder/lowest.txt"
# loading and adapters of every family, scoring, and a run from speech to verdict
shopt -s globstar
exec .venv-lowest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" \
    tests/e2e/test_training.py tests/unit/**/test_{adapters,audio,config,exact,families,runtime,score,shards}.py
