"""Reads a trust store, by docs/trust-store-format.md alone.

python docs/readers/trust_store.py trust.json ROOT_PUBLIC_KEY...
"""

import datetime
import sys
from pathlib import Path

from signed import digest, open_envelope, require

TYPE = "application/vnd.keras-modelsec.trust-store.v1+json"


def read(data, roots, *, root_threshold=1, lowest_version=1, now=None):
    """What the store says, if the roots that the reader holds and its own roots signed it."""
    store = open_envelope(data, TYPE, roots, root_threshold)
    require(store.get("_type") == "https://keras_modelsec/trust-store/v1", "not a trust store")
    own = [pem.encode() for pem in store["roots"]]
    require(1 <= store["root_threshold"] <= len(own), "more signers wanted than there are")
    open_envelope(data, TYPE, own, store["root_threshold"])
    require(store["version"] >= lowest_version, "an older store than the one seen before")
    require(not store["expires"] or _time(now) <= store["expires"], "the store has expired")
    for key in store["keys"]:
        require(digest(key["pem"].encode()) == key["hint"], "a key under another's name")
    return store


def trusted(store, now=None):
    """The public keys, PEM by hint, that count at this moment."""
    revoked, moment = {key["hint"] for key in store["revoked_keys"]}, _time(now)
    return {
        key["hint"]: key["pem"]
        for key in store["keys"]
        if key["hint"] not in revoked
        and (key["not_before"] or moment) <= moment <= (key["not_after"] or moment)
    }


def accepts(store, statement, signers, now=None):
    """Whether a model's statement, signed by these hints, is what the store lets pass."""
    said, lowest = statement["predicate"], store["lowest_versions"]
    subject = statement["subject"][0]["digest"]["sha256"]
    files = {file["sha256"] for file in said["files"] if file["name"] == "."}
    revoked = {item["sha256"] for item in store["revoked_digests"]}
    needed = max(lowest.get("*", 0), lowest.get(said["model"], 0))
    enough = len(trusted(store, now).keys() & set(signers)) >= store["threshold"]
    return enough and said["version"] >= needed and not revoked & {subject, *files}


def _time(now):
    """As in the file: sorted as text, such times are sorted as times."""
    now = now or datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    store = read(Path(sys.argv[1]).read_bytes(), [Path(root).read_bytes() for root in sys.argv[2:]])
    print(f"version {store['version']}, expires {store['expires']}, trusts:")
    for hint in trusted(store):
        print(hint)
