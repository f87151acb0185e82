"""Compiled functions: how they are made, left and looked into."""

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context as eager_context

from keras_modelsec._core.backend.tensorflow.variables import is_same_memory

Tensor = Any
Nested = Any


def compile_function(fn: Callable[..., Any], *, jit_compile: bool = False) -> Callable[..., Any]:
    """Compiles `fn`; shapes that change are generalised instead of compiled again each time."""
    return tf.function(fn, reduce_retracing=True, autograph=False, jit_compile=jit_compile)


def compile_for_batches(
    fn: Callable[..., Any],
    examples: Sequence[Nested],
    *,
    jit_compile: bool = False,
    batch_size: int | None = None,
) -> Callable[..., Any]:
    """Compiles `fn` once for every batch size, or for one.

    Args:
        fn: Takes one positional argument for each of `examples`.
        examples: Arguments like those to come, nested tensors.
        jit_compile: Whether to use XLA, which compiles again for each size it meets.
        batch_size: The size of axis 0 of each tensor that has axes, None to leave it open.
    """
    signature = keras.tree.map_structure(
        lambda leaf: tf.TensorSpec(
            [batch_size, *leaf.shape[1:]] if leaf.shape.rank else [], leaf.dtype
        ),
        list(examples),
    )
    # TensorFlow tells functions apart by their code, and would take the same attack on several
    # models for one function that it compiles too often. A partial has no code of its own.
    fn = functools.partial(fn)
    return tf.function(fn, input_signature=signature, autograph=False, jit_compile=jit_compile)


def can_be_traced(fn: Callable[[Nested], Any], example: Nested) -> bool:
    """Traces `fn` once, for what it learns on the way; whether that was possible."""
    try:
        tf.function(functools.partial(fn), autograph=False).get_concrete_function(example)
    except Exception:  # whatever a model that is only ever run eagerly does in a trace
        return False
    return True


def outputs_of(fn: Callable[[Nested], Nested], example: Nested) -> Nested:
    """What `fn(example)` looks like; only its shapes and dtypes mean anything.

    Traced apart from the function that is being compiled, where one is.
    """
    if tf.executing_eagerly():
        return fn(example)
    specifications = keras.tree.map_structure(specification, example)
    traced = tf.function(functools.partial(fn), autograph=False)
    return traced.get_concrete_function(specifications).structured_outputs


def run_eagerly_now(fn: Callable[[], Any]) -> Any:
    """Runs `fn` at once, also while a step is being traced.

    In a thread of its own, since TensorFlow's way out of a trace stops gradient recording.
    """
    if tf.executing_eagerly():
        return fn()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(fn).result()


def forget_batch_size(inputs: Nested) -> Nested:
    """The same tensors, with the size of axis 0 hidden from shape inference while tracing.

    A tensor whose first axis is known afterwards cannot have got it from the batch. What has no
    axes, or is no tensor, is left as it is.
    """
    if tf.executing_eagerly():
        return inputs
    return keras.tree.map_structure(
        lambda leaf: (
            tf.raw_ops.PlaceholderWithDefault(input=leaf, shape=[None, *leaf.shape[1:]])
            if tf.is_tensor(leaf) and leaf.shape.rank != 0
            else leaf
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


def specification(tensor: Tensor) -> Any:
    """Shape and dtype of a tensor or array, without its values."""
    return tf.TensorSpec(tensor.shape, tensor.dtype)


def static_shape(tensor: Tensor) -> tuple[int | None, ...] | None:
    """What a trace knows of the shape; None if not even the number of axes."""
    return None if tensor.shape.rank is None else tuple(tensor.shape)


def with_shape(tensor: Tensor, shape: Sequence[int | None]) -> Tensor:
    """The same tensor, whose static shape is known to be this one; checked when it is computed."""
    return tf.ensure_shape(tensor, list(shape))


def same_graph(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are computed by one graph: neither in a loop, a branch or a function.

    Eagerly, always: loops and branches run as Python there.
    """
    graphs = [t.graph if tf.is_symbolic_tensor(t) else None for t in (left, right)]
    return graphs[0] is graphs[1]


def another_tensor(tensor: Tensor) -> Tensor:
    """The same value as a tensor of its own, which a tape tells apart."""
    return tf.identity(tensor)


def after(value: Tensor, *earlier: Tensor) -> Tensor:
    """`value`, once what is `earlier` has been computed."""
    with tf.control_dependencies([tf.convert_to_tensor(tensor) for tensor in earlier]):
        return tf.identity(value)


_UPDATES = ("Assign", "ResourceScatter", "ResourceApply", "ResourceSparseApply")


def with_variable_updates(fn: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What `fn` returns, and the names of the operations in its trace that update variables.

    Also of those in branches and loops. None is found where nothing is traced.
    """
    graph = tf.compat.v1.get_default_graph()
    known = 0 if tf.executing_eagerly() else len(graph.get_operations())
    result = fn()
    if tf.executing_eagerly():
        return result, []
    nodes = [operation.node_def for operation in graph.get_operations()[known:]]
    called = {attr.func.name for node in nodes for attr in node.attr.values() if attr.func.name}
    if called:
        library = graph.as_graph_def().library.function
        nodes += [node for f in library if f.signature.name in called for node in f.node_def]
    return result, [node.name for node in nodes if node.op.startswith(_UPDATES)]


# Operations by which a step keeps data where no variable shows it, or hands them to Python.
_UNSEEN_STATE = (
    *("LookupTableInsert", "LookupTableImport", "LookupTableRemove", "MutableHashTable"),
    *("QueueEnqueue", "StackPush", "BarrierInsert", "Stage", "MapStage", "OrderedMapStage"),
    *("PyFunc", "EagerPyFunc", "Write", "Save", "DatasetTo", "ExperimentalDatasetTo"),
    "AccumulatorApply",
)


class TracedFunction:
    """A function traced once, whose variables can be read and put back.

    Stateful random operations (`tf.random.normal`) are seeded, and can be begun again.

    Args:
        fn: Takes one tensor for each of `examples`, returns a list of tensors.
        examples: Tensors like those to come.
        batch_size: The size of axis 0, None to leave it open.
    """

    def __init__(
        self,
        fn: Callable[..., list[Tensor]],
        examples: Sequence[Tensor],
        batch_size: int | None = None,
    ):
        def seeded(*arguments: Tensor) -> list[Tensor]:
            tf.random.set_seed(0)  # of the graph that is being traced
            return fn(*arguments)

        compiled: Any = compile_for_batches(seeded, examples, batch_size=batch_size)
        self._function = compiled.get_concrete_function()
        resources = [t for t, _ in self._function.graph.captures if t.dtype == tf.resource]
        self._variables = [(t, *info) for t in resources if (info := _content_of(t)) is not None]
        self._names = {id(v.handle): v.name for v in self._function.graph.variables}

    def __call__(self, *arguments: Tensor) -> list[np.ndarray]:
        """Runs it.

        Raises:
            RuntimeError: If an operation fails on these arguments.
        """
        try:
            return [np.asarray(value) for value in self._function(*arguments)]
        except tf.errors.OpError as error:
            raise RuntimeError(error.message) from error

    @staticmethod
    def begin_randomness_again() -> None:
        """Lets stateful random operations draw what they drew in the first call."""
        # Their counters live in the kernels. tf.random.set_seed clears these too, but also gives
        # the caller's program another seed.
        eager_context.context().clear_kernel_cache()

    @property
    def unseen_state(self) -> list[str]:
        """Names of operations in it that keep data elsewhere than in variables."""
        graph = self._function.graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        return sorted({node.op for node in nodes if _keeps_unseen(node)})

    def places_of(self, variables: Sequence[Any]) -> set[int]:
        """The places in `state()` of those of the variables that it reads or writes."""
        values = [v.value if isinstance(v, keras.Variable) else v for v in variables]
        is_distributed = tf.distribute.DistributedValues
        copies = [c for v in values for c in (v.values if isinstance(v, is_distributed) else (v,))]
        handles = {id(copy.handle) for copy in copies}
        return {place for place, (t, _, _) in enumerate(self._variables) if id(t) in handles}

    def name_of(self, place: int) -> str:
        """The name of a variable, by its place in `state()`."""
        handle, _, shape = self._variables[place]
        return self._names.get(id(handle), f"a tf.Variable of shape {tuple(shape)}")

    def state(self) -> list[Tensor]:
        """What every variable that it reads or writes holds now, in a fixed order."""
        return [
            tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
            for handle, dtype, _ in self._variables
        ]

    def set_state(self, values: Sequence[Any]) -> None:
        """Puts values as `state` returned into the variables; those that hold them stay alone."""
        for (handle, dtype, _), value, now in zip(
            self._variables, values, self.state(), strict=True
        ):
            if value is not now and not is_equal_content(value, now):
                tf.raw_ops.AssignVariableOp(resource=handle, value=tf.cast(value, dtype))


def _keeps_unseen(node: Any) -> bool:
    prints_to_file = node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")
    return prints_to_file or node.op.startswith(_UNSEEN_STATE)


def _content_of(handle: Tensor) -> tuple[Any, Any] | None:
    """Dtype and shape of the variable behind a resource, None if it is no variable."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    content = data.shape_and_type[0]
    return tf.as_dtype(content.dtype), tf.TensorShape(content.shape)


def is_equal_content(left: Any, right: Any) -> bool:
    """Whether two tensors hold the same values; without comparing where they are the same place."""
    left, right = tf.convert_to_tensor(left), tf.convert_to_tensor(right)
    if left.dtype not in (tf.string, tf.variant) and is_same_memory(left, right):
        return True
    return np.array_equal(np.asarray(left), np.asarray(right))
