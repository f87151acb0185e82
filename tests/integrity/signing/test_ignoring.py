"""Paths left out: said by the signer, decided by the reader, and the same in both tools."""

import os
import subprocess
import sys

import pytest

import keras_modelsec as ms
from keras_modelsec.errors import SignatureError, TamperedModelError, UnsafePathError
from keras_modelsec.integrity import sign, verify

IGNORED = [".cache", ".git"]


@pytest.fixture
def owner(tmp_path):
    return ms.generate_keys(tmp_path / "owner.pem")


@pytest.fixture
def model(tmp_path):
    """A folder as model hubs make it: with `.git`, and a cache that holds links."""
    path = tmp_path / "model"
    for folder in (".git/hooks", ".cache", "sub"):
        (path / folder).mkdir(parents=True)
    for name in ("weights", "sub/more", ".git/hooks/x", ".cache/blob"):
        (path / name).write_bytes(name.encode())
    return path


def model_signing(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "model_signing", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    return done.returncode, done.stdout + done.stderr


def test_ignored_paths_are_written_as_model_signing_reads_them(model, owner, forger):
    private, public = owner
    signature = sign(model, private, ignore=[".git/", ".cache"]).signature
    statement = forger.statement(signature)["predicate"]
    assert statement["serialization"]["ignore_paths"] == IGNORED
    assert [entry["name"] for entry in statement["resources"]] == ["sub/more", "weights"]
    command = ("verify", "key", model, "--signature", signature, "--public_key", public)
    code, output = model_signing(*command)
    assert code == 0, output
    verify(model, public, ignore=IGNORED)
    (model / ".cache" / "blob").write_bytes(b"other")
    (model / ".git" / "index").write_bytes(b"new")
    assert model_signing(*command)[0] == 0
    verify(model, public, ignore=IGNORED)
    (model / "weights").write_bytes(b"other")
    assert model_signing(*command)[0] == 1
    with pytest.raises(TamperedModelError, match=r"Changed: 'weights'"):
        verify(model, public, ignore=IGNORED)


def test_what_model_signing_left_out_is_left_out_here_if_the_reader_says_so(model, owner, tmp_path):
    private, public = owner
    signature = tmp_path / "model.sig"
    ignoring = ("--ignore-paths", model / ".cache")
    code, output = model_signing(
        "sign", "key", model, "--private_key", private, "--signature", signature, *ignoring
    )
    assert code == 0, output
    verify(model, public, ignore=IGNORED)
    for missing, name in ((".cache", r"\.cache/blob"), (".git", r"\.git/hooks/x")):
        with pytest.raises(TamperedModelError, match=rf"left out '.*`ignore`.*Added: '{name}'"):
            verify(model, public, ignore=[path for path in IGNORED if path != missing])


def test_signers_list_hides_nothing_and_the_readers_no_signed_file(model, owner):
    private, public = owner
    sign(model, private, ignore=["sub", *IGNORED])
    with pytest.raises(TamperedModelError, match=r"Added: 'sub/more'"):
        verify(model, public, ignore=IGNORED)
    verify(model, public, ignore=["sub", *IGNORED])
    sign(model, private, ignore=IGNORED)
    everything = ["sub", "weights", *IGNORED]
    verify(model, public, ignore=everything)
    (model / "sub" / "evil").write_bytes(b"x")  # the reader has said that nothing reads it
    verify(model, public, ignore=everything)
    (model / "sub" / "more").write_bytes(b"other")
    with pytest.raises(TamperedModelError, match=r"Changed: 'sub/more'"):
        verify(model, public, ignore=everything)
    (model / "sub" / "more").unlink()
    with pytest.raises(TamperedModelError, match=r"Missing: 'sub/more'"):
        verify(model, public, ignore=everything)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_nothing_to_who_ignores_them_and_refused_elsewhere(model, owner, tmp_path):
    private, public = owner
    (model / ".cache" / "link").symlink_to(tmp_path)
    sign(model, private, ignore=IGNORED)
    verify(model, public, ignore=IGNORED)
    (model / ".cache").rename(model / ".old")
    (model / ".cache").symlink_to(".old")
    with pytest.raises(UnsafePathError):
        verify(model, public, ignore=IGNORED)
    verify(model, public, ignore=[*IGNORED, ".old"])
    (model / "weights").rename(tmp_path / "weights")
    (model / "weights").symlink_to(tmp_path / "weights")
    with pytest.raises(SignatureError):  # a signed name is never ignored
        verify(model, public, ignore=[*IGNORED, ".old", "weights"])


def test_names_that_merely_begin_alike_are_not_ignored(model, owner):
    private, public = owner
    sign(model, private, ignore=IGNORED)
    for name in (".cachet", ".GIT"):
        (model / name).write_bytes(b"x")
        with pytest.raises(TamperedModelError, match="Added"):
            verify(model, public, ignore=IGNORED)
        (model / name).unlink()


@pytest.mark.parametrize("path", ["", ".", "..", "/", "/etc", "a/../b", "a//b", "./a", "a\\b"])
@pytest.mark.parametrize("tool", ["sign", "verify"])
def test_paths_that_lead_elsewhere_are_refused(model, owner, tool, path):
    private, public = owner
    use = (lambda: sign(model, private, ignore=path)) if tool == "sign" else None
    sign(model, private)
    use = use or (lambda: verify(model, public, ignore=path))
    with pytest.raises(ValueError, match="`ignore` must name") as caught:
        use()
    assert not isinstance(caught.value, SignatureError)


def test_nothing_ignored_reaches_who_loads(model, owner):
    private, public = owner
    sign(model, private, ignore=IGNORED)
    with pytest.raises(TamperedModelError, match="Added"), ms.verified_copy(model, public):
        pass


def test_model_with_ignored_paths_is_protected_located_and_repaired(model, owner):
    private, public = owner
    sign(model, private, ignore=IGNORED)
    with pytest.raises(TamperedModelError):
        ms.write_parity(model, private, redundancy=1)
    ms.write_parity(model, private, redundancy=1, ignore=IGNORED)
    assert ms.locate_tampering(model, public, ignore=IGNORED).is_clean
    (model / "weights").unlink()
    report = ms.repair(model, public, ignore=IGNORED)
    assert (report.missing, report.added) == (("weights",), ())
    assert ms.repair(model, public).added == (".cache/blob", ".git/hooks/x")
    verify(model, public, ignore=IGNORED)
