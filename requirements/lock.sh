#!/usr/bin/env bash
# Resolves the newest versions that fit pyproject.toml, and pins all of them; with --lowest the lowest
# ones that it names, and the newest of the rest that fit these.
#
#     requirements/lock.sh [--lowest] PYTHON FILE REQUIREMENT...
#
# e.g. requirements/lock.sh python3.11 requirements/constraints.txt '.[dev]'. The comment at the head
# of FILE is kept. PYTHON should be the oldest supported one: what it can run, the later ones can.
set -euo pipefail

lowest=false
if [ "$1" = --lowest ]; then
    lowest=true
    shift
fi
python=$1 file=$2
shift 2

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if "$lowest"; then
    "$python" requirements/lowest.py >"$scratch/pins"
    export PIP_CONSTRAINT="$scratch/pins"
fi
"$python" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet --upgrade setuptools
pip install --quiet --editable "$@"
{
    sed -n '/^#/p' "$file"
    pip freeze --all --exclude pip --exclude-editable | LC_ALL=C sort --ignore-case
} >"$scratch/lock"
cp "$scratch/lock" "$file"
