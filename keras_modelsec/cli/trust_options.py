"""How the command line is told whom to trust: keys, certificate roots, or a trust store."""

import argparse
from typing import Any

from keras_modelsec.integrity.keys.certificates import TrustedRoots
from keras_modelsec.integrity.keys.trust_store import TrustStore


def add_trust_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the ways to say whom to trust; `trusted_from` reads them.

    Args:
        parser: The subcommand's parser.
        required: Whether one of them must be given.
    """
    group = parser.add_argument_group(
        "whom to trust", "at least one is needed" if required else None
    )
    group.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="PUBLIC",
        help="a trusted public key (PEM); may be given again",
    )
    group.add_argument(
        "--root-certificate",
        action="append",
        default=[],
        metavar="FILE",
        help="X.509 roots (PEM) whose code-signing certificates are trusted; may be given again",
    )
    group.add_argument(
        "--subject",
        action="append",
        metavar="NAME",
        help="the only signer the roots are trusted for, e.g. CN=Release; may be given again",
    )
    group.add_argument("--trust-store", metavar="FILE", help="a trust store (`modelsec trust`)")
    group.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="PUBLIC",
        help="a public key that the trust store must be signed by; may be given again",
    )
    parser.set_defaults(trust_required=required)


def trusted_from(options: argparse.Namespace) -> list[Any]:
    """Whom the options trust, as `trusted_keys` has it; empty if nobody and that is allowed.

    Raises:
        ValueError: If nobody is trusted and somebody must be, or options do not go together.
        SignatureError: If the trust store cannot be trusted.
    """
    if bool(options.trust_store) != bool(options.root):
        raise ValueError(
            "--trust-store and --root must be given together. Received: one of them. "
            "--root names the public key that the store was signed with."
        )
    if options.subject and not options.root_certificate:
        raise ValueError(
            "--subject must be given with --root-certificate. Received: --subject alone."
        )
    trusted: list[Any] = list(options.key)
    if options.root_certificate:
        trusted += [TrustedRoots(r, subject=options.subject) for r in options.root_certificate]
    if options.trust_store:
        trusted.append(TrustStore.load(options.trust_store, options.root))
    if options.trust_required and not trusted:
        raise ValueError(
            "Somebody must be trusted. Received: none of --key, --root-certificate and "
            "--trust-store. Name the owner's public key with --key."
        )
    return trusted
