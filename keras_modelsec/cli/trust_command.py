"""`modelsec trust`: makes, changes and shows trust stores.

Owns nothing but the arguments and the output; the rules are the store's. A change loads the store
with the root key it is signed with, and tries again if another writer was faster.
"""

import argparse
import datetime
import json
import os
from collections.abc import Callable
from typing import Any

from keras_modelsec._core.printable import printable
from keras_modelsec._signing.key_files import load_signing_key, load_verifying_key
from keras_modelsec._signing.keys import SigningKey
from keras_modelsec._signing.secrets import Password
from keras_modelsec._signing.trust_store import TrustStore
from keras_modelsec._storage import files
from keras_modelsec.cli.passwords import add_password_options, password_from
from keras_modelsec.cli.trust_options import add_root_threshold
from keras_modelsec.errors import ConcurrentChangeError, WrongPasswordError
from keras_modelsec.integrity.signing.describing import compare
from keras_modelsec.integrity.statements.openssf_statement import root_digest

_ATTEMPTS = 8  # against other writers


def add_trust(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "trust",
        help="say which keys are trusted, and what is not any more",
        description="Keep a trust store: a signed file of trusted keys, revocations and lowest "
        "versions, for `modelsec verify` and `trusted_keys`.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    for add in (_add_add, _add_revoke, _add_require, _add_rotate, _add_list):
        action = add(actions)
        action.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print one JSON object instead of text",
        )
    return parser


def _add_add(actions: Any) -> argparse.ArgumentParser:
    parser = _changing(
        actions, "add", "trust a key", "Trust a public key; makes the store if there is none."
    )
    parser.add_argument("key", metavar="PUBLIC", help="the public key (PEM)")
    parser.add_argument("--name", default="", help="whose it is")
    parser.add_argument("--comment", default="", help="free text")
    for option, text in (("--not-before", "not trusted before"), ("--not-after", "nor after")):
        parser.add_argument(
            option, type=_time, metavar="TIME", help=f"{text}, e.g. 2027-01-31T12:00Z"
        )
    parser.add_argument(
        "--threshold", type=int, metavar="N", help="different trusted keys that must sign a model"
    )
    parser.set_defaults(command=run_add)
    return parser


def _add_revoke(actions: Any) -> argparse.ArgumentParser:
    parser = _changing(
        actions, "revoke", "end the trust in a key or model", "Revoke a key, or a model's bytes."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", metavar="PUBLIC", help="a public key (PEM), or its hint")
    what.add_argument("--digest", metavar="SHA256", help="of a file, or of a folder's statement")
    what.add_argument("--model", metavar="PATH", help="a file, or a folder that holds no signature")
    parser.add_argument("--reason", default="", help="what readers will be told")
    parser.set_defaults(command=run_revoke)
    return parser


def _add_require(actions: Any) -> argparse.ArgumentParser:
    parser = _changing(
        actions, "require", "refuse older versions", "Set the lowest accepted version of a model."
    )
    parser.add_argument("name", metavar="NAME", help="the model's signed name, or '*' for all")
    parser.add_argument("version", metavar="VERSION", type=int, help="an integer >= 1")
    parser.set_defaults(command=run_require)
    return parser


def _add_rotate(actions: Any) -> argparse.ArgumentParser:
    parser = _changing(
        actions,
        "rotate",
        "change the root keys",
        "Name the public keys that may sign the store from now on. Give --root for the old "
        "private key and again for the new one.",
    )
    parser.add_argument("roots", metavar="PUBLIC", nargs="+", help="the new root keys (PEM)")
    parser.set_defaults(command=run_rotate)
    return parser


def _add_list(actions: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        "list", help="verify and show a store", description="Verify a trust store and show it."
    )
    parser.add_argument("store", metavar="STORE", help="the trust store (JSON)")
    parser.add_argument(
        "--root",
        required=True,
        action="append",
        metavar="PUBLIC",
        help="a root's public key (PEM); may be given again",
    )
    _add_minimum(parser)
    add_root_threshold(parser)
    parser.set_defaults(command=run_list, verifies=True)
    return parser


def _add_minimum(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--minimum-store-version",
        type=int,
        default=1,
        metavar="N",
        help="refuse an older store than the version you saw last: somebody may have put it back",
    )


def _changing(actions: Any, name: str, short: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=short, description=text)
    parser.add_argument("store", metavar="STORE", help="the trust store (JSON)")
    parser.add_argument(
        "--root",
        required=True,
        action="append",
        metavar="PRIVATE",
        help="the root's private key (PEM) that signs the store; may be given again",
    )
    parser.add_argument(
        "--expires", type=_time, metavar="TIME", help="until when the new version is good"
    )
    _add_minimum(parser)
    add_password_options(parser)
    return parser


def run_add(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `trust add`."""
    key = load_verifying_key(options.key, "key")

    def change(store: TrustStore) -> None:
        if options.threshold is not None:
            store.set_threshold(options.threshold)
        store.add(
            key,
            name=options.name,
            comment=options.comment,
            not_before=options.not_before,
            not_after=options.not_after,
        )

    return _change(options, change, f"Trusted key {key.hint}", create=True) | {"hint": key.hint}


def run_revoke(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `trust revoke`."""
    digest = _digest_of(options.model) if options.model else options.digest

    def change(store: TrustStore) -> None:
        store.revoke(options.key, digest=digest, reason=options.reason)

    return _change(options, change, f"Revoked {options.key or digest}")


def run_require(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `trust require`."""

    def change(store: TrustStore) -> None:
        store.set_lowest_version(options.name, options.version)

    text = f"Required version {options.version} or later of {options.name}"
    return _change(options, change, text)


def run_rotate(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `trust rotate`."""
    return _change(options, lambda store: None, "Changed the root keys", roots=options.roots)


def run_list(options: argparse.Namespace) -> dict[str, Any]:
    """Runs `trust list`."""
    store = TrustStore.load(
        options.store,
        options.root,
        minimum_store_version=options.minimum_store_version,
        root_threshold=options.root_threshold,
    )
    fields = json.loads(store.to_bytes())
    del fields["_type"]
    return {"store": options.store, **fields, "message": _describe(fields)}


def _change(
    options: argparse.Namespace,
    change: Callable[[TrustStore], None],
    text: str,
    *,
    create: bool = False,
    roots: list[str] | None = None,
) -> dict[str, Any]:
    password = password_from(options)
    signers = [_load_root(path, password) for path in options.root]
    for attempt in range(_ATTEMPTS):
        store = _open(options, signers, create)
        change(store)
        if options.expires is not None:
            store.set_expiry(options.expires)
        try:
            place = store.save(options.store, signers, roots=roots)
        except (ConcurrentChangeError, FileExistsError):
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        break
    message = printable(f"{text} in {options.store} (version {store.version})")
    return {"store": str(place), "version": store.version, "message": message}


def _load_root(path: str, password: Password) -> SigningKey:
    """One root's key; of several, those without a password are read without."""
    try:
        return load_signing_key(path)
    except WrongPasswordError:
        return load_signing_key(path, password)


def _open(options: argparse.Namespace, signers: list[SigningKey], create: bool) -> TrustStore:
    minimum = options.minimum_store_version
    if create and minimum == 1 and not os.path.lexists(options.store):
        return TrustStore()
    return TrustStore.load(
        options.store,
        [key.verifying_key for key in signers],
        minimum_store_version=minimum,
        at=datetime.datetime(1, 1, 2, tzinfo=datetime.UTC),  # its owner may renew an expired one
    )


def _digest_of(path: str) -> str:
    manifest = compare(files.absolute_path(path), None).manifest
    digests = [manifest.digests[name] for name in sorted(manifest.digests)]
    return digests[0] if manifest.is_single_file else root_digest(digests)


def _time(text: str) -> datetime.datetime:
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a time must look like 2027-01-31 or 2027-01-31T12:00Z, not {text!r}"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _describe(fields: dict[str, Any]) -> str:
    lines = [
        f"Trust store, version {fields['version']} of {fields['created']}, "
        f"expires: {fields['expires'] or 'never'}",
        f"Keys (a model needs signatures by {fields['threshold']}):",
    ]
    for key in fields["keys"]:
        span = [f"{word} {key[end]}" for word, end in _ENDS if key[end]]
        lines.append("  " + _one_line(key["hint"], key["name"], key["comment"], *span))
    lines.append(f"Roots (the store needs signatures by {fields['root_threshold']}):")
    lines += [f"  {load_verifying_key(pem).hint}" for pem in fields["roots"]]
    for title, items, name in (
        ("Revoked keys:", fields["revoked_keys"], "hint"),
        ("Revoked digests:", fields["revoked_digests"], "sha256"),
    ):
        lines += [title] if items else []
        lines += ["  " + _one_line(item[name], item["time"], item["reason"]) for item in items]
    lowest = fields["lowest_versions"].items()
    lines += ["Lowest versions:"] if lowest else []
    lines += ["  " + _one_line(name, str(version)) for name, version in lowest]
    return "\n".join(lines)


_ENDS = (("from", "not_before"), ("until", "not_after"))


def _one_line(*parts: str) -> str:
    """The parts that are not empty; nothing in them can start a line or steer a terminal."""
    return printable("  ".join(part for part in parts if part))
