import base64
import pickle
from pathlib import Path

import pytest

from keras_modelsec._signing import key_wrapping
from keras_modelsec._signing.secrets import EnvironmentVariable
from keras_modelsec.errors import DecryptionError, KeyFormatError, WrongPasswordError
from keras_modelsec.integrity.encryption.encryption_format import (
    MOST_PASSPHRASES,
    PASSPHRASE,
    RAW_KEY,
    RECIPIENT,
    Slot,
)
from keras_modelsec.integrity.encryption.encryption_keys import EncryptionPrivateKey
from keras_modelsec.integrity.encryption.key_slots import (
    Passphrase,
    locks_for,
    open_slots,
    openers_for,
)

DATA_KEY = b"d" * 32
RAW = bytes(range(32))


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(key_wrapping, "MEMORY_KIB", 32)
    monkeypatch.setattr(key_wrapping, "ITERATIONS", 1)


@pytest.fixture(scope="module")
def private():
    return EncryptionPrivateKey.generate()


@pytest.fixture
def pair(private, tmp_path):
    (tmp_path / "a.key").write_bytes(private.to_pem())
    (tmp_path / "a.pub").write_bytes(private.public_key.pem)
    return tmp_path / "a.key", tmp_path / "a.pub"


def seals_and_opens(lock_with, open_with, password=None):
    slots = [lock.seal(DATA_KEY) for lock in locks_for(lock_with)]
    return open_slots(slots, openers_for(open_with, password)) == DATA_KEY


def test_recipient_by_path_text_bytes_and_object(private, pair):
    key, public = pair
    for lock in (public, str(public), public.read_text(), public.read_bytes(), private.public_key):
        for opener in (key, str(key), key.read_text(), key.read_bytes(), private):
            assert seals_and_opens(lock, opener)


def test_wrapped_private_key_opens_with_its_password(private, tmp_path):
    path = tmp_path / "a.key"
    path.write_bytes(private.to_pem(b"word"))
    assert seals_and_opens(private.public_key, path, "word")
    with pytest.raises(WrongPasswordError):
        openers_for(path, "wrong")
    with pytest.raises(WrongPasswordError):
        openers_for(path)


def test_raw_key_as_bytes_callable_and_environment_variable(monkeypatch):
    monkeypatch.setenv("MODEL_KEY", base64.b64encode(RAW).decode() + "\n")
    for key in (RAW, bytearray(RAW), lambda: RAW, EnvironmentVariable("MODEL_KEY")):
        assert seals_and_opens(key, RAW)
        assert seals_and_opens(RAW, key)


def test_passphrase_from_text_bytes_and_callable():
    for source in ("schlüssel", "schlüssel".encode(), lambda: "schlüssel"):
        assert seals_and_opens(Passphrase(source), Passphrase("schlüssel"))


def test_each_of_a_list_opens_alone_and_others_do_not(private):
    slots = [
        lock.seal(DATA_KEY) for lock in locks_for([RAW, Passphrase("word"), private.public_key])
    ]
    assert [slot.kind for slot in slots] == [RAW_KEY, PASSPHRASE, RECIPIENT]
    for key in (RAW, Passphrase("word"), private, [bytes(32), private]):
        assert open_slots(slots, openers_for(key)) == DATA_KEY
    for key in (bytes(32), Passphrase("other"), EncryptionPrivateKey.generate()):
        with pytest.raises(DecryptionError, match="1 32-byte keys, 1 passphrases, 1 private keys"):
            open_slots(slots, openers_for(key))


def test_slot_of_one_kind_does_not_open_as_another(private):
    (slot,) = [lock.seal(DATA_KEY) for lock in locks_for(RAW)]
    with pytest.raises(DecryptionError):
        open_slots([slot], openers_for([Passphrase("word"), private]))


def test_the_wrong_one_of_a_pair_is_refused(private, pair):
    key, public = pair
    for source in (key, private):
        with pytest.raises(KeyFormatError, match="a private key"):
            locks_for(source)
    for source in (public, private.public_key):
        with pytest.raises(KeyFormatError, match="a public key"):
            openers_for(source)


@pytest.mark.parametrize("resolve", [locks_for, openers_for])
@pytest.mark.parametrize(
    ("key", "error"),
    [
        (b"short", KeyFormatError),
        (b"x" * 33, KeyFormatError),
        (lambda: b"short", KeyFormatError),
        (lambda: "not base64!", KeyFormatError),
        (lambda: base64.b64encode(b"short").decode(), KeyFormatError),
        (lambda: None, KeyFormatError),
        (7, KeyFormatError),
        (None, KeyFormatError),
        ([], ValueError),
        ("no such file", FileNotFoundError),
        (Path("nowhere.pub"), FileNotFoundError),
        ("nul\0", KeyFormatError),
        ("-----BEGIN something", KeyFormatError),
    ],
)
def test_what_is_no_key_is_refused_by_name(resolve, key, error):
    with pytest.raises(error) as caught:
        resolve(key)
    assert "Received" in str(caught.value)


@pytest.mark.parametrize("resolve", [locks_for, openers_for])
def test_passphrase_in_the_wrong_place_is_not_repeated(resolve, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_KEY", "correct horse")
    for key in ("correct horse", EnvironmentVariable("MODEL_KEY"), b"correct horse"):
        with pytest.raises((KeyFormatError, OSError), match="Passphrase|os.urandom") as caught:  # noqa: RUF043
            resolve(key)
        assert "correct" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"missing\.pub"):
        resolve(str(tmp_path / "missing.pub"))


def test_too_many_keys_are_refused():
    assert len(locks_for([RAW] * 64)) == 64
    with pytest.raises(ValueError, match="1 to 64"):
        locks_for([RAW] * 65)
    with pytest.raises(ValueError, match="at most 4 passphrases"):
        locks_for([Passphrase("word")] * 5)


def test_passphrase_is_asked_for_once_however_many_slots_there_are():
    asked = []

    def ask():
        asked.append(1)
        return "word"

    slots = [lock.seal(DATA_KEY) for lock in locks_for([Passphrase("a"), Passphrase(ask)])]
    assert len(asked) == 1
    assert open_slots(slots, openers_for(Passphrase(ask))) == DATA_KEY
    assert len(asked) == 2


def test_passphrase_shows_itself_nowhere():
    phrase = Passphrase("correct horse")
    assert "correct" not in repr(phrase) + str(phrase) + repr([phrase])
    with pytest.raises(TypeError, match="must not be pickled"):
        pickle.dumps(phrase)
    with pytest.raises(TypeError, match="None"):
        Passphrase(None)
    with pytest.raises(ValueError, match="empty"):
        Passphrase("")


def test_hostile_cost_in_a_passphrase_slot_is_a_decryption_error():
    (slot,) = [lock.seal(DATA_KEY) for lock in locks_for(Passphrase("word"))]
    body = bytearray(slot.body)
    body[8:12] = (1 << 30).to_bytes(4, "little")
    with pytest.raises(DecryptionError, match="KiB of memory"):
        Passphrase("word").open(bytes(body))


@pytest.fixture
def tries(monkeypatch):
    """How often Argon2id is run."""
    runs, real = [], key_wrapping._derive
    monkeypatch.setattr(key_wrapping, "_derive", lambda *given: runs.append(1) or real(*given))
    return runs


def with_cost(slot, memory_kib, passes):
    body = slot.body
    cost = bytes([passes, 0]) + memory_kib.to_bytes(4, "little")
    return Slot(slot.kind, body[:6] + cost + body[12:])


def test_slots_that_cost_too_much_together_are_refused_before_any_is_tried(tries):
    slots = [lock.seal(DATA_KEY) for lock in locks_for([Passphrase("a"), RAW, Passphrase("b")])]
    slots[0] = with_cost(slots[0], 128 << 10, 3)
    slots[2] = with_cost(slots[2], (128 << 10) + 1, 3)
    tries.clear()
    with pytest.raises(DecryptionError, match=r"at most 786432 KiB .* in all.*2 that cost 786435"):
        open_slots(slots, openers_for([Passphrase("b"), Passphrase("c")]))
    assert not tries
    assert open_slots(slots, openers_for(RAW)) == DATA_KEY  # who tries no passphrase pays for none


def test_as_many_passphrases_as_may_be_set_can_be_tried(monkeypatch, tries):
    monkeypatch.undo()  # the real cost
    monkeypatch.setattr(key_wrapping, "_derive", lambda *given: tries.append(1) or (bytes(32),) * 2)
    slots = [lock.seal(DATA_KEY) for lock in locks_for([Passphrase("x")] * MOST_PASSPHRASES)]
    assert open_slots(slots, openers_for(Passphrase("x"))) == DATA_KEY


def test_no_two_seals_are_alike(private):
    for lock in locks_for([RAW, Passphrase("word"), private.public_key]):
        first, second = lock.seal(DATA_KEY).body, lock.seal(DATA_KEY).body
        assert first != second
        assert DATA_KEY not in first + second
