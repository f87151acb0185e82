"""How the command line is told whom to trust: keys, certificate roots, or a trust store."""

import argparse
from typing import Any

from keras_modelsec._signing.certificates import TrustedRoots
from keras_modelsec._signing.trust import Threshold, Trust, check_threshold, load_trust
from keras_modelsec._signing.trust_store import TrustStore


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
    add_root_threshold(group)
    group.add_argument(
        "--minimum-store-version",
        type=int,
        metavar="N",
        help="refuse an older trust store than the version you saw last: somebody may have put it "
        "back, with what was withdrawn since",
    )
    group.add_argument(
        "--threshold",
        type=_threshold,
        default=1,
        metavar="N",
        help="how many different ones of these must have signed, or `all` (default: 1)",
    )
    group.add_argument("--name", help="the name it must have been signed under (default: any)")
    parser.set_defaults(trust_required=required)


def add_root_threshold(parser: Any) -> None:
    """Adds the option for how many roots must have signed a trust store."""
    parser.add_argument(
        "--root-threshold",
        type=int,
        default=1,
        metavar="N",
        help="how many of the --root keys must have signed the trust store (default: 1)",
    )


def add_ignore_option(parser: argparse.ArgumentParser, *, signs: bool = False) -> None:
    """Adds the way to say which files of a folder are no part of the model."""
    who = "is not signed" if signs else "is not looked at, unless it is signed"
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a file or folder inside PATH that {who}, e.g. .git; nothing that loads the model "
        "may read it; may be given again",
    )


def _threshold(text: str) -> Threshold:
    try:
        return check_threshold(int(text) if text.lstrip("-").isdecimal() else text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a threshold must be an integer >= 1, or all, not {text!r}"
        ) from None


def trust_from(options: argparse.Namespace) -> Trust | None:
    """Whom the options trust; None if nobody and that is allowed.

    Raises:
        ValueError: If nobody is trusted and somebody must be, or options do not go together.
        SignatureError: If the trust store cannot be trusted.
    """
    trusted = _trusted(options)
    if trusted:
        return load_trust(trusted, threshold=options.threshold)
    if options.name is not None or options.threshold != 1:
        raise ValueError(
            "--name and --threshold must be given with --key, --root-certificate or --trust-store."
            " Received: none of these, so that nothing is verified."
        )
    return None


def _trusted(options: argparse.Namespace) -> list[Any]:
    if bool(options.trust_store) != bool(options.root):
        raise ValueError(
            "--trust-store and --root must be given together. Received: one of them. "
            "--root names the public key that the store was signed with."
        )
    if not options.trust_store and (
        options.minimum_store_version is not None or options.root_threshold != 1
    ):
        raise ValueError(
            "--minimum-store-version and --root-threshold must be given with --trust-store. "
            "Received: no trust store."
        )
    if options.subject and not options.root_certificate:
        raise ValueError(
            "--subject must be given with --root-certificate. Received: --subject alone."
        )
    trusted: list[Any] = list(options.key)
    if options.root_certificate:
        trusted += [TrustedRoots(r, subject=options.subject) for r in options.root_certificate]
    if options.trust_store:
        lowest = options.minimum_store_version
        trusted.append(
            TrustStore.load(
                options.trust_store,
                options.root,
                minimum_store_version=1 if lowest is None else lowest,
                root_threshold=options.root_threshold,
            )
        )
    if options.trust_required and not trusted:
        raise ValueError(
            "Somebody must be trusted. Received: none of --key, --root-certificate and "
            "--trust-store. Name the owner's public key with --key."
        )
    return trusted
