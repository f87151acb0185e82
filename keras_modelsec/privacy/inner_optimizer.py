"""Which optimizers a DP optimizer can wrap, and which bounds and noise float32 can hold."""

from typing import Any

import keras

# Far enough from where float32 ends that neither a deviation nor a share of it is lost.
_SMALLEST, _LARGEST = 1e-30, 1e30


def check_inner_optimizer(inner_optimizer: Any, wrapper: type) -> None:
    """Raises TypeError or ValueError if `wrapper` cannot step this optimizer once per release."""
    if not isinstance(inner_optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`inner_optimizer` must be a Keras optimizer or its name. Received: "
            f"{inner_optimizer!r}."
        )
    if isinstance(inner_optimizer, wrapper | keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`inner_optimizer` must not wrap another optimizer. Received: "
            f"{type(inner_optimizer).__name__}. DPOptimizer scales float16 losses by itself."
        )
    for option in ("gradient_accumulation_steps", "loss_scale_factor"):
        if getattr(inner_optimizer, option, None) is not None:
            raise ValueError(
                f"`{option}` must not be set on the inner optimizer, where it would act on every "
                f"noisy batch. Received: {option}={getattr(inner_optimizer, option)}. "
                + (
                    "Pass gradient_accumulation_steps to DPOptimizer instead."
                    if option.startswith("gradient")
                    else "Leave it out: DPOptimizer scales float16 losses by itself."
                )
            )


def check_float32_holds(l2_norm_clip: float, noise_multiplier: float) -> None:
    """Raises ValueError for a bound or noise that would become zero, denormal or infinite.

    The accounts would charge for noise that is not there.
    """
    values = {
        "l2_norm_clip": l2_norm_clip,
        "noise_multiplier * l2_norm_clip": noise_multiplier * l2_norm_clip,
    }
    for name, value in values.items():
        if not (_SMALLEST <= value <= _LARGEST or (value == 0 and noise_multiplier == 0)):
            raise ValueError(
                f"`{name}` must be between {_SMALLEST:g} and {_LARGEST:g}, or float32 loses it "
                f"(`noise_multiplier` may be 0). Received: l2_norm_clip={l2_norm_clip}, "
                f"noise_multiplier={noise_multiplier}."
            )
