"""Restores a damaged model to the exact signed bytes, or says what cannot be and leaves it alone.

Owns the order of a repair and what is believed when. Which bytes a block has is in restoring.py,
how they get into the files in repair_writing.py.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_modelsec.integrity import files
from keras_modelsec.integrity.errors import LostRange, SignatureError, UnrepairableError
from keras_modelsec.integrity.keys.key_loading import TrustedKeys
from keras_modelsec.integrity.keys.trust import load_trust
from keras_modelsec.integrity.parity.byte_stream import ByteStream
from keras_modelsec.integrity.parity.parity_file import ParityFile, parity_path_of
from keras_modelsec.integrity.parity.parity_restoring import restore_parity
from keras_modelsec.integrity.parity.parity_statement import (
    Annex,
    ParityStatement,
    entry_digests,
    signed_blocks,
)
from keras_modelsec.integrity.parity.repair_evidence import put_back, read_evidence
from keras_modelsec.integrity.parity.repair_report import RepairReport
from keras_modelsec.integrity.parity.repair_writing import Leftovers, Target, write_targets
from keras_modelsec.integrity.parity.restoring import Restorer, good_blocks
from keras_modelsec.integrity.parity.resynchronising import locate
from keras_modelsec.integrity.signatures.describing import list_model
from keras_modelsec.integrity.signatures.hashing import Progress
from keras_modelsec.integrity.signatures.places import Places

_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None


def repair(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    parity_path: "str | os.PathLike[str] | None" = None,
    signature_path: "str | os.PathLike[str] | None" = None,
    progress: Progress = None,
) -> RepairReport:
    """Restores a model to the exact bytes that were signed when `protect` was called.

    Flipped, overwritten, cut, missing, inserted, removed and moved bytes, in as many places as
    there is parity for, in files and in the parity file itself; missing files of a folder; and the
    signature and statement files. Every restored block is checked against its signed digest and
    every restored file against its signed SHA-256.

    If there is more damage than parity, `UnrepairableError` says which bytes are lost, and no file
    is touched. A crash leaves the model no more damaged than it was: call `repair` again. Blocks
    that are damaged in their place are overwritten there; files of which parts were moved are
    written anew beside and renamed.

    It restores what was signed and nothing newer: if signature or statement on the disk verify and
    are for other bytes than the parity, it refuses. If they were removed, only a `TrustStore` with
    lowest versions can tell an older model, brought with its own parity, from the newest.

    Args:
        path: A file or folder. Symbolic links, in it or to it, are refused.
        trusted_keys: As for `verify`.
        parity_path: Where the parity file is. Defaults to `path` with ".parity" added.
        signature_path: Where the model's signature is, if not beside it.
        progress: Called with bytes done and bytes in all.

    Returns:
        What was found and done.

    Raises:
        UnrepairableError: A SignatureError: more is damaged than parity can restore.
        SignatureError: If the parity file is forged, damaged beyond use, or for another version of
            the model; a symbolic link or special file is met; or files change meanwhile.
        UntrustedKeyError, RolledBackError, RevokedModelError: SignatureErrors, as for `verify`.
        ImportError: If `pyeclib` (the `repair` extra) is needed and not installed.
        FileNotFoundError: If there is no parity file.
        OSError: If a file cannot be read or written.

    Example:
    ```python
    report = ms.repair("model.keras", "owner.pub")
    print(report)
    ms.verify("model.keras", "owner.pub")
    ```
    """
    trust = load_trust(trusted_keys)
    model_path = files.absolute_path(path)
    places = Places.of(model_path, files.absolute_path(signature_path) if signature_path else None)
    place = files.absolute_path(parity_path) if parity_path else parity_path_of(model_path)
    with _locked(place):
        parity = ParityFile(place, trust)
        with contextlib.closing(parity):
            said = parity.statement
            trust.check_model(
                said.model, said.version, {said.root, *said.manifest.digests.values()}
            )
            evidence = read_evidence(places, trust, model_path, said)
            annex = parity.read_annex()
            job = _Job(model_path, places, parity, annex, progress)
            report = job.run()
            signatures = put_back(places, trust, model_path, said, annex, evidence)
            rewritten = bool(report["damaged_parity"]) and restore_parity(
                parity, annex, job.parts, progress
            )
    return RepairReport(
        path=model_path, signatures=signatures, parity_rewritten=rewritten, **report
    )


@contextlib.contextmanager
def _locked(parity: Path) -> Iterator[None]:
    """Lets one repair of a model run at a time (where there are locks)."""
    try:
        file = files.open_regular(parity)
    except FileNotFoundError:
        raise FileNotFoundError(
            "A model can be repaired only with the parity made while it was good. Received: no "
            f"file at {str(parity)!r}. Make it with `protect`, or say where it is with "
            "`parity_path`."
        ) from None
    with file:
        if _fcntl is not None:
            with contextlib.suppress(OSError):  # some network disks
                _fcntl.flock(file.fileno(), _fcntl.LOCK_EX)
        yield


class _Job:
    """The repair of one model's files."""

    def __init__(
        self, path: Path, places: Places, parity: ParityFile, annex: Annex, progress: Progress
    ):
        self.path = path
        self.statement: ParityStatement = parity.statement
        self.parity = parity
        self.annex = annex
        self.progress = progress
        self.geometry = parity.statement.geometry
        self.digests = entry_digests(annex.blocks)
        self.found = _list(path, parity.statement, places)
        self.stats = {name: os.lstat(place) for name, place in self.found.items()}
        self.parts: list[tuple[Path | None, int]] = [
            (self.path_of(name), file.size) for name, file in self.statement.files.items()
        ]

    def path_of(self, name: str) -> Path:
        return self.path if name == "." else self.path / name

    def run(self) -> dict[str, Any]:
        """Restores the files; returns fields of the report."""
        parity_places = self.parity.find_parity(self.annex)
        in_place = ByteStream(
            (self.found.get(name), file.size) for name, file in self.statement.files.items()
        )
        good = good_blocks(in_place, self.geometry, self.digests, self.progress)
        targets = self._targets(good)
        report: dict[str, Any] = {
            "changed": tuple(t.name for t in targets if t.found),
            "missing": tuple(t.name for t in targets if not t.found),
            "added": tuple(sorted(self.found.keys() - self.statement.files.keys())),
            "blocks": self.geometry.blocks,
            "block_size": self.geometry.block_size,
            "damaged_blocks": int((~good).sum()),
            "damaged_parity": self.parity.damaged_parts(parity_places),
        }
        if not targets:
            with Leftovers(self.path):  # of a repair that was killed at its very end
                return report
        with in_place, Leftovers(self.path) as leftovers, contextlib.ExitStack() as stack:
            restorer = Restorer(
                self.geometry,
                self.digests,
                good,
                in_place,
                lambda index: self.parity.read_parity(parity_places, index),
                parity_places,
            )
            if restorer.lost_stripes():
                stream = stack.enter_context(self._as_found(leftovers))
                restorer.take_moved(stream, self._locate(stream))
            self._check_possible(restorer)
            report["moved_blocks"] = int((restorer.moved >= 0).sum())
            report["decoded_blocks"] = len(restorer.to_decode)
            report["restored_bytes"] = write_targets(
                self.path, targets, restorer, good, self.progress
            )
        return report

    def _targets(self, good: np.ndarray) -> list[Target]:
        """The files that are not as they were signed."""
        targets, start, size = [], 0, self.geometry.block_size
        for name, file in self.statement.files.items():
            first, last = start // size, -(-(start + file.size) // size)
            found = self.stats.get(name)
            whole = found is not None and found.st_size == file.size
            if not whole or not (file.size == 0 or good[first:last].all()):
                targets.append(
                    Target(name, self.path_of(name), start, file.size, file.sha256, found)
                )
            start += file.size
        return targets

    def _as_found(self, leftovers: Leftovers) -> ByteStream:
        """All there is to look in: signed files first, in their order, then others."""
        signed = self.statement.files
        names = [name for name in signed if name in self.found]
        names += sorted(self.found.keys() - signed.keys())
        parts: list[tuple[Path | None, int]] = [
            (self.found[name], self.stats[name].st_size) for name in names
        ]
        return ByteStream([*parts, *leftovers.parts])

    def _locate(self, stream: ByteStream) -> dict[bytes, int]:
        blocks = signed_blocks(self.annex.blocks, self.geometry.block_size)
        return locate(stream, blocks)

    def _check_possible(self, restorer: Restorer) -> None:
        stripes = restorer.lost_stripes()
        if not stripes:
            return
        indices = restorer.to_decode
        lost = indices[np.isin(indices % self.geometry.stripes, stripes)].tolist()
        raise UnrepairableError(
            f"A model can be repaired only as far as there is parity. Received: {str(self.path)!r} "
            f"with {len(indices)} of {self.geometry.blocks} blocks lost.",
            lost=list(self._ranges(lost)),
            stripes_lost=len(stripes),
            stripes=self.geometry.stripes,
        )

    def _ranges(self, blocks: list[int]) -> Iterator[LostRange]:
        """The blocks as ranges of files; neighbouring blocks are one range."""
        size, start = self.geometry.block_size, 0
        for name, file in self.statement.files.items():
            open_range: LostRange | None = None
            for index in blocks:
                low = max(index * size, start) - start
                high = min((index + 1) * size, start + file.size) - start
                if low >= high:
                    continue
                if open_range and open_range.stop == low:
                    open_range = LostRange(name, open_range.start, high)
                    continue
                if open_range:
                    yield open_range
                open_range = LostRange(name, low, high)
            if open_range:
                yield open_range
            start += file.size


def _list(path: Path, statement: ParityStatement, places: Places) -> dict[str, Path]:
    """The model's files as they are; none if there is nothing."""
    single = statement.manifest.is_single_file
    if not os.path.lexists(path):
        return {}
    found = files.kind_of(path)
    if (found == "file") != single:
        expected = "a file" if single else "a folder"
        raise SignatureError(
            f"Parity must be of what it is used on. Received: parity of {expected}, with "
            f"{str(path)!r}, which is a {found}. Use the parity that was made for it."
        )
    return list_model(path, places.names_inside(path))
