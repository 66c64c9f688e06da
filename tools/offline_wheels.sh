#!/usr/bin/env bash
# Gathers what tests/gpu needs on a machine without network that has torch, transformers and accelerate, pip, and
# the packages that those bring along:   tools/offline_wheels.sh OUT   and, over there,
#   make test-gpu OFFLINE_WHEELS=OUT
# For Python 3.12 on x86-64 Linux, or PYTHON_VERSION=3.11. bitsandbytes (--load-in-4bit), as large as all others
# together, only with WITH="bitsandbytes". W&B, plotly, espeak-ng and silero-vad, which tests/gpu does without, are
# left out.
set -euo pipefail
out=${1:?usage: tools/offline_wheels.sh OUT}
python=${PYTHON_VERSION:-3.12} most=$((60 * 1024 * 1024))
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .tools/bin/uv)
pip=("$uv" run --quiet --no-project --with pip python -m pip --disable-pip-version-check)

packages=(
    peft deepspeed hjson ninja einops msgpack py-cpuinfo
    jiwer rapidfuzz click whisper-normalizer more-itertools indic-numtowords pyspellchecker webdataset braceexpand
    soundfile cffi pycparser miniaudio torchaudio
    pydantic pydantic-core annotated-types typing-inspection typing-extensions
    rich markdown-it-py mdurl pygments
    matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing python-dateutil six
    pytest pytest-timeout pluggy iniconfig
    ${WITH:-}
)
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
printf '%s\n' "${packages[@]}" | "$uv" pip compile --quiet --no-deps --no-header --no-annotate \
    --constraints constraints.txt --python-version "$python" --python-platform x86_64-manylinux_2_28 - >"$pins"

platforms=()
for platform in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014; do
    platforms+=(--platform "${platform}_x86_64")
done
# DeepSpeed comes as source; without its compiled operations its wheel is Python alone
grep -v '^deepspeed==' "$pins" >"$pins.wheels"
"${pip[@]}" download --quiet --no-deps --only-binary :all: --python-version "$python" "${platforms[@]}" \
    --dest "$out" --requirement "$pins.wheels"
rm "$pins.wheels"
DS_BUILD_OPS=0 "${pip[@]}" wheel --quiet --no-deps --wheel-dir "$out" "$(grep '^deepspeed==' "$pins")"

size=$(du --bytes --summarize "$out" | cut -f1)
echo "$out: $(ls "$out" | wc -l) wheels for Python $python, $((size / 1024 / 1024)) MiB"
if ((size > most)); then
    echo "that is more than $((most / 1024 / 1024)) MiB" >&2
    [[ -n "${WITH:-}" ]] || exit 1
fi
