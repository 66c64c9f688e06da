#!/usr/bin/env bash
# Runs the system's Python with this checkout and the wheels that tools/offline_wheels.sh gathered, without network:
#   tools/offline_python.sh WHEELS [ARGUMENTS OF PYTHON]
set -euo pipefail
wheels=$(realpath "${1:?usage: tools/offline_python.sh WHEELS [ARGUMENTS]}")
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} target=build/offline
if [[ ! -e $target/.complete || "$wheels" -nt $target/.complete ]]; then
    rm -rf "$target"
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$target" "$wheels"/*.whl
    touch "$target/.complete"
fi
export PYTHONPATH="$PWD/$target:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$@"
