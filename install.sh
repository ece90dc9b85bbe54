#!/bin/sh
# `./install.sh EXTRA…`: install the library, editable, and extras of pyproject.toml into .venv, by uv or else by pip.
#
# With uv and no choice of PyTorch's build: what uv.lock has, to the byte. Otherwise the versions of constraints.txt, of
# which each of PyTorch's builds is one.
set -eu
cd "$(dirname "$0")"
VIRTUAL_ENV=$PWD/.venv UV_PROJECT_ENVIRONMENT=$PWD/.venv # uv's default is the environment of the calling shell
PATH=$VIRTUAL_ENV/bin:$PATH
export VIRTUAL_ENV UV_PROJECT_ENVIRONMENT PATH
extras=$(echo "$*" | tr ' ' ,)
if command -v uv > /dev/null; then
    tool=uv build=${UV_TORCH_BACKEND:-} choice="UV_TORCH_BACKEND=cpu"
else
    tool=pip build=${PIP_EXTRA_INDEX_URL:-} choice="PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
fi

echo "Installing neuron-pruning[$extras] into .venv, with $tool."
if [ "$(uname)" = Linux ] && [ -z "$build" ] && ! ls -d .venv/lib/python*/site-packages/torch > /dev/null 2>&1; then
    echo "PyPI's torch for Linux brings CUDA's libraries: 3.0 GB to download, 5.4 GB on disk for 'make run'. The CPU's"
    echo "build alone is 0.4 GB to download and 1.5 GB on disk: export $choice"
fi

if [ "$tool" = pip ]; then
    [ -d .venv ] || "${PYTHON:-python3}" -m venv .venv
    python -m pip --version > /dev/null 2>&1 || python -m ensurepip > /dev/null
    # Modules are compiled when they are first imported, which most are not: it saves 0.4 GB and a part of the time.
    python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[$extras]"
elif [ -n "$build" ]; then
    [ -d .venv ] || uv venv --quiet
    uv pip install --quiet --constraint constraints.txt --editable ".[$extras]"
else
    uv sync --quiet --frozen --inexact $(printf -- '--extra %s ' "$@")
fi
