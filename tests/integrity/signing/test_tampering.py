"""Every field of every layer, changed, removed, doubled or added to: all refused, by name."""

import base64
import json
import time

import pytest

from keras_modelsec._signing.keys import SigningKey
from keras_modelsec._signing.sigstore_bundle import Envelope
from keras_modelsec.errors import SignatureError
from keras_modelsec.integrity import verify

OTHER_VALUES = (None, True, False, 0, 1.5, "", "x", [], {}, ["x"], {"x": "x"}, "\ud800", "A" * 64)


@pytest.fixture
def must_fail(public):
    def check(model, what):
        with pytest.raises(SignatureError) as caught:
            verify(model, public)
        assert str(caught.value), what

    return check


def mutations(value, tools):
    """(description, JSON text) for each change of each node of a JSON value."""
    for path in tools.nodes(value):
        old = tools.at(value, path)
        for new in (*OTHER_VALUES, [old], [old, old], {"a": old}):
            if type(new) is not type(old) or new != old:
                yield (path, new), json.dumps(tools.replaced(value, path, new))
        if isinstance(old, str) and old:
            for new in (old[:-1], old + " ", old.upper(), old.swapcase(), "\n" + old):
                if new != old:
                    yield (path, new), json.dumps(tools.replaced(value, path, new))
        if isinstance(old, list):
            for new in (old + old[:1], old[1:], old + ["x"]):
                if new != old:
                    yield (path, new), json.dumps(tools.replaced(value, path, new))
        if isinstance(old, dict):
            yield (path, "added"), json.dumps(tools.replaced(value, path, {**old, "extra": "x"}))
        if path and isinstance(path[-1], str):
            yield (path, "removed"), json.dumps(tools.deleted(value, path))


@pytest.mark.parametrize("kind", ["signed_file", "signed_folder"])
def test_every_changed_field_of_the_bundle_fails(kind, request, forger, json_tools, must_fail):
    signed = request.getfixturevalue(kind)
    count = 0
    for what, text in mutations(forger.bundle(signed.signature), json_tools):
        signed.signature.write_text(text, encoding="utf-8")
        must_fail(signed.path, what)
        count += 1
    assert count > 200


def test_every_changed_field_of_the_statement_fails_under_the_old_signature(
    signed_folder, forger, json_tools, must_fail
):
    bundle = forger.bundle(signed_folder.signature)
    count = 0
    for what, text in mutations(forger.statement(signed_folder.signature), json_tools):
        payload = base64.b64encode(text.encode()).decode()
        forged = json_tools.replaced(bundle, ("dsseEnvelope", "payload"), payload)
        signed_folder.signature.write_text(json.dumps(forged))
        must_fail(signed_folder.path, what)
        count += 1
    assert count > 400


@pytest.mark.parametrize("kind", ["signed_file", "signed_folder"])
def test_every_changed_field_of_the_statement_fails_even_when_signed_by_a_trusted_key(
    kind, request, forger, json_tools, must_fail
):
    # Signed nonsense must not be read leniently. The subject's name alone is information only.
    signed = request.getfixturevalue(kind)
    count = 0
    for what, text in mutations(forger.statement(signed.signature), json_tools):
        path, new = what
        if path == ("subject", 0, "name") and isinstance(new, str) and new != "\ud800":
            continue
        forger.write_payload(signed.signature, text.encode())
        must_fail(signed.path, what)
        count += 1
    assert count > 300


def test_duplicate_keys_fail_at_every_level(signed_folder, forger, must_fail):
    text = signed_folder.signature.read_text()
    for name in ("mediaType", "publicKey", "hint", "payload", "signatures", "sig", "keyid"):
        signed_folder.signature.write_text(
            text.replace(f'"{name}":', f'"{name}":null,"{name}":', 1)
        )
        must_fail(signed_folder.path, name)
        signed_folder.signature.write_text(text)
    statement = json.dumps(forger.statement(signed_folder.signature), separators=(",", ":"))
    for name in ("_type", "predicateType", "sha256", "method", "allow_symlinks", "digest"):
        twice = statement.replace(f'"{name}":', f'"{name}":null,"{name}":', 1)
        assert twice != statement
        forger.write_payload(signed_folder.signature, twice.encode())
        must_fail(signed_folder.path, name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.append(dict(r[0])), "name each file once"),
        (lambda r: r.append({**r[0], "name": "."}), "hold '.' alone"),
        (lambda r: r[0].update(name="/etc/passwd"), "relative POSIX path"),
        (lambda r: r[0].update(name="../escape"), "relative POSIX path"),
        (lambda r: r[0].update(name="a/../../escape"), "relative POSIX path"),
        (lambda r: r[0].update(name="a//b"), "relative POSIX path"),
        (lambda r: r[0].update(name="a/"), "relative POSIX path"),
        (lambda r: r[0].update(name="./saved_model.pb"), "relative POSIX path"),
        (lambda r: r[0].update(name="a\\b"), "relative POSIX path"),
        (lambda r: r[0].update(name="a\0b"), "relative POSIX path"),
        (lambda r: r[0].update(digest=r[0]["digest"].upper()), "lower-case hexadecimal"),
        (lambda r: r[0].update(algorithm="sha256-sharded-1000000"), "`algorithm` must be 'sha256'"),
        (lambda r: r[0].update(annotations=[]), "`annotations` must be a JSON object"),
        (lambda r: r.clear(), "at least one file"),
    ],
)
def test_hostile_resources_are_named(signed_folder, forger, json_tools, public, edit, message):
    statement = forger.statement(signed_folder.signature)
    edit(statement["predicate"]["resources"])
    forger.write_statement(signed_folder.signature, json_tools.fix_root(statement))
    with pytest.raises(SignatureError, match=message):
        verify(signed_folder.path, public)


def test_annotations_of_a_resource_are_allowed(signed_folder, forger, public):
    statement = forger.statement(signed_folder.signature)
    statement["predicate"]["resources"][0]["annotations"] = {"note": "x"}
    forger.write_statement(signed_folder.signature, statement)
    verify(signed_folder.path, public)


def test_resources_may_stand_in_any_order(signed_folder, forger, json_tools, public):
    statement = forger.statement(signed_folder.signature)
    statement["predicate"]["resources"].reverse()
    forger.write_statement(signed_folder.signature, statement)
    with pytest.raises(SignatureError, match="be that of the listed resources"):
        verify(signed_folder.path, public)
    forger.write_statement(signed_folder.signature, json_tools.fix_root(statement))
    verify(signed_folder.path, public)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "shards", "'shards', an optional method.*not supported"),
        ("hash_type", "blake2b", "`hash_type` must be 'sha256'"),
        ("hash_type", "blake3", "`hash_type` must be 'sha256'"),
        ("allow_symlinks", True, "`allow_symlinks` must be False"),
        ("ignore_paths", ["../secret"], "A signed file name must be"),
        ("ignore_paths", [".git", ".git"], "name each path once"),
        ("ignore_paths", "x", "`ignore_paths`"),
        ("shard_size", 1000, "exactly the fields"),
    ],
)
def test_unsupported_serialization_is_named(signed_folder, forger, public, field, value, message):
    statement = forger.statement(signed_folder.signature)
    statement["predicate"]["serialization"][field] = value
    forger.write_statement(signed_folder.signature, statement)
    with pytest.raises(SignatureError, match=message):
        verify(signed_folder.path, public)


def test_second_signature_is_refused_even_if_both_are_good(signed_file, forger, public):
    bundle = forger.bundle(signed_file.signature)
    bundle["dsseEnvelope"]["signatures"] *= 2
    signed_file.signature.write_text(json.dumps(bundle))
    with pytest.raises(SignatureError, match="exactly one item"):
        verify(signed_file.path, public)


@pytest.mark.parametrize("public_key", [{}, {"hint": None}, {"hint": ""}])
def test_missing_hint_is_refused(signed_file, forger, public, public_key):
    bundle = forger.bundle(signed_file.signature)
    bundle["verificationMaterial"]["publicKey"] = public_key
    signed_file.signature.write_text(json.dumps(bundle))
    with pytest.raises(SignatureError):
        verify(signed_file.path, public)


@pytest.mark.parametrize("edit", ["unpadded", "line break", "url-safe", "stray bits"])
def test_base64_has_one_spelling(signed_file, forger, public, edit):
    bundle = forger.bundle(signed_file.signature)
    entry = bundle["dsseEnvelope"]["signatures"][0]
    if edit == "unpadded":
        bundle["dsseEnvelope"]["payload"] += "="
    elif edit == "line break":
        entry["sig"] = entry["sig"][:10] + "\n" + entry["sig"][10:]
    elif edit == "url-safe":
        entry["sig"] = "-" + entry["sig"][1:]
    else:
        assert base64.b64decode("AB==", validate=True) == base64.b64decode("AA==")
        entry["sig"] = "AB=="
    signed_file.signature.write_text(json.dumps(bundle))
    with pytest.raises(SignatureError, match="base64"):
        verify(signed_file.path, public)


def test_signature_with_trailing_or_non_canonical_der_is_refused(signed_file, key, public):
    envelope = Envelope.from_bytes(signed_file.signature.read_bytes())
    der = envelope.signature
    length = der[1]
    forms = (
        der + b"\0",
        bytes([0x30, 0x81, length]) + der[2:],  # long form of a short length
        bytes([0x30, length + 1]) + der[2:4] + b"\0" + der[4:],
        der[:-1],
        b"",
        b"\x30\x06\x02\x01\x00\x02\x01\x00",  # r = s = 0
    )
    for form in forms:
        forged = Envelope(envelope.hint, envelope.payload, form)
        signed_file.signature.write_bytes(forged.to_bytes())
        with pytest.raises(SignatureError, match="altered or forged"):
            verify(signed_file.path, public)


@pytest.mark.parametrize("depth", [500, 900, 1100, 100_000, 4_000_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deeply_nested_json_is_a_signature_error(signed_file, public, depth, opening):
    for text in (opening * depth, opening * depth + "1" + ("]" if opening == "[" else "}") * depth):
        if len(text) < 16 << 20:
            signed_file.signature.write_text(text)
            with pytest.raises(SignatureError):
                verify(signed_file.path, public)


def test_deeply_nested_json_signed_by_a_trusted_key_is_a_signature_error(
    signed_file, forger, public
):
    statement = json.dumps(forger.statement(signed_file.signature))
    for depth in (400, 800, 900, 950, 990, 50_000):
        nested = "[" * depth + "]" * depth
        for text in (nested, statement.replace('"."', nested), statement.replace("false", nested)):
            forger.write_payload(signed_file.signature, text.encode())
            with pytest.raises(SignatureError):
                verify(signed_file.path, public)


@pytest.mark.parametrize("piece", ["[],", "{},", '"",', "1.5,", '{"a":1},'])
def test_json_that_would_use_up_the_memory_is_not_parsed(signed_file, public, piece):
    signed_file.signature.write_text("[" + piece * ((15 << 20) // len(piece)) + "0]")
    start = time.thread_time()
    with pytest.raises(SignatureError, match="at most 64 values"):
        verify(signed_file.path, public)
    assert time.thread_time() - start < 2  # parsing it would take longer, and gigabytes


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"NaN", b"\xff", b"\xef\xbb\xbf{}", b"9" * 5000, b'"' + b"\\ud800" * 3 + b'"']
    + [b"{} {}", b"\0", b"[1e999]", b'{"mediaType": NaN}', b"{" + b'"\\ud800":1,' * 3 + b'"a":2}'],
)
def test_malformed_json_is_a_signature_error(signed_file, public, data):
    signed_file.signature.write_bytes(data)
    with pytest.raises(SignatureError) as caught:
        verify(signed_file.path, public)
    str(caught.value).encode("utf-8")  # must be printable


def test_other_keys_signature_over_the_same_payload_does_not_transfer(
    signed_file, public, other_key: SigningKey
):
    envelope = Envelope.from_bytes(signed_file.signature.read_bytes())
    forged = Envelope(envelope.hint, envelope.payload, other_key.sign(envelope.payload))
    signed_file.signature.write_bytes(forged.to_bytes())
    with pytest.raises(SignatureError, match="altered or forged"):
        verify(signed_file.path, public)


def test_signature_over_the_bare_payload_is_refused(signed_file, public, key):
    # What was signed must be bound to its type: DSSE's encoding, not the payload alone.
    envelope = Envelope.from_bytes(signed_file.signature.read_bytes())
    forged = Envelope(envelope.hint, envelope.payload, key.sign(envelope.payload))
    signed_file.signature.write_bytes(forged.to_bytes())
    with pytest.raises(SignatureError, match="altered or forged"):
        verify(signed_file.path, public)
