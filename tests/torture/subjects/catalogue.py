"""All subjects, in the order of the report."""

import shutil

from tests.torture.subjects import (
    encrypted,
    keys,
    loading,
    models,
    parity,
    trust_stores,
    vouchers,
)
from tests.torture.subjects.base import Subject

MODULES = (models, vouchers, trust_stores, encrypted, keys, parity, loading)


def all_subjects():
    """The subjects by their class names."""
    found = {}
    for module in MODULES:
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Subject) and value.format:
                found.setdefault(name, value)
    return found


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
