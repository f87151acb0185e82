"""The mixin that makes a model's train step private when it has a `DPOptimizer`."""

import contextlib
import weakref
from typing import Any

import keras
from keras import ops

from keras_modelsec._core import backend
from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.batch import Batch, Extra
from keras_modelsec._core.train_step import OWNED, TrainStepOwner, before_owner
from keras_modelsec.errors import NotPrivateError
from keras_modelsec.privacy.capture import find_units
from keras_modelsec.privacy.clipping import clipped_gradients, forget_sealed, seal
from keras_modelsec.privacy.data_source import NOTHING_KNOWN, batch_size_in_fit, describe
from keras_modelsec.privacy.dp_optimizer import DPOptimizer
from keras_modelsec.privacy.independence import check_examples_are_independent
from keras_modelsec.privacy.layer_rules.rule import floating_leaves
from keras_modelsec.privacy.model_checks import check_model
from keras_modelsec.privacy.observation import current_observer
from keras_modelsec.privacy.one_thread import only_this_thread
from keras_modelsec.privacy.probe_batches import UNKNOWN_SIZE
from keras_modelsec.privacy.spending_record import SpendingRecord

# Not attributes, which Keras would track, and pickle.
_RECORDS: "weakref.WeakKeyDictionary[keras.Model, SpendingRecord]" = weakref.WeakKeyDictionary()


class _WithoutValues:
    """Structure, shapes and dtypes of the data of a step, which holds no tensor of a trace."""

    def __init__(self, parts: tuple[Any, Any, Any]):
        self.parts = keras.tree.map_structure(
            lambda leaf: None if leaf is None else backend.specification(leaf), parts
        )


# What the step that is being traced was given, until its gradients are computed.
_STEP_DATA: "weakref.WeakKeyDictionary[Any, _WithoutValues]" = weakref.WeakKeyDictionary()


class DPMixin(TrainStepOwner):
    """Trains privately with a `DPOptimizer`, and exactly as `keras.Model` with any other.

    List it before `keras.Model`: `class Net(ms.DPMixin, keras.Model)`.

    The model must treat the examples of a batch independently and keep its weights in layers; what
    breaks that (BatchNormalization, activity regularizers, weights tied across layers, a custom
    `compute_loss`) is refused with the name of the layer and what to use instead.

    Works with functional, Sequential and subclassed models, dict and list inputs, several outputs,
    sample and class weights, mixed precision, `jit_compile`, `steps_per_execution`,
    MirroredStrategy (by `fit` only, and without the two before it, with which Keras's own step
    fails there too), and defences whose loss is one value an example. Accumulation goes to
    `DPOptimizer(gradient_accumulation_steps=...)`.
    """

    fit_source = NOTHING_KNOWN  # what is known of the data, while `fit` runs
    fit_batch_size: int | None = None  # examples in its batches at most, if the data say it
    _largest_batch_size: int | None = None  # of all private fits

    def compile(self, optimizer: Any = "rmsprop", *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.compile`; a model that cannot be trained privately is refused here.

        Compiling again with another `DPOptimizer` keeps what was spent: it was spent on the
        weights. So does compiling without one in between, also if the model is saved and loaded
        before the next.
        """
        model: Any = self
        if not isinstance(optimizer, str):
            optimizer = keras.optimizers.get(optimizer)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and isinstance(
            optimizer.inner_optimizer, DPOptimizer
        ):
            raise NotPrivateError(
                "A DPOptimizer must not be wrapped: a LossScaleOptimizer skips steps depending on "
                "the data. Pass the DPOptimizer itself, which scales float16 losses by itself."
            )
        if isinstance(optimizer, DPOptimizer):
            kwargs["auto_scale_loss"] = False
            if model.built:
                check_model(model)
                find_units(model)
        super().compile(optimizer, *args, **kwargs)  # type: ignore[misc]
        if isinstance(optimizer, DPOptimizer) and internals.compiled_loss(model) is None:
            raise NotPrivateError(
                "A model trained privately must take its loss from `compile(loss=...)`, whose "
                "value for each example is clipped. Received: loss=None."
            )
        if isinstance(optimizer, DPOptimizer):
            self._spent_privacy.hand_over(optimizer)

    @property
    def _spent_privacy(self) -> SpendingRecord:
        """Found by Keras's walk when it saves and loads, after the optimizer."""
        model: Any = self
        if model not in _RECORDS:
            _RECORDS[model] = SpendingRecord(model)
        return _RECORDS[model]

    def load_weights(self, filepath: Any, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`; the spending becomes that of the weights in the file.

        Where some weights may stay as they are (`skip_mismatch=True`, objects to skip, an error on
        the way), what was spent before is kept as well. A file that holds no spending adds none:
        what its weights cost, if they were trained on the same examples, must be added to epsilon.
        """
        record = self._spent_privacy
        record.begin_loading(is_partial=skip_mismatch or bool(kwargs.get("objects_to_skip")))
        try:
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)  # type: ignore[misc]
        except BaseException:
            record.end_loading(has_failed=True)
            raise
        record.end_loading(has_failed=False)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; what the data show of themselves goes into the privacy ledger."""
        steps = args[11] if len(args) > 11 else kwargs.get("steps_per_epoch")
        with self._only_this_thread():
            self.fit_source = describe(x, steps)
            self._note_batch_size(x, args[1] if len(args) > 1 else kwargs.get("batch_size"))
            try:
                return super().fit(x, *args, **kwargs)  # type: ignore[misc]
            finally:
                self.fit_source, self.fit_batch_size = NOTHING_KNOWN, None
                self._begin_run()

    def _only_this_thread(self) -> contextlib.AbstractContextManager[None]:
        model: Any = self
        is_private = isinstance(getattr(model, "optimizer", None), DPOptimizer)
        return only_this_thread(model) if is_private else contextlib.nullcontext()

    def _note_batch_size(self, x: Any, batch_size: int | None) -> None:
        """What the probe is to know; for larger batches than any before it runs again."""
        self.fit_batch_size = batch_size_in_fit(x, batch_size)
        size = self.fit_batch_size or UNKNOWN_SIZE
        is_private = isinstance(getattr(self, "optimizer", None), DPOptimizer)
        if is_private and size > (self._largest_batch_size or 0):
            self.train_function = None
            self._largest_batch_size = size

    def make_train_function(self, force: bool = False) -> Any:
        """Called by Keras as each `fit` or `train_on_batch` begins, which may start the data over.

        What it makes tells the ledger whenever Keras starts the data over.
        """
        with self._only_this_thread():
            self._begin_run()
        model: Any = self
        optimizer = getattr(model, "optimizer", None)
        if isinstance(optimizer, DPOptimizer) and model.built and not optimizer.built:
            # A function that makes variables is traced twice.
            with backend.variable_scope(model):
                optimizer.build(model.trainable_variables)
        super().make_train_function(force)
        if not isinstance(model.train_function, _PassCounter):
            model.train_function = _PassCounter(model, model.train_function)
        return model.train_function

    def settle_spending(self) -> None:
        """Sees to it that the optimizer holds all that was spent, however it came here."""
        optimizer = getattr(self, "optimizer", None)
        if isinstance(optimizer, DPOptimizer):
            self._spent_privacy.hand_over(optimizer)

    def _begin_run(self) -> None:
        self.settle_spending()
        optimizer = getattr(self, "optimizer", None)
        if isinstance(optimizer, DPOptimizer):
            optimizer.ledger.forget_told()
            optimizer.begin_run()
        counter = getattr(self, "train_function", None)
        if isinstance(counter, _PassCounter):
            counter.forget_iterator()

    def begin_step(self, batch: Batch) -> None:
        """Notes what the data look like before other hooks change them, to probe with the like."""
        super().begin_step(batch)
        forget_sealed()
        if isinstance(getattr(self, "optimizer", None), DPOptimizer) and not current_observer():
            _STEP_DATA[self] = _WithoutValues((batch.x, batch.y, batch.sample_weight))

    def compute_gradients(self, batch: Batch) -> tuple[Any, Any, Extra]:
        """Clipped per-example sums for a `DPOptimizer`, else the gradients as they are.

        An override may change the batch before it calls this. What this returns for a
        `DPOptimizer` must be returned as it is, from the last call: anything else is refused.

        Raises:
            NotPrivateError: If the step would update several times with one batch, or give a hook
                the gradients of the inputs.
        """
        model: Any = self
        optimizer = model.optimizer
        if not isinstance(optimizer, DPOptimizer):
            return super().compute_gradients(batch)
        _refuse_uncharged(self)
        internals.build_for_training(model, batch.x, batch.y, batch.sample_weight)
        batch = batch.replace(x=_require_finite(batch.x))
        observer = current_observer()
        if observer is not None:
            return observer.observe(batch)
        _refuse_bypassing(model, optimizer)
        if not optimizer.ledger.is_within_fit:
            _refuse_replicas(backend.replica_count())
        optimizer.build(model.trainable_variables)  # so that the probe knows its variables
        own_data = _WithoutValues((batch.x, batch.y, batch.sample_weight))
        check_examples_are_independent(
            model,
            *_STEP_DATA.pop(model, own_data).parts,
            batch_size=self._largest_batch_size,
        )
        y_pred, gradients = clipped_gradients(model, batch, optimizer.l2_norm_clip)
        return y_pred, seal(gradients, optimizer), Extra()


def _refuse_uncharged(model: TrainStepOwner) -> None:
    """Refuses what the ledger does not charge, or what a hook could keep without noise."""
    if model.updates_per_batch != 1:
        raise NotPrivateError(
            "A model trained privately must update once with each batch: every further update is "
            "another release of the same examples, which the ledger would not charge. Received: "
            f"updates_per_batch={model.updates_per_batch} from {model.name_of_hooks()}."
        )
    if not backend.is_in_one_process():
        raise NotPrivateError(
            "A model is trained privately on one device, or under tf.distribute.MirroredStrategy: "
            "how others deal out the data is not known, and an example may be with two workers at "
            "once. Received: another strategy. Leave it out."
        )
    if model.wants_input_gradients:
        raise NotPrivateError(
            "The gradients of the inputs are data without noise, and no hook of a model trained "
            "privately is given them. Received: wants_input_gradients=True from "
            f"{model.name_of_hooks()}."
        )


def _refuse_bypassing(model: TrainStepOwner, optimizer: DPOptimizer) -> None:
    """Refuses code around the private step or its noise, which no probe of the step sees."""
    found = [type(optimizer).__name__] if type(optimizer) is not DPOptimizer else []
    found += [
        f"optimizer.{name}" for name in ("apply", "apply_gradients") if name in vars(optimizer)
    ]
    before = [*(vars(base) for base in before_owner(type(model), DPMixin)), vars(model)]
    owned = (*OWNED, "make_train_function")
    found += [name for name in owned if any(name in each for each in before)]
    if found:
        raise NotPrivateError(
            "The private step, what runs it and what adds its noise must be those of this package, "
            "and no model trained privately may have any of its own. Received: of its own "
            f"{', '.join(found)}. Change how weights are updated by the `inner_optimizer`, and the "
            "step by its hooks."
        )


def _refuse_replicas(count: int) -> None:
    """Refuses steps outside of `fit` where each replica may be given the same examples."""
    if count > 1:
        raise NotPrivateError(
            "With several replicas a model is trained privately by `fit` only, which deals each "
            "batch out among them: `train_on_batch` gives the whole of it to each, so that every "
            f"example counts several times in one noisy step. Received: a step outside of `fit` "
            f"with {count} replicas. Use `fit`, or one replica."
        )


class _PassCounter:
    """A compiled train function that tells the ledger of each iterator that it is first given.

    Keras makes a new iterator whenever it starts the data over, and at no other time. A step that
    runs in any other way than through this is one of which the ledger claims nothing.
    """

    def __init__(self, model: keras.Model, function: Any):
        self._model = weakref.ref(model)
        self._function = function
        self._iterator: Any = None

    def forget_iterator(self) -> None:
        """The next iterator counts as a new one."""
        self._iterator = None

    def __call__(self, iterator: Any) -> Any:
        model: Any = self._model()
        optimizer = model.optimizer
        if not isinstance(optimizer, DPOptimizer):
            return self._function(iterator)
        # A callback that trains on data of its own is not `fit`, and its data are not known.
        by_fit = internals.is_called_by_fit()
        with only_this_thread(model):
            if iterator is not self._iterator:
                if not by_fit:
                    _refuse_replicas(backend.replicas_of(model))
                optimizer.begin_pass(model.fit_source if by_fit else NOTHING_KNOWN)
                self._iterator = iterator
            with optimizer.ledger.within_fit():
                return self._function(iterator)


def _require_finite(x: Any) -> Any:
    """Passes `x` on, unless it holds NaN or infinity: a mistake in the data, not an example.

    The private step itself would count such an example as zero and train on with a loss of NaN.
    Under XLA nothing is checked.
    """

    def require(leaf: Any) -> Any:
        if not floating_leaves(leaf):
            return leaf
        return backend.require(
            ops.all(ops.isfinite(leaf)),
            "Training inputs must be finite. Received: NaN or infinity in a batch of {} examples.",
            ops.shape(leaf)[0],
            passing=leaf,
        )

    return keras.tree.map_structure(require, x)
