"""Restores a damaged model to the exact signed bytes, or says what cannot be and leaves it alone.

Owns the order of a repair, what is believed when, and what is reported. Which bytes a block has is
in blocks.py, how they get into the files in repaired_files.py.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_modelsec._signing.trust import Threshold, TrustedKeys, load_trust
from keras_modelsec._storage import files, locks
from keras_modelsec._storage.byte_stream import ByteStream
from keras_modelsec.errors import LostRange, SignatureError, UnrepairableError
from keras_modelsec.integrity.contents.hashing import Progress
from keras_modelsec.integrity.parity.blocks import Restorer, good_blocks
from keras_modelsec.integrity.parity.parity_file import ParityFile, parity_path_of
from keras_modelsec.integrity.parity.parity_statement import (
    Annex,
    ParityStatement,
    entry_digests,
    signed_blocks,
)
from keras_modelsec.integrity.parity.repair_evidence import put_back, read_evidence
from keras_modelsec.integrity.parity.repaired_files import (
    Leftovers,
    Target,
    restore_parity,
    write_targets,
)
from keras_modelsec.integrity.parity.resynchronising import bytes_to_search, locate
from keras_modelsec.integrity.signing.describing import list_model
from keras_modelsec.integrity.signing.evidence import check_claim, with_certified_keys
from keras_modelsec.integrity.statements.places import LeftOut, Places, check_ignored


@dataclass(frozen=True)
class RepairReport:
    """The outcome of `repair`, which succeeded: the model's files are the signed ones.

    Attributes:
        path: The model.
        changed: Names of files that were there with other bytes, and are restored.
        missing: Names of files that were not there, and are restored.
        added: Names of files that are not part of the signed model; they are left alone, and while
            they are there the model does not verify.
        blocks: How many blocks the model has, and `block_size` bytes each of them.
        block_size: See `blocks`.
        damaged_blocks: How many were not in their place.
        moved_blocks: How many of these were found elsewhere.
        decoded_blocks: How many of these were computed from parity; the rest were copies of others.
        restored_bytes: Bytes written into the model's files.
        signatures: Names of signature and statement files that were put back.
        damaged_parity: How many parts (pages, statements, parity blocks) of the parity file were
            damaged, for all that was seen.
        parity_rewritten: Whether the parity file was made whole again.
    """

    path: Path
    changed: Sequence[str] = ()
    missing: Sequence[str] = ()
    added: Sequence[str] = ()
    blocks: int = 0
    block_size: int = 0
    damaged_blocks: int = 0
    moved_blocks: int = 0
    decoded_blocks: int = 0
    restored_bytes: int = 0
    signatures: Sequence[str] = ()
    damaged_parity: int = 0
    parity_rewritten: bool = False

    @property
    def nothing_to_do(self) -> bool:
        """Whether all was as it was signed, so that no file was touched."""
        return not (self.changed or self.missing or self.signatures or self.damaged_parity)

    def __str__(self) -> str:
        if self.nothing_to_do:
            return f"{str(self.path)!r}: nothing to repair." + self._added()
        parts = []
        if self.changed or self.missing:
            names = [*self.changed, *self.missing]
            parts.append(
                f"restored {len(names)} file(s) ({_listing(names)}): {self.damaged_blocks} of "
                f"{self.blocks} blocks were damaged, {self.decoded_blocks} computed from parity, "
                f"{self.moved_blocks} found elsewhere"
            )
        if self.signatures:
            parts.append(f"put back {_listing(list(self.signatures))}")
        if self.damaged_parity:
            state = "made whole again" if self.parity_rewritten else "left as it is"
            parts.append(f"{self.damaged_parity} damaged parts of the parity file {state}")
        return f"{str(self.path)!r}: {'; '.join(parts)}." + self._added()

    def _added(self) -> str:
        if not self.added:
            return ""
        return f" Not part of the model, and left alone: {_listing(list(self.added))}."


def _listing(names: list[str], most: int = 10) -> str:
    more = len(names) - most
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {more} more" if more > 0 else "")


def repair(
    path: "str | os.PathLike[str]",
    trusted_keys: TrustedKeys,
    *,
    parity_path: "str | os.PathLike[str] | None" = None,
    signature_path: "str | os.PathLike[str] | None" = None,
    expected_name: str | None = None,
    threshold: Threshold = 1,
    ignore: "str | Iterable[str]" = (),
    progress: Progress = None,
) -> RepairReport:
    """Restores a model to the exact bytes that were signed when `write_parity` was called.

    Flipped, overwritten, cut, missing, inserted, removed and moved bytes, in as many places as
    there is parity for, in files and in the parity file itself; missing files of a folder; and the
    signature and statement files. Every restored block is checked against its signed digest and
    every restored file against its signed SHA-256.

    If there is more damage than parity, `UnrepairableError` says which bytes are lost, and no file
    is touched. A crash leaves the model no more damaged than it was: call `repair` again. Blocks
    that are damaged in their place are overwritten there; files of which parts were moved are
    written anew beside and renamed. What is read is in proportion to what was signed: moved bytes
    are looked for in twice as many and 64 MiB, not to the end of a file that has become longer.

    It restores what was signed and nothing newer: if signature or statement on the disk verify and
    are for other bytes than the parity, it refuses. If they were removed, only a `TrustStore` with
    lowest versions can tell an older model, brought with its own parity, from the newest.

    Args:
        path: A file or folder. Symbolic links, in it or to it, are refused.
        trusted_keys: As for `verify`. The certificates that `TrustedRoots` ask for are in
            `NAME.sig` beside the model: if that is lost too, pass the signer's public key.
        parity_path: Where the parity file is. Defaults to `path` with ".parity" added.
        signature_path: Where the model's signature is, if not beside it.
        expected_name: As for `verify`. Default None: any.
        threshold: As for `verify`: of the parity file too, which then needs the same
            `co_signing_keys`. Default 1.
        ignore: As for `verify`: files that are left alone and not reported. Default: none.
        progress: Called with bytes done and bytes in all.

    Returns:
        What was found and done.

    Raises:
        UnrepairableError: A SignatureError: more is damaged than parity can restore.
        SignatureError: If the parity file is forged, damaged beyond use, or for another version of
            the model; a symbolic link or special file is met; or files change meanwhile.
        UntrustedKeyError, RolledBackError, RevokedModelError: SignatureErrors, as for `verify`.
        ImportError: If `pyeclib` (the `repair` extra) is needed and not installed.
        LockedError: An OSError: another repair does not finish.
        FileNotFoundError: If there is no parity file.
        OSError: If a file cannot be read or written.

    Example:
    ```python
    report = ms.repair("model.keras", "owner.pub")
    print(report)
    ms.verify("model.keras", "owner.pub")
    ```
    """
    trust = load_trust(trusted_keys, threshold=threshold)
    ignored = check_ignored(ignore)
    model_path = files.absolute_path(path)
    places = Places.of(model_path, files.absolute_path(signature_path) if signature_path else None)
    trust = with_certified_keys((places, places.pending), trust)
    place = files.absolute_path(parity_path) if parity_path else parity_path_of(model_path)
    with _locked(place):
        parity = ParityFile(place, trust)
        with contextlib.closing(parity):
            said = parity.statement
            check_claim(said.manifest, said.model, said.version, trust, expected_name)
            evidence = read_evidence(places, trust, model_path, said)
            annex = parity.read_annex()
            own = places.names_inside(model_path, openssf=trust.reads_openssf)
            skip = LeftOut(own, ignored, frozenset(said.files))
            job = _Job(model_path, skip, parity, annex, progress)
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
        files.open_regular(parity).close()
    except FileNotFoundError:
        raise FileNotFoundError(
            "A model can be repaired only with the parity made while it was good. Received: no "
            f"file at {str(parity)!r}. Make it with `write_parity`, or say where it is with "
            "`parity_path`."
        ) from None
    with locks.locked(parity.parent, parity.name):
        yield


class _Job:
    """The repair of one model's files."""

    def __init__(
        self, path: Path, skip: LeftOut, parity: ParityFile, annex: Annex, progress: Progress
    ):
        self.path = path
        self.statement: ParityStatement = parity.statement
        self.parity = parity
        self.annex = annex
        self.progress = progress
        self.geometry = parity.statement.geometry
        self.digests = entry_digests(annex.blocks)
        self.found = _list(path, parity.statement, skip)
        self.stats = {name: os.lstat(place) for name, place in self.found.items()}
        self.too_long: list[str] = []  # files that were not searched to their end
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
        """What to look in: signed files first, in their order, then others, none without end."""
        signed = {name: file.size for name, file in self.statement.files.items()}
        names = [name for name in signed if name in self.found]
        names += sorted(self.found.keys() - signed.keys())
        sizes = {name: self.stats[name].st_size for name in names}
        searched = bytes_to_search(sizes, signed)
        self.too_long = [name for name in names if searched[name] < sizes[name]]
        parts: list[tuple[Path | None, int]] = [(self.found[n], searched[n]) for n in names]
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
            f"with {len(indices)} of {self.geometry.blocks} blocks lost.{self._unsearched()}",
            lost=list(self._ranges(lost)),
            stripes_lost=len(stripes),
            stripes=self.geometry.stripes,
        )

    def _unsearched(self) -> str:
        if not self.too_long:
            return ""
        named = ", ".join(
            f"{name!r} ({self.stats[name].st_size} bytes)" for name in self.too_long[:5]
        )
        return (
            " Not looked through to the end for blocks that were moved, being longer than the "
            f"signed bytes explain: {named}. Cut off or take away what is no part of the model."
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


def _list(path: Path, statement: ParityStatement, skip: LeftOut) -> dict[str, Path]:
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
    return list_model(path, skip)
