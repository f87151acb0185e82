"""The only file of the package that imports TensorFlow."""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Tensor = Any
Nested = Any


def value_and_gradients(
    fn: Callable[[], tuple[Tensor, Any]],
    variables: Sequence[keras.Variable] | Callable[[], Sequence[keras.Variable]],
) -> tuple[Any, list[Tensor | None]]:
    """Runs `fn() -> (loss, aux)` once and differentiates the loss.

    Args:
        fn: What to run.
        variables: With respect to what; a function is called after `fn`, which may be what builds
            the model and makes its variables.

    Returns:
        `aux`, and one gradient per variable (None where the loss does not depend on it).
    """
    with tf.GradientTape() as tape:
        loss, aux = fn()
    found = variables() if callable(variables) else variables
    return aux, tape.gradient(loss, [v.value for v in found])


def gradients_of_watched(
    fn: Callable[[Callable[[Tensor], int]], tuple[Tensor, Any]],
) -> tuple[Any, list[Tensor | None]]:
    """Differentiates a loss with respect to intermediate values, in one backward pass.

    Args:
        fn: `fn(watch) -> (loss, aux)`. It calls `watch(tensor)` on each intermediate value whose
            gradient is wanted, before it uses that value further; `watch` returns the place of
            that gradient in the result.

    Returns:
        `aux`, and one gradient per watched tensor in the order of the calls (None where the loss
        does not depend on it). Variables are not watched, so no weight gradient is computed.
    """
    watched: list[Tensor] = []
    with tf.GradientTape(watch_accessed_variables=False) as tape:

        def watch(tensor: Tensor) -> int:
            tape.watch(tensor)
            watched.append(tensor)
            return len(watched) - 1

        loss, aux = fn(watch)
    gradients = tape.gradient(loss, watched)
    return aux, [
        tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in gradients
    ]


def input_gradients(fn: Callable[[Nested], Tensor], inputs: Nested) -> Nested:
    """The gradient of the scalar `fn(inputs)` with respect to `inputs`, in their structure."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        value = fn(inputs)
    return tape.gradient(value, inputs, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def map_examples(fn: Callable[[Nested], Nested], elements: Nested) -> Nested:
    """Applies `fn` to each slice along axis 0, vectorised where the operations allow it."""
    return tf.vectorized_map(fn, elements)


def compile_function(fn: Callable[..., Any], *, jit_compile: bool = False) -> Callable[..., Any]:
    """Compiles `fn`; shapes that change are generalised instead of compiled again each time."""
    return tf.function(fn, reduce_retracing=True, autograph=False, jit_compile=jit_compile)


def replica_count() -> int:
    """How many replicas run the current step in parallel; 1 outside of a distribution strategy."""
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def forget_batch_size(inputs: Nested) -> Nested:
    """The same tensors, with the size of axis 0 hidden from shape inference while tracing.

    A tensor whose first axis is known afterwards cannot have got it from the batch.
    """
    if tf.executing_eagerly():
        return inputs
    return keras.tree.map_structure(
        lambda leaf: (
            leaf
            if leaf is None
            else tf.raw_ops.PlaceholderWithDefault(input=leaf, shape=[None, *leaf.shape[1:]])
        ),
        inputs,
    )


def may_be_batch_axis(size: int | None, batch: Tensor) -> bool:
    """Whether an axis of this static size can be the batch of what `forget_batch_size` returned.

    Args:
        size: The static size of the axis, None if it is not known.
        batch: The number of examples, a scalar tensor.
    """
    return size == int(batch) if tf.executing_eagerly() else size is None


def run_eagerly_now(fn: Callable[[], Any]) -> Any:
    """Runs `fn` at once, also while a step is being traced.

    In a thread of its own, since TensorFlow's way out of a trace stops gradient recording.
    """
    if tf.executing_eagerly():
        return fn()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(fn).result()


def assert_equal(left: Tensor, right: Tensor, message: str) -> None:
    """Raises, now or when the compiled step runs, unless the two tensors are equal."""
    tf.debugging.assert_equal(left, right, message=message)


class NoiseSource:
    """Gaussian noise that never repeats.

    The generator starts from the operating system's entropy unless a seed is given, keeps its state
    in a variable (a literal seed would be folded into a constant and the noise would repeat), and
    gives each replica a stream of its own when it is made inside the strategy's scope. The state is
    not tracked by Keras, so it reaches no file.

    Args:
        seed: An integer for reproducible tests, or None for the operating system's entropy.
    """

    def __init__(self, seed: int | None = None):
        with tf.init_scope():
            if seed is None:
                self._generator = tf.random.Generator.from_non_deterministic_state()
            else:
                self._generator = tf.random.Generator.from_seed(seed)

    def normal(self, shape: Sequence[int] | Tensor, stddev: Tensor | float) -> Tensor:
        """Independent float32 draws from N(0, stddev^2)."""
        return self._generator.normal(shape, dtype=tf.float32) * stddev


def compile_for_batches(
    fn: Callable[..., Any], examples: Sequence[Nested], *, jit_compile: bool = False
) -> Callable[..., Any]:
    """Compiles `fn` once for every batch size.

    Args:
        fn: Takes one positional argument for each of `examples`.
        examples: Arguments like those to come, nested tensors. Axis 0 of each tensor that has axes
            is left open; everything else is fixed.
        jit_compile: Whether to use XLA, which compiles again for each size it meets.
    """
    signature = keras.tree.map_structure(
        lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]] if leaf.shape.rank else [], leaf.dtype),
        list(examples),
    )
    # TensorFlow tells functions apart by their code, and would take the same attack on several
    # models for one function that it compiles too often. A partial has no code of its own.
    fn = functools.partial(fn)
    return tf.function(fn, input_signature=signature, autograph=False, jit_compile=jit_compile)


# As many steps as one trains with.
_UNROLLED_AT_MOST = 10


def repeat(fn: Callable[[Nested], Nested], state: Nested, times: int) -> Nested:
    """`fn(fn(...fn(state)))`, `times` times.

    While tracing, a long loop stays one: unrolled, 40 turns of a small network take 15 times as
    long to trace and optimise, and run no faster. A short one is unrolled, because TensorFlow does
    not optimise loops well inside the functions that Keras trains with.
    """
    if tf.inside_function() and times > _UNROLLED_AT_MOST:
        return tf.while_loop(
            lambda _: True,
            lambda current: (fn(current),),
            (state,),
            parallel_iterations=1,
            maximum_iterations=times,
        )[0]
    for _ in range(times):
        state = fn(state)
    return state


def require(condition: Tensor, message: str, *values: Tensor, passing: Nested) -> Nested:
    """`passing` itself if `condition` holds; what is computed from it waits for that.

    Under XLA nothing is checked.

    Raises:
        InvalidArgumentError: Now or when the compiled step runs, with `message` and `values`.
    """
    check = tf.debugging.Assert(condition, [message, *values])
    with tf.control_dependencies([] if check is None else [check]):
        return keras.tree.map_structure(tf.identity, passing)


def outside_compiled_function() -> Any:
    """A context manager that runs what is in it at once, also while a function is traced."""
    return tf.init_scope()


def variable_contents(variable: keras.Variable) -> list[Tensor]:
    """What each replica's copy of `variable` holds now; on the CPU without copying it.

    As long as a content is held, what assigns to the variable writes to other memory. Of variables
    that each replica updates for itself it is one content, what they are together.
    """
    value = variable.value
    copies = (value,)
    if isinstance(value, tf.distribute.DistributedValues):
        if value.synchronization == tf.VariableSynchronization.ON_READ:
            return [tf.convert_to_tensor(value)]
        copies = value.values
    return [tf.raw_ops.ReadVariableOp(resource=copy.handle, dtype=copy.dtype) for copy in copies]


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, on the CPU without copying them."""
    if tensor.dtype.size in (1, 2) and not tensor.dtype.is_bool:  # bfloat16 has no buffer format
        tensor = tf.bitcast(tensor, tf.uint16 if tensor.dtype.size == 2 else tf.uint8)
    view = memoryview(tensor)
    return view.cast("B") if view.nbytes else memoryview(b"")


def is_same_memory(left: Tensor, right: Tensor) -> bool:
    """Whether two contents of one variable are at one place, so that nothing was assigned between.

    False says nothing: some variables are copied whenever they are read.
    """
    views = [np.frombuffer(memory_of(tensor), np.uint8) for tensor in (left, right)]
    return views[0].ctypes.data == views[1].ctypes.data


def replica_index() -> Tensor | int:
    """Which replica of a distribution strategy runs this; 0 outside of one."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def variable_scope(model: keras.Model) -> Any:
    """A context manager in which new variables live where `model` keeps its own."""
    return model.distribute_strategy.scope()


# Operations that change the form of probabilities and not their meaning.
_PASSING_OPERATIONS = ("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims")


def undo_activation(tensor: Tensor) -> Tensor | None:
    """What went into the softmax or sigmoid that `tensor` came out of, in the shape of `tensor`.

    Follows the recorded graph back through casts and reshapes that keep the last axis.

    Returns:
        None if there is no such operation, or no graph to follow (eager execution).
    """
    if not tf.is_symbolic_tensor(tensor):
        return None
    source = tensor
    while source.op.type in _PASSING_OPERATIONS and source.op.inputs[0].dtype.is_floating:
        before = source.op.inputs[0]
        if source.shape.rank is None or source.shape[-1] != before.shape[-1]:
            return None
        source = before
    if source.op.type not in ("Softmax", "Sigmoid"):
        return None
    logits = tf.cast(source.op.inputs[0], tensor.dtype)
    return tf.reshape(logits, tf.shape(tensor)) if source is not tensor else logits


def is_softmax(tensor: Tensor) -> bool:
    """Whether the graph being recorded shows that `tensor` came straight out of a softmax."""
    return tf.is_symbolic_tensor(tensor) and tensor.op.type == "Softmax"


class SummaryLog:
    """Writes what TensorBoard shows.

    Args:
        log_dir: The folder for the event file; made if it does not exist.
    """

    def __init__(self, log_dir: str):
        self._writer = tf.summary.create_file_writer(log_dir)

    def write(
        self,
        step: int,
        *,
        scalars: dict[str, float] | None = None,
        images: dict[str, Any] | None = None,
        texts: dict[str, str] | None = None,
    ) -> None:
        """Writes one step. Images are uint8 arrays (batch, height, width, channels)."""
        with self._writer.as_default(step=step):
            for name, value in (scalars or {}).items():
                tf.summary.scalar(name, value)
            for name, image in (images or {}).items():
                tf.summary.image(name, image, max_outputs=len(image))
            for name, text in (texts or {}).items():
                tf.summary.text(name, text)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()
