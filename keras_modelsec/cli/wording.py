"""Messages of the package in the words of the command line: options for Python arguments."""

_PHRASES = (
    ("to `trusted_keys` as keras_modelsec.trust.TrustedRoots", "with --root-certificate"),
    ("Wrap root certificates as keras_modelsec.trust.TrustedRoots", "Use --root-certificate"),
    ("keras_modelsec.TrustStore.load(path, root_keys)", "--trust-store and --root"),
    ("TrustStore(threshold=)", "`modelsec trust add --threshold`"),
    ("or of `trusted_keys`, signed", "or of --trusted-key, signed"),
    ("as `trusted_keys` if", "with --trusted-key if"),
    ("to `trusted_keys`", "with --key"),
    ("keras_modelsec.generate_keys or `modelsec keygen`", "`modelsec keygen`"),
    ("as one TrustedRoots", "in one file"),
    ("several TrustedRoots", "several --root-certificate"),
    ("with ms.sign", "with `modelsec sign`"),
    ("`name=`", "--name"),
    ("`write_parity`", "`modelsec protect`"),
)
_OPTIONS = {
    "certificates": "--certificate-chain",
    "expected_name": "--name",
    "ignore": "--ignore",
    "minimum_store_version": "--minimum-store-version",
    "parity_path": "--parity",
    "password": "--password",
    "path": "PATH",
    "redundancy": "--redundancy",
    "reference": "--reference",
    "root_keys": "--root",
    "root_threshold": "--root-threshold",
    "roots": "--root-certificate",
    "signature_path": "--signature",
    "signing_key": "--key",
    "subject": "--subject",
    "threshold": "--threshold",
    "trusted_keys": "--key",
}


def in_options(message: str) -> str:
    """`message` with the options of `modelsec` in place of the arguments they are passed as."""
    for phrase, words in _PHRASES:
        message = message.replace(phrase, words)
    for argument, option in _OPTIONS.items():
        message = message.replace(f"`{argument}`", option)
    return message
