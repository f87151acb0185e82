"""Finds what was changed in a signed model: tensors, pieces of files, files, and by how much.

Owns which signed words are believed, and how the findings on files become one report. One file is
compared in file_damage.py, a model in memory in locating_in_memory.py. Nothing is loaded, and no
untrusted byte is parsed to decide anything.
"""

import os
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from keras_modelsec._signing.trust import Threshold, Trust, TrustedKeys, load_trust
from keras_modelsec._storage import files
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.damage.file_damage import (
    FileValues,
    GoodValues,
    ModelValues,
    NoValues,
    damaged,
    examine,
)
from keras_modelsec.integrity.damage.tamper_report import FileDamage, TamperReport
from keras_modelsec.integrity.signing.describing import compare, list_model
from keras_modelsec.integrity.signing.evidence import Evidence, believed
from keras_modelsec.integrity.statements.manifest import SINGLE_FILE, Manifest
from keras_modelsec.integrity.statements.model_statement import ModelStatement
from keras_modelsec.integrity.statements.places import LeftOut, Places, check_ignored

_ATTEMPTS = 8  # to read a model that is being replaced by its owner
_ONLY_FILES = (
    "Only an OpenSSF signature vouches for this model, which does not know of tensors: files alone "
    "can be named. Sign with ms.sign to be told tensors."
)


def locate_tampering(
    path_or_model: Any,
    trusted_keys: TrustedKeys,
    *,
    reference: Any = None,
    signature_path: "str | os.PathLike[str] | None" = None,
    expected_name: str | None = None,
    threshold: Threshold = 1,
    ignore: "str | Iterable[str]" = (),
    progress: Progress = None,
) -> TamperReport:
    """Says which tensors of a signed model were changed, which pieces of files, and by how much.

    For a file or folder: each changed tensor by its name, each changed piece of up to 256 KiB,
    files added or missing, what was changed outside of tensors as far as it can be told, and bytes
    inserted, removed, cut off or appended. Tensors are found by the signed table of
    `NAME.modelsec.json` and decided by their own signed digests, also in a file whose ZIP or HDF5
    structure is destroyed; what merely moved is not called changed. For a model in memory: each
    weight whose value is not the signed one.

    It never loads a model. Only what trusted keys signed is believed. What it cannot tell: which
    tensors were changed in archives that are compressed; which of several things outside of
    tensors, if they share a piece, unless there is a `reference`; what a tensor was changed from,
    again without `reference`; and where bytes went that were moved far, or in several places
    that lie close together: then what lies between is called changed. A weight that was trained on
    since it was signed counts as changed.

    Args:
        path_or_model: A file or folder, or a Keras model. Symbolic links are refused.
        trusted_keys: Path of a PEM public key, PEM text or bytes, a `cryptography` key object, a
            list of these, a `TrustStore` or an `ms.trust.TrustedRoots`.
        reference: A good copy. For a path: path of another copy of the same bytes, which is
            verified with the same statement, or a Keras model that has the signed weights; then the
            report says how many values of each tensor changed and by how much. For a model:
            required, the path of the signed model that it should be equal to.
        signature_path: Where the signature is; the statement is beside it. Defaults to beside the
            path (for a model: beside `reference`).
        expected_name: As for `verify`. Default None: any.
        threshold: As for `verify`. Default 1.
        ignore: As for `verify`: files that are not reported as added. Default: none.
        progress: Called with bytes done and bytes in all.

    Returns:
        A `TamperReport`; `.is_clean`, `print(report)`, `report.to_dict()`.

    Raises:
        SignatureError: If no trusted key vouches for anything here, as `verify` raises it, or
            `reference` is no good copy.
        TypeError, ValueError: If `path_or_model` is a model and `reference` no path.
        FileNotFoundError: If there is nothing at a path.
        OSError: If a file cannot be read.

    Example:
    ```python
    with open("model.keras", "r+b") as file:
        file.seek(-1500, 2)
        file.write(b"damage")
    report = ms.locate_tampering("model.keras", "owner.pub")
    if not report.is_clean:
        print(report)
    ```
    """
    trust = load_trust(trusted_keys, threshold=threshold)
    explicit = files.absolute_path(signature_path) if signature_path else None
    if isinstance(path_or_model, (str, os.PathLike)):
        ignored = check_ignored(ignore)
        return _locate_in_files(
            path_or_model, trust, reference, explicit, expected_name, ignored, progress
        )
    from keras_modelsec.integrity.damage.locating_in_memory import check_arguments, compare_model

    good_path = check_arguments(path_or_model, reference)
    return compare_model(
        path_or_model,
        good_path,
        believed(good_path, trust, explicit, expected_name)[0].statement,
    )


def _locate_in_files(
    subject: "str | os.PathLike[str]",
    trust: Trust,
    reference: Any,
    signature: Path | None,
    expected_name: str | None,
    ignored: tuple[str, ...],
    progress: Progress,
) -> TamperReport:
    path = files.absolute_path(subject)
    files.kind_of(path)
    own = Places.of(path, signature).names_inside(path, openssf=trust.reads_openssf)
    evidence = believed(path, trust, signature, expected_name)
    for _ in range(_ATTEMPTS):
        reports = [
            _report(path, item, reference, _left_out(own, ignored, item), progress)
            for item in evidence
        ]
        best = min(reports, key=_severity)
        again = believed(path, trust, signature, expected_name)
        if best.is_clean or again == evidence:
            break
        evidence = again  # it was signed anew while it was read
    return best


def _left_out(own: tuple[str, ...], ignored: tuple[str, ...], evidence: Evidence) -> LeftOut:
    return LeftOut(own, ignored, frozenset(evidence.manifest.digests))


def _severity(report: TamperReport) -> tuple[int, int]:
    files_found = len(report.files) + len(report.added) + len(report.missing)
    return files_found, sum(len(file.chunks) for file in report.files)


def _report(
    path: Path, evidence: Evidence, reference: Any, skip: Container[str], progress: Progress
) -> TamperReport:
    if evidence.statement is None:
        return _compare_files(path, evidence.manifest, skip, progress)
    said = evidence.statement
    places = list_model(path, skip)
    _check_same_kind(path, set(said.files), set(places))
    return _compare_tensors(path, said, places, _good_values(reference, said), progress)


def _compare_files(
    path: Path, signed: Manifest, skip: Container[str], progress: Progress
) -> TamperReport:
    """The report where there is only an OpenSSF signature."""
    found = compare(path, None, skip=skip, progress=progress).manifest.digests
    expected = signed.digests
    if SINGLE_FILE in found and tuple(expected) == (path.name,):  # another tool's name for it
        expected = {SINGLE_FILE: expected[path.name]}
    _check_same_kind(path, set(expected), set(found))
    changed = sorted(n for n in found.keys() & expected.keys() if found[n] != expected[n])
    places = list_model(path, skip)
    return TamperReport(
        subject=str(path),
        model=signed.model_name,
        files=tuple(FileDamage(n, None, os.lstat(places[n]).st_size) for n in changed),
        added=tuple(sorted(found.keys() - expected.keys())),
        missing=tuple(sorted(expected.keys() - found.keys())),
        names_tensors=False,
        notes=(_ONLY_FILES,),
    )


def _compare_tensors(
    path: Path,
    said: ModelStatement,
    places: dict[str, Path],
    good: GoodValues,
    progress: Progress,
) -> TamperReport:
    missing = sorted(said.files.keys() - places.keys())
    tensors = [damaged(t, "missing") for t in said.tensors if t.file in missing]
    changed: list[FileDamage] = []
    undecided: list[str] = []
    sizes = {name: os.lstat(place).st_size for name, place in places.items() if name in said.files}
    done = 0
    for name in sorted(sizes):
        part = _part(progress, done, sum(sizes.values()))
        findings = examine(places[name], name, said, good, part)
        done += sizes[name]
        if findings:
            changed.append(findings.file)
            tensors += findings.tensors
            undecided += findings.undecided
    return TamperReport(
        subject=str(path),
        model=said.model,
        version=said.version,
        tensors=tuple(tensors),
        files=tuple(changed),
        added=tuple(sorted(places.keys() - said.files.keys())),
        missing=tuple(missing),
        undecided=tuple(undecided),
        notes=() if said.tensors else ("The statement names no tensors: files alone are named.",),
    )


def _part(progress: Progress, before: int, total: int) -> Progress:
    if progress is None:
        return None
    return lambda done, _: progress(min(before + done, total), total)


def _good_values(reference: Any, said: ModelStatement) -> GoodValues:
    if reference is None:
        return NoValues()
    if not isinstance(reference, (str, os.PathLike)):
        from keras_modelsec.integrity.damage.locating_in_memory import check_model_type

        check_model_type("reference", reference)
        return ModelValues(reference)
    path = files.absolute_path(reference)
    files.kind_of(path)
    values = FileValues(path, said)
    values.check()
    return values


def _check_same_kind(path: Path, signed: set[str], found: set[str]) -> None:
    if (SINGLE_FILE in signed) != (SINGLE_FILE in found):
        kind = "a file" if SINGLE_FILE in found else "a folder"
        names = ", ".join(repr(name) for name in sorted(signed)[:5])
        raise SignatureError(
            f"A signature must be for what it is used on. Received: one for {names}, with "
            f"{str(path)!r}, which is {kind}. Use the signature that was made for it."
        )
