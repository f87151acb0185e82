"""How often training data can hold one example, as far as the data themselves show it.

Owns what is claimed of arrays, `tf.data` pipelines and other sources; what the claims cost is
`accounting.py`'s.
"""

from typing import Any, NamedTuple

import keras

from keras_modelsec._core import backend
from keras_modelsec.errors import NotPrivateError

# What hands on each element it reads at most once, and makes no elements of its own.
_KEEPING = {
    "AssertCardinality", "Cache", "DenseToRagged", "Filter", "IgnoreErrors", "Map", "Options",
    "ParallelMap", "Prefetch", "Restructured", "Shard", "Shuffle", "Skip", "Take", "TakeWhile",
    "Unbatch", "Zip",
}  # fmt: skip
_BATCHING = {"Batch", "PaddedBatch", "ParallelBatch", "Rebatch"}
_ORIGINS = {"TensorSlice", "Tensor", "Range", "TFRecord", "TextLine", "FixedLengthRecord"}
_JOINING = {"Concatenate"}
_REPEATING = {"Repeat", "ShuffleAndRepeat"}
_PER_REPLICA = "PerReplica"  # batches of one release, which may hold the same examples
# After a repetition these shift where a pass ends, or how many examples are between its ends.
_SHIFTING = {"Filter", "IgnoreErrors", "Shard", "Skip", "Unbatch", "Zip", "Concatenate"}


class DataSource(NamedTuple):
    """What is known of a source of training data.

    Attributes:
        once: Whether an example comes at most once before Keras starts the data over.
        once_a_batch: Whether a batch holds an example at most once.
        in_passes: Whether a pass over the data ends before the next begins, if there are several.
    """

    once: bool
    once_a_batch: bool
    in_passes: bool


NOTHING_KNOWN = DataSource(once=False, once_a_batch=True, in_passes=True)
_DEFAULT_BATCH_SIZE = 32  # of keras.Model.fit, for arrays
_ONCE = DataSource(once=True, once_a_batch=True, in_passes=True)


def describe(x: Any, steps_per_epoch: int | None = None) -> DataSource:
    """What is known of the data given to `fit`.

    Arrays and a `keras.utils.PyDataset` with a length hold each example once. So does a `tf.data`
    pipeline in which nothing repeats, meets itself (as in `zip((data, data.skip(1)))`) or
    generates; what a function inside of it does (`map` over whole batches, above all) is not seen.
    Of generators, data loaders and pipelines with `flat_map`, `interleave` or `from_generator`
    nothing is known, and a batch is taken to hold an example at most once.

    A `PyDataset` that changes between epochs (`on_epoch_begin`, `on_epoch_end`), by shuffling say,
    changes in the middle of a pass where an epoch is no pass: of that nothing is known either.

    Args:
        x: The argument of `fit`.
        steps_per_epoch: Another one.
    """
    step = backend.dataset_steps(x)
    if step is not None and step.kind == _PER_REPLICA:
        return DataSource(once=False, once_a_batch=False, in_passes=False)
    if step is not None:
        return _of_pipeline(step, batches_later=False, reorders_later=False)
    if isinstance(x, keras.utils.PyDataset):
        is_pass = x.num_batches is not None and steps_per_epoch in (None, x.num_batches)
        return _ONCE if is_pass or _stays_as_it_is(x) else NOTHING_KNOWN
    return _ONCE if _are_arrays(keras.tree.flatten(x)) else NOTHING_KNOWN


def batch_size_in_fit(x: Any, batch_size: int | None) -> int | None:
    """How many examples a batch has at most; None if the data do not say it.

    Args:
        x: The argument of `fit`.
        batch_size: Another argument of `fit`, for arrays.
    """
    leaves = keras.tree.flatten(x)
    if _are_arrays(leaves):
        return int(min(batch_size or _DEFAULT_BATCH_SIZE, leaves[0].shape[0]))
    return backend.dataset_batch_size(x)


def _stays_as_it_is(data: keras.utils.PyDataset) -> bool:
    """Whether its length is known and nothing is done to it between epochs."""
    return data.num_batches is not None and all(
        getattr(type(data), hook, None) is getattr(keras.utils.PyDataset, hook, None)
        for hook in ("on_epoch_begin", "on_epoch_end")
    )


def _are_arrays(leaves: list[Any]) -> bool:
    return bool(leaves) and all(getattr(leaf, "shape", ()) for leaf in leaves)


def check_batches_are_bounded(source: DataSource, dataset_size: int, is_spanning: bool) -> None:
    """Refuses data of which a batch may hold an example any number of times.

    Args:
        source: What is known of the data.
        dataset_size: As told, 0 if it was not or cannot be of use.
        is_spanning: Whether batches accumulated earlier wait for their release.

    Raises:
        NotPrivateError: If so.
    """
    if source.once_a_batch or (dataset_size and not is_spanning):
        return
    why = "and batches accumulated earlier that were not yet released"
    if not source.in_passes:
        why = "and a shuffle or another step after it that mixes the repetitions"
    elif not dataset_size:
        why = "and no `dataset_size`"
    raise NotPrivateError(
        "Training data that repeat, or meet themselves, before they are batched can hold an "
        "example several times in one batch, which must be bounded, and so can batches that a "
        "function makes for each replica. Received: a tf.data pipeline with such a step before "
        f"`batch`, {why}; or `distribute_datasets_from_function`. Give `fit` the data set itself. "
        "Leave `repeat` out (`fit` starts the data over "
        "in each epoch), or repeat the batches (`.batch(...).repeat()`), or shuffle before "
        "`repeat` and say how many examples there are: ms.PrivacyBudget(dataset_size=...)."
    )


def _of_pipeline(
    step: backend.DatasetStep, *, batches_later: bool, reorders_later: bool
) -> DataSource:
    """Of the steps up to this one, given what is done to their elements after it."""
    if step.kind in _REPEATING or _meets_itself(step):
        return DataSource(
            once=False,
            once_a_batch=not batches_later,
            in_passes=not reorders_later and step.kind in _REPEATING,
        )
    known = step.kind in _KEEPING | _BATCHING | _ORIGINS | _JOINING
    found = [
        _of_pipeline(
            source,
            batches_later=batches_later or step.kind in _BATCHING or not known,
            reorders_later=reorders_later or step.reorders or step.kind in _SHIFTING or not known,
        )
        for source in step.sources
    ]
    return DataSource(
        once=known and all(source.once for source in found),
        once_a_batch=all(source.once_a_batch for source in found),
        in_passes=all(source.in_passes for source in found),
    )


def _meets_itself(step: backend.DatasetStep) -> bool:
    """Whether a step reads one source on two ways, and so may hold an example twice."""
    identities = [_identities(source) for source in step.sources]
    return len(set().union(*identities)) < sum(map(len, identities))


def _identities(step: backend.DatasetStep) -> set[int]:
    return {step.identity}.union(*map(_identities, step.sources))
