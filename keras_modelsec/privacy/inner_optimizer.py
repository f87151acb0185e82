"""Which optimizers a DP optimizer can wrap."""

from typing import Any

import keras


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
