#!/usr/bin/env bash
# Resolves the newest versions that fit pyproject.toml, and pins all of them.
#
#     requirements/lock.sh PYTHON FILE REQUIREMENT...
#
# e.g. requirements/lock.sh python3.11 requirements/constraints.txt '.[dev]'. The comment at the head
# of FILE is kept. PYTHON should be the oldest supported one: what it can run, the later ones can.
set -euo pipefail

python=$1 file=$2
shift 2

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --upgrade setuptools
pip install --quiet --editable "$@"
{
    sed -n '/^#/p' "$file"
    pip freeze --all --exclude pip --exclude-editable | LC_ALL=C sort --ignore-case
} >"$scratch/lock"
cp "$scratch/lock" "$file"
