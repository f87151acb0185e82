"""How a `tf.data` pipeline is made."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

Tensor = Any
Nested = Any


class DatasetStep(NamedTuple):
    """One step of a `tf.data` pipeline.

    Attributes:
        kind: What it does, such as "Batch" or "Repeat": the name of TensorFlow's class;
            "PerReplica" if a function makes batches for each replica, of which nothing is known.
        reorders: Whether it may hand on elements in another order than it received them.
        sources: The steps it reads from.
        identity: The same for one step that is read from at several places, and for no other.
    """

    kind: str
    reorders: bool
    sources: "tuple[DatasetStep, ...]"
    identity: int


def dataset_steps(data: Any) -> DatasetStep | None:
    """How a `tf.data.Dataset` is made, last step first; None for anything else.

    Reads `Dataset._inputs`, which says it, and `_deterministic` of parallel steps.
    """
    if isinstance(data, tf.distribute.DistributedDataset):
        original = getattr(data, "_original_dataset", None)
        known = isinstance(original, tf.data.Dataset)
        return dataset_steps(original) if known else DatasetStep("PerReplica", True, (), id(data))
    if not isinstance(data, tf.data.Dataset):
        return None
    return _dataset_step(data, data.options().deterministic is False)


# After these an element is no longer what was batched before them.
_UNBATCHING = {"Unbatch", "FlatMap", "Interleave", "ParallelInterleave", "Rebatch", "Window"}


def dataset_batch_size(data: Any) -> int | None:
    """How many examples a batch of a `tf.data.Dataset` has at most; None if it does not say."""
    if not isinstance(data, tf.data.Dataset):
        return None
    size = getattr(data, "_batch_size", None)
    if size is not None:
        return int(np.asarray(size))
    kind = type(data).__name__.removeprefix("_").removesuffix("V2").removesuffix("Dataset")
    sources = data._inputs()
    return dataset_batch_size(sources[0]) if sources and kind not in _UNBATCHING else None


def _dataset_step(dataset: tf.data.Dataset, parallel_reorders: bool) -> DatasetStep:
    name = type(dataset).__name__
    kind = name.removeprefix("_").removesuffix("V2").removesuffix("Dataset")
    reorders = kind.startswith(("Shuffle", "Parallel")) and (
        kind.startswith("Shuffle")
        or parallel_reorders
        or getattr(dataset, "_deterministic", "default") == "false"
    )
    sources = tuple(_dataset_step(source, parallel_reorders) for source in dataset._inputs())
    return DatasetStep(kind, reorders, sources, id(dataset))
