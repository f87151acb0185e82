"""`export_plain`: the way out, to a model that needs nothing of this package."""

import json
from typing import Any

import keras

from keras_modelsec._core import keras_internals as internals
from keras_modelsec._core.serialization import PACKAGE, is_registered_name


def export_plain(model: keras.Model) -> keras.Model:
    """An ordinary `keras.Model` with the same architecture and a copy of the weights.

    The file it saves names no class, regularizer or config of this package, so whoever loads it
    needs only Keras. It is not compiled: what it was trained with does not travel. A watermark
    stays in the weights; a regularizer that would keep it there does not.

    Args:
        model: Any model; a subclassed one must have been built, by `fit` or by a call, keep its
            weights in layers, and have a `call` of one argument that runs on symbolic inputs.

    Returns:
        A functional model, or a Sequential one for a Sequential.

    Raises:
        TypeError: If `model` is no Keras model, or holds a layer of this package.
        ValueError: If a subclassed model cannot be turned into a graph of layers.

    Example:
    ```python
    ms.export_plain(model).save("deployed.keras")
    ```
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}.")
    source = model
    if not (isinstance(model, keras.Sequential) or internals.is_functional(model)):
        source = _as_functional(model)
    config = _without_ours(source.get_config(), "model")
    plain_class = keras.Sequential if isinstance(source, keras.Sequential) else internals.Functional
    plain = plain_class.from_config(config)
    if not plain.built and source.built:
        plain.build(source.input_shape)
    plain.set_weights(source.get_weights())
    if PACKAGE in json.dumps(keras.saving.serialize_keras_object(plain)):
        raise TypeError(
            f"The exported model must not name {PACKAGE}. Received: {model.name!r}, which does so "
            "in a place unknown to export_plain. Remove it and export again."
        )
    return plain


def _as_functional(model: keras.Model) -> keras.Model:
    """Runs the `call` of a subclassed model on symbolic inputs."""
    if not model.built:
        raise ValueError(
            f"`model` must be built. Received: {model.name!r}. Call it on a batch of data first."
        )
    try:
        inputs = _symbolic_inputs(model.get_build_config())
        functional = keras.Model(inputs, model.call(inputs), name=model.name)
    except Exception as error:
        raise ValueError(
            f"The `call` of a subclassed model must run on symbolic inputs to be exported. "
            f"Received: {type(model).__name__}, which raised {type(error).__name__}: {error}. "
            "Use `model.export(path)`, which saves a TensorFlow graph without Python classes."
        ) from error
    kept = {id(weight) for weight in functional.weights}
    lost = [weight.path for weight in model.weights if id(weight) not in kept]
    if lost:
        raise ValueError(
            "All weights of a subclassed model must belong to layers to be exported. Received: "
            f"{lost}, owned by the model itself. Use `model.export(path)` instead."
        )
    return functional


def _symbolic_inputs(build_config: dict[str, Any] | None) -> Any:
    shapes = (build_config or {}).get("input_shape")
    if shapes is None:
        raise ValueError("the model was not built from one argument")

    def is_shape(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(
            size is None or isinstance(size, int) for size in value
        )

    def convert(value: Any, name: str | None = None) -> Any:
        if is_shape(value):
            return keras.Input(tuple(value[1:]), name=name)
        if isinstance(value, dict):
            return {key: convert(shape, key) for key, shape in value.items()}
        return type(value)(convert(shape) for shape in value)

    return convert(shapes)


def _without_ours(config: Any, place: str) -> Any:
    """`config` without what this package registered; nested secured models become functional."""
    if isinstance(config, list | tuple):
        return type(config)(_without_ours(item, place) for item in config)
    if not isinstance(config, dict):
        return config
    if is_registered_name(config.get("registered_name")):
        return _replacement(config, place)
    return {
        key: _without_ours(value, key) for key, value in config.items() if key != "compile_config"
    }


def _replacement(config: dict[str, Any], place: str) -> Any:
    if place.endswith("regularizer"):
        return None
    inner = config.get("config", {})
    if {"layers", "input_layers", "output_layers"} <= inner.keys():
        plain = {key: value for key, value in config.items() if key != "compile_config"}
        plain.update(
            module=internals.Functional.__module__,
            class_name="Functional",
            registered_name="Functional",
            config=_without_ours(inner, "config"),
        )
        return plain
    raise TypeError(
        f"A plain model cannot hold {config['registered_name']!r}. Received it as {place!r}. "
        "Build the model to be deployed without that layer."
    )
