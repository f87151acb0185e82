"""Owns `WatermarkRegularizer`, which marks a kernel while it trains and keeps the mark there."""

import math
import re
import warnings
from typing import Any, ClassVar

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core.checks import check_integer, check_number, looks_like_key, shown
from keras_modelsec._core.serialization import register
from keras_modelsec.errors import WatermarkError, WatermarkKeyError, WatermarkWarning
from keras_modelsec.watermark import derivation, spreading
from keras_modelsec.watermark.keys import SecretKey

DEFAULT_RATE = 0.05
_KEY_ID = re.compile("[0-9a-f]{32}")


def _checked_key_id(key_id: Any) -> str | None:
    """A key_id as `derivation.key_id` makes it, or None; its value is in no message."""
    if key_id is None or (isinstance(key_id, str) and _KEY_ID.fullmatch(key_id)):
        return key_id
    raise WatermarkKeyError(
        f"`key_id` must be 32 lower-case hexadecimal digits, or None. Received: "
        f"{type(key_id).__name__} of another form. Leave it out: it comes from a saved config. The "
        "key itself is the first argument."
    )


def _checked_base(base: Any) -> Any:
    if isinstance(base, (str, bytes, bytearray)) and looks_like_key(base):
        raise TypeError(
            f"`base` must be a regularizer or None. Received: base={shown(base)}. The key is the "
            "first argument."
        )
    return keras.regularizers.get(base)


@register
class WatermarkRegularizer(keras.regularizers.Regularizer):
    """Writes the owner's mark into a kernel while it trains (spread spectrum).

    The key gives every weight of the kernel a sign. The penalty pulls each of the mark's 127 bits
    towards a margin: the mean of sign times weight should be `strength` times the scale of the
    weights. Once all bits are there it costs nothing, so training is free to do the rest.
    `ms.verify_watermark(model, key)` reads the mark, from plain weights, without this class.

    The key reaches no config, file, `repr` or pickle. A loaded regularizer is therefore inert: it
    adds no penalty and warns when it is first used, until `ms.watermark.restore_key(model, key)`.
    Export no function that computes the penalty (`model.losses`, a training step) with
    `ExportArchive` or `tf.saved_model`: it would hold the signs, by which the mark can be removed.

    What this does not stop: permuting or splitting neurons, distillation into a fresh model, and
    changes of the weights that the rest of the network cancels (shifts before a softmax or around
    normalisation, low-rank bypasses, rotations inside attention heads: `ms.verify_watermark` lists
    them) remove the mark, the last for nothing; a second owner can add a mark beside it (have a
    timestamped record of yours from before the release). It survives pruning, quantization, casts
    and moderate fine-tuning, and not training at a high rate or with a strong weight decay:
    `ms.verify_watermark` has figures.

    Args:
        key: At least 16 random bytes or their hexadecimal form: `ms.watermark.generate_key()`.
            May only be None where `key_id` is given, for an inert regularizer.
        strength: Margin in units of the weight scale, > 0. A kernel of n weights then reads with
            z = strength * sqrt(n / (1 + strength**2)). None (default) aims at z = 40 with at most
            0.5, which kept accuracy where it was on digits. Choose it by the margin wanted.
        rate: How fast the mark is pulled in, > 0, default 0.05: like an L2 factor, the fraction of
            the shortfall that plain gradient descent makes up per step and unit of learning rate.
        index: Which of the key's chip sequences for the kernel's shape, >= 0, default 0. Give
            kernels of one shape in one model the numbers 0, 1, 2, ... in any order
            (`ms.attach_watermark` does): with a shared sequence the mark is still read, but who
            averages the kernels comes closer to seeing it.
        base: Another regularizer for the same kernel, whose penalty is added; default None.
        key_id: Public name of the key, derived from it; comes from a saved config. With a key, it
            must be that key's. It is public: never pass the key here. Only a key of 16 bytes looks
            the same in hexadecimal digits and cannot be refused.

    Raises:
        WatermarkKeyError: If the key is missing, weak, malformed, or not the one of `key_id`, or
            `key_id` has not the form of one.
        TypeError: If `strength`, `rate`, `index` or `base` is of another type.
        ValueError: If `strength`, `rate` or `index` is out of range.

    Example:
    ```python
    key = ms.watermark.generate_key()
    layer = keras.layers.Dense(128, kernel_regularizer=ms.WatermarkRegularizer(key))
    ```

    Reference: Uchida et al. 2017 (arXiv 1701.04082) for embedding by a regularizer; Cox et al.
    1997, "Secure spread spectrum watermarking for multimedia", for spreading it.
    """

    _announced: ClassVar[set[str]] = set()
    # What `repr` shows of an instance whose arguments were refused.
    key_id: str | None = None
    index: int = 0
    _secret: SecretKey | None = None

    def __init__(
        self,
        key: Any = None,
        *,
        strength: float | None = None,
        rate: float = DEFAULT_RATE,
        index: int = 0,
        base: Any = None,
        key_id: str | None = None,
    ):
        self.strength = check_number("strength", strength, above=0, optional=True)
        self.rate = check_number("rate", rate, above=0)
        self.index = check_integer("index", index, minimum=0)
        self.base = _checked_base(base)
        self.key_id = _checked_key_id(key_id)
        self._signs_by_shape: dict[tuple[int, ...], Any] = {}
        if key is None and key_id is not None:
            self._announced.discard(key_id)  # a newly loaded model says it again
        else:
            self.restore_key(key)

    @property
    def is_active(self) -> bool:
        """Whether the key is known, so that the mark is being kept."""
        return self._secret is not None

    def restore_key(self, key: Any) -> None:
        """Gives an inert regularizer its key again.

        A model that has trained already must trace its steps again; the function
        `ms.watermark.restore_key(model, key)` sees to that.

        Args:
            key: The key that the regularizer was made with.

        Raises:
            WatermarkKeyError: If it is another key, or not a key at all.
        """
        secret = SecretKey(key)
        key_id = derivation.key_id(secret)
        if self.key_id not in (None, key_id):
            raise WatermarkKeyError(
                "The key must be the one this mark was made with. Received: a key with key_id "
                f"{key_id}, which is not that of the mark. Pass the right key, or attach a mark of "
                "the new key to a model from ms.export_plain(model)."
            )
        self.key_id = key_id
        self._secret = secret
        self._signs_by_shape = {}

    def __call__(self, x: Any) -> Any:
        """The penalty for the kernel `x`, a float32 scalar."""
        total = 0.0 if self.base is None else self.base(x)
        if self._secret is None:
            self._announce_inert()
            return ops.cast(total, "float32")
        shape = tuple(x.shape)
        signs = ops.cast(self._signs(self._secret, shape), "float32")
        strength = self.strength or spreading.default_strength(math.prod(shape))
        mark = spreading.penalty(ops.cast(x, "float32"), signs, strength, self.rate)
        return mark if self.base is None else mark + ops.cast(total, "float32")

    def _signs(self, secret: SecretKey, shape: tuple[int, ...]) -> Any:
        """The key's signs for a shape, derived once and held outside of every graph."""
        if not spreading.can_carry(shape):
            raise WatermarkError(
                "A marked kernel must have two or more axes and at least "
                f"{spreading.MIN_CARRIER_WEIGHTS} weights. Received: shape={shape}. Put the "
                "regularizer on a larger layer, or make this one larger."
            )
        if shape not in self._signs_by_shape:
            signs = derivation.signs(secret, shape, self.index).reshape(shape)
            # A graph that held them as its own constant would be traced and saved with them.
            self._signs_by_shape[shape] = backend.run_eagerly_now(
                lambda: ops.convert_to_tensor(signs)
            )
        return self._signs_by_shape[shape]

    def _announce_inert(self) -> None:
        if self.key_id in self._announced:
            return
        self._announced.add(str(self.key_id))
        warnings.warn(
            "A WatermarkRegularizer must have its key to keep the mark, and a saved file does not "
            f"hold it. Received: an inert one, key_id {self.key_id}; training can wear the mark "
            "away. Call ms.watermark.restore_key(model, key) before fit.",
            WatermarkWarning,
            stacklevel=3,
        )

    def get_config(self) -> dict[str, Any]:
        """All arguments but the key, in whose place stands its public name."""
        return {
            "strength": self.strength,
            "rate": self.rate,
            "index": self.index,
            "base": None if self.base is None else keras.regularizers.serialize(self.base),
            "key_id": self.key_id,
        }

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy holds: everything but the key, hence an inert regularizer."""
        return {**vars(self), "_secret": None, "_signs_by_shape": {}}

    def __repr__(self) -> str:
        state = "active" if self.is_active else "inert"
        return f"<WatermarkRegularizer {state}, key_id={self.key_id}, index={self.index}>"
