"""Models as text and JSON for the command line: readable with 300 tensors.

Owns the words and columns. What comes out of files may be anybody's: nothing in it reaches the
terminal that is not printable.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from keras_modelsec._core.printable import printable as clean
from keras_modelsec.integrity.contents.tensor_layout import TensorRecord
from keras_modelsec.integrity.statements.model_statement import ModelStatement

VERIFIED, NOT_VERIFIED, UNSIGNED = "VERIFIED", "NOT VERIFIED", "NOT SIGNED"
_MOST_TENSORS = 1000
_MOST_LINES = 50
_MOST_LETTERS = 500


@dataclass(frozen=True)
class Shown:
    """What `modelsec inspect` shows.

    Attributes:
        path: The model, as the user named it.
        verdict: "VERIFIED": trusted keys signed exactly these bytes, and what is shown is what they
            signed. "NOT VERIFIED": that was not shown; all else is hearsay. "NOT SIGNED".
        reason: Why it is not verified.
        signers: Each with whether it is by a trusted key.
        said: The statement, or None.
        sizes: Of the files that are there, in bytes.
        tensors: As stated; of an unsigned file, as found in it.
    """

    path: str
    verdict: str
    reason: str
    signers: Sequence[tuple[Any, bool]]
    said: ModelStatement | None
    sizes: Mapping[str, int]
    tensors: Sequence[TensorRecord]


def size_text(count: int) -> str:
    """A number of bytes as people read it."""
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows as lines with aligned columns."""
    texts = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in texts
    ]


def inspection_dict(found: Shown) -> dict[str, Any]:
    """What `inspect` shows, for JSON."""
    said = found.said
    return {
        "path": found.path,
        "verdict": found.verdict,
        "verified": found.verdict == VERIFIED,
        "reason": found.reason,
        "signers": [{**asdict(one), "is_trusted": trusted} for one, trusted in found.signers],
        "model": said.model if said else None,
        "version": said.version if said else None,
        "created": f"{said.created:%Y-%m-%dT%H:%M:%SZ}" if said else None,
        "files": list(_files(found)),
        "tensors": [dict(vars(tensor)) for tensor in found.tensors],
        "parity": [dict(vars(record)) for record in said.parity] if said else [],
        "provenance": dict(said.provenance) if said else {},
    }


def _files(found: Shown) -> Iterator[dict[str, Any]]:
    if found.said:
        for name, record in found.said.files.items():
            yield {"name": name, "size": record.size, "sha256": record.sha256}
    else:
        for name, size in found.sizes.items():
            yield {"name": name, "size": size, "sha256": None}


def inspection_text(found: Shown) -> str:
    """What `inspect` shows, for people; a bad verdict is its first line and its last."""
    verdict = f"{found.verdict}: {clean(found.path)}"
    lines = [verdict, *([f"  {clean(found.reason)}"] if found.reason else [])]
    if found.said:
        lines.append(
            f"Model {clean(found.said.model)!r}, version {found.said.version}, signed "
            f"{found.said.created:%Y-%m-%d %H:%M:%S} UTC by the signer's clock"
        )
    if found.signers:
        lines += _signer_lines(found)
    lines += _file_lines(found)
    lines += tensor_lines(found.tensors)
    if found.said:
        names = [f"{clean(p.name)} ({size_text(p.size)})" for p in found.said.parity]
        lines.append(f"Parity: {', '.join(names) or 'none stated'}")
        lines += _provenance_lines(dict(found.said.provenance))
    return "\n".join(lines if found.verdict == VERIFIED else [*lines, verdict])


def _signer_lines(found: Shown) -> list[str]:
    rows = [
        (
            signer.file,
            signer.algorithm,
            f"key {signer.hint[:16]}..." if signer.hint else "certificate",
            "trusted key" if trusted else "",
        )
        for signer, trusted in found.signers
    ]
    title = "Signatures (only those by trusted keys were checked):"
    return [title if found.verdict == VERIFIED else "Signatures (not checked):", *table(rows)]


def _file_lines(found: Shown) -> list[str]:
    rows = [
        (f["name"], size_text(f["size"]), f"sha256 {f['sha256']}" if f["sha256"] else "")
        for f in _files(found)
    ]
    return [f"Files: {len(rows)}", *_shortened(table(rows))] if rows else []


def _counted(tensor: Any) -> list[tuple[int, str]]:
    """Sorts "dense_2" before "dense_10"."""
    names = (getattr(tensor, "file", ""), tensor.path)
    parts = [part for name in names for part in [*re.split(r"([0-9]+)", name), ""]]
    return [(len(part) if part.isdecimal() else 0, part) for part in parts]


def tensor_lines(tensors: Sequence[Any]) -> list[str]:
    """A table of tensors: name, type, shape, size."""
    if not tensors:
        return ["Tensors: none known"]
    several = len({tensor.file for tensor in tensors}) > 1
    rows = [
        (
            f"{tensor.file}:{tensor.path}" if several else tensor.path,
            tensor.dtype,
            "x".join(map(str, tensor.shape)) or "scalar",
            size_text(tensor.nbytes),
        )
        for tensor in sorted(tensors, key=_counted)[:_MOST_TENSORS]
    ]
    total = size_text(sum(tensor.nbytes for tensor in tensors))
    more = len(tensors) - len(rows)
    return [
        f"Tensors: {len(tensors)}, {total}",
        *table(rows),
        *([f"  and {more} more (--json has them all)"] if more else []),
    ]


def _provenance_lines(provenance: dict[str, Any]) -> list[str]:
    if not provenance:
        return ["Provenance: none stated"]
    rows = [
        (name, _cut(json.dumps(value, ensure_ascii=False))) for name, value in provenance.items()
    ]
    return ["Provenance, as the signer says:", *_shortened(table(rows))]


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "... (--json has it all)"


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_LINES
    return lines[:_MOST_LINES] + ([f"  and {more} more (--json has them all)"] if more > 0 else [])


def difference_text(found: Any, one: str, other: str, *, verified: bool) -> str:
    """A `ModelDifference` for people."""
    state = "both VERIFIED" if verified else "NOT VERIFIED"
    verdict = "no difference" if found.is_empty else "different"
    lines = [f"{verdict} ({state}): A {clean(one)}, B {clean(other)}"]
    lines.append(f"Tensors: {len(found.tensors)} differ, {found.same_tensors} are the same")
    ordered = sorted(found.tensors, key=_counted)
    rows = [(t.path, t.kind, _forms(t), str(t.changes or "")) for t in ordered]
    lines += table(rows[:_MOST_TENSORS])
    if len(rows) > _MOST_TENSORS:
        lines.append(f"  and {len(rows) - _MOST_TENSORS} more (--json has them all)")
    for title, texts in (
        ("Configuration", table([(c.part, c.place, f"{c.one} -> {c.other}") for c in found.texts])),
        ("Other contents that differ", table([(part,) for part in found.parts])),
        ("Only in A", table([(name,) for name in found.only_in_one])),
        ("Only in B", table([(name,) for name in found.only_in_other])),
        ("Notes", table([(note,) for note in found.notes])),
    ):
        if texts:
            lines += [f"{title}:", *_shortened(texts)]
    return "\n".join(lines)


def _forms(tensor: Any) -> str:
    if tensor.one and tensor.other and tensor.one != tensor.other:
        return f"{tensor.one} -> {tensor.other}"
    return str(tensor.one or tensor.other)
