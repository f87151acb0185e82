"""A probe of what the model does in inference: it may keep nothing of what it is given.

`evaluate`, `predict` and validation run it on examples, often those of training, that no noise
protects. A layer that keeps something of them would take it into the weights that are released.
What a guard counts is no weight: it is in no file, and not private, as metrics are not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec.errors import UnsupportedModelError
from keras_modelsec.privacy.metric_probe import keeps_nothing_but
from keras_modelsec.privacy.probe_batches import Batch


def check_inference_keeps_nothing(
    model: keras.Model,
    trace: Callable[[Callable[[Any, Any, Any], list[Any]]], backend.TracedFunction],
    run: Callable[[backend.TracedFunction, Batch], Any],
    batches: Sequence[Sequence[Batch]],
    check_same_state: Callable[[backend.TracedFunction, list[Any], set[int]], None],
) -> None:
    """Refuses a model whose inference leaves variables behind that depend on the data.

    The arguments are those of `check_metrics_keep_to_themselves`.

    Raises:
        UnsupportedModelError: With the name of the variable; or if no inference can be compared.
    """
    step = trace(lambda x, *_: keras.tree.flatten(internals.call_for_inference(model, x)))
    refuse_unseen_state(step)
    if not keeps_nothing_but(_counters(model), model, step, run, batches, check_same_state):
        raise UnsupportedModelError(
            "A model trained privately must run in inference on the made-up examples that it is "
            f"trained with for trial. Received: model {model.name!r}, of which no inference came "
            "to its end, so that nobody knows what it keeps."
        )


def _counters(model: keras.Model) -> list[keras.Variable]:
    """What layers count for this process alone: named by `unsaved_counters`, and in no file.

    A layer that saves anything of its own is not believed, nor one whose counter could hold more
    of an example than one whole number.
    """
    found: list[keras.Variable] = []
    for layer in internals.flatten_layers(model):
        counters = getattr(layer, "unsaved_counters", ())
        saved: dict[str, Any] = {}
        if counters:
            layer.save_own_variables(saved)
        if not saved:
            found += [v for v in counters if len(v.shape) == 0 and "int" in v.dtype]
    return found


def refuse_unseen_state(step: backend.TracedFunction) -> None:
    """Refuses operations that keep data elsewhere than in variables."""
    if step.unseen_state:
        raise UnsupportedModelError(
            "A model trained privately must not keep its data, nor hand them to Python. "
            f"Received: a step with the operations {step.unseen_state}. Use TensorFlow "
            "operations without state; Python code belongs into the data pipeline."
        )
