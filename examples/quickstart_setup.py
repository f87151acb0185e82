"""What the quickstart settles before TensorFlow is loaded: options, data, settings and folders."""

import argparse
import contextlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import digits

import keras_modelsec as ms

LOGS = ("plain", "secured")


@dataclass(frozen=True)
class Settings:
    """What is chosen for a data set.

    Noise and budget go together: `epochs` passes at this `noise_multiplier` stay just within
    `max_epsilon`, with no amplification by sampling claimed. `delta` is well below one over the
    number of training images.
    """

    epsilon: float  # of the attacks in the maximum norm; pixels go from 0 to 1
    l2_epsilon: float
    units: int
    batch_size: int
    epochs: int
    learning_rate: float
    noise_multiplier: float
    max_epsilon: float
    delta: float
    plain_epochs: int
    attacked: int  # how many test images are attacked in the end
    watched: int  # ... and after each epoch


DIGITS = Settings(
    epsilon=0.15,
    l2_epsilon=0.6,
    units=128,
    batch_size=1440,  # all of them: the larger the batch, the less the noise matters
    epochs=30,
    learning_rate=0.02,
    noise_multiplier=5.5,
    max_epsilon=4.5,
    delta=1e-5,
    plain_epochs=20,
    attacked=357,
    watched=357,
)
MNIST_SHAPED = Settings(
    epsilon=0.1,
    l2_epsilon=1.0,
    units=128,
    batch_size=3000,
    epochs=10,
    learning_rate=0.002,
    noise_multiplier=3.2,
    max_epsilon=5.0,
    delta=1e-6,
    plain_epochs=3,
    attacked=500,
    watched=250,
)


@dataclass(frozen=True)
class Keys:
    """The owner's keys. The private one has no password, as a demo should not ask for one."""

    private: Path
    public: Path
    watermark: str


@dataclass(frozen=True)
class Setup:
    """What the quickstart works with."""

    data: digits.Digits
    settings: Settings
    output: Path
    json_paths: tuple[Path, ...]


def from_command_line(arguments: list[str] | None = None) -> Setup:
    """Reads the options; a wrong one ends the program with a message before anything is done."""
    sys.excepthook = _say_interrupted
    parser = argparse.ArgumentParser(
        prog="quickstart.py",
        description="Trains a plain and a secured model, attacks both, signs, tampers, verifies.",
    )
    parser.add_argument("--output", default="demo-output", metavar="DIR", help="folder for results")
    parser.add_argument("--data", metavar="NPZ", help="MNIST-shaped data instead of digits")
    parser.add_argument("--json", metavar="PATH", help="write the table as JSON here too")
    options = parser.parse_args(arguments)
    try:
        data = digits.load(options.data)
        output = _writable_folder(options.output)
        json_paths = [output / "results.json"]
        if options.json:
            json_paths.append(_writable_file(options.json))
    except (digits.DataError, OSError) as error:
        stop(error)
    settings = MNIST_SHAPED if options.data else DIGITS
    return Setup(data, settings, output, tuple(json_paths))


def stop(error: Exception) -> NoReturn:
    """Ends the program with a message and no traceback."""
    print(f"quickstart.py: {type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(2)


def get_keys(folder: Path) -> Keys:
    """The keys of an earlier run, or new ones; no key is ever overwritten."""
    private, public, watermark = (folder / n for n in ("owner.pem", "owner.pub", "watermark.key"))
    try:
        folder.mkdir(0o755, exist_ok=True)
        if private.exists() and public.exists():
            print(f"Signing with the key of an earlier run, {private}.")
        else:
            ms.generate_keys(private, public)
            print(f"Made a signing key, {private}, and its public half, {public}.")
        if not watermark.exists():
            with open(os.open(watermark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(ms.watermark.generate_key().hex())
        key = watermark.read_text().strip()
        ms.WatermarkRegularizer(key)  # says at once if the file is no key
        ms.SignOnSave(folder.parent / "secured.keras", private)  # and if others may write there
    except (OSError, ValueError) as error:
        stop(error)
    return Keys(private, public, key)


def clear_logs(folder: Path) -> None:
    """Removes the event files of an earlier run, which TensorBoard would draw over the new ones."""
    for run in LOGS:
        for path in (folder / run).glob("**/events.out.tfevents.*"):
            path.unlink()


def _writable_folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(0o755, parents=True, exist_ok=True)  # where others write, nothing is signed
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            f"--output must be a folder that can be written to. Received: {name!r} "
            f"({error.strerror}). Choose another."
        ) from None
    return folder


def _writable_file(name: str) -> Path:
    existed = os.path.lexists(name)
    try:
        with open(name, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise type(error)(
            f"--json must be a file that can be written to. Received: {name!r} "
            f"({error.strerror}). Choose another."
        ) from None
    if not existed:
        with contextlib.suppress(OSError):
            os.unlink(name)
    return Path(name)


def _say_interrupted(kind: type, error: BaseException, traceback: object) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(
            "\nInterrupted. A model that was signed before is still whole and verifies.",
            file=sys.stderr,
        )
    else:
        sys.__excepthook__(kind, error, traceback)
