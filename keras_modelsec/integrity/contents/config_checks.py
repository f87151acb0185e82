"""What a model's configuration may name: parts that are data, and code only if the caller says so.

Owns the reading of an untrusted `config.json`. Keras builds whatever class or function the
configuration names; here every name in it, at any depth, must be one of Keras's own building blocks
or an object that the user registered, and those of Keras's own that carry code or read files
must be allowed by name.
"""

import json
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NoReturn

import keras

from keras_modelsec._core.printable import printable
from keras_modelsec.errors import CodeInModelError, UnsafeModelError

MAX_CONFIG_BYTES = 64 << 20
_MAX_DEPTH = 200  # of JSON; a model nested in a model adds some five

# By which a configuration can run code or read files, although they are Keras's own.
CODE_CARRYING = frozenset({"Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})
# These do so only when their vocabulary is the name of a file.
_LOOKUPS = ("StringLookup", "IntegerLookup", "TextVectorization")
ALLOWABLE = CODE_CARRYING | set(_LOOKUPS)

_DATA = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"}
)
_BASES = (
    keras.Operation,  # layers, models, and the nodes of keras.ops in a functional model
    keras.constraints.Constraint,
    keras.dtype_policies.DTypePolicy,
    keras.dtype_policies.DTypePolicyMap,
    keras.initializers.Initializer,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
    # Later than Keras 3.12, where a base that stands here anyhow takes its place.
    getattr(keras.quantizers, "QuantizationConfig", keras.quantizers.Quantizer),
    keras.quantizers.Quantizer,
    keras.random.SeedGenerator,
    keras.regularizers.Regularizer,
)
_FEATURE_SPACE = "keras.src.layers.preprocessing.feature_space"
_NAMED = frozenset({(_FEATURE_SPACE, "Feature"), (_FEATURE_SPACE, "Cross")})
_FUNCTIONS_IN = ("keras.activations", "keras.losses", "keras.metrics", "keras.ops", "keras.random")
_NO_FUNCTIONS = frozenset({"deserialize", "get", "serialize"})
_CLASSES_IN = (
    "keras.constraints",
    "keras.dtype_policies",
    "keras.initializers",
    "keras.layers",
    "keras.losses",
    "keras.metrics",
    "keras.models",
    "keras.optimizers",
    "keras.optimizers.schedules",
    "keras.quantizers",
    "keras.regularizers",
)


def check_allow(allow: Any) -> frozenset[str]:
    """Returns `allow` as a set of names, each of which can be allowed.

    Raises:
        TypeError: If it is no collection of strings.
        ValueError: If a name is none of the code-carrying parts.
    """
    if isinstance(allow, str) or not isinstance(allow, Collection):
        raise TypeError(
            '`allow` must be a tuple of names, such as ("Lambda",). '
            f"Received: allow={allow!r} of type {type(allow).__name__}."
        )
    unknown = sorted(repr(name) for name in allow if name not in ALLOWABLE)
    if unknown:
        raise ValueError(
            f"`allow` must name parts among {', '.join(sorted(ALLOWABLE))}. "
            f"Received: {', '.join(unknown)}. Classes of your own go into `custom_objects`."
        )
    return frozenset(allow)


def check_config(
    data: "bytes | str",
    *,
    allow: Collection[str] = (),
    custom_objects: Mapping[str, Any] | None = None,
    legacy: bool = False,
) -> frozenset[str]:
    """Checks a model's configuration before Keras reads it.

    Args:
        data: The JSON, as it stands in the file.
        allow: Code-carrying parts it may have, among `ALLOWABLE`.
        custom_objects: The user's classes and functions, beside those registered with Keras.
        legacy: Whether it comes from a legacy HDF5 file, whose names have no modules.

    Returns:
        The code-carrying parts that it has, all of them allowed.

    Raises:
        CodeInModelError: If it has such parts that are not allowed.
        UnsafeModelError: If it is no JSON object, can be read in two ways, is nested too deep, or
            names anything but Keras's own building blocks and registered objects.
    """
    found = set()
    names = _Names(custom_objects or {}, legacy)
    for node in _objects(parse_json(data, "A model's configuration")):
        found |= names.check(node)
    refused = sorted(found - set(allow))
    if refused:
        raise CodeInModelError(
            "A model's configuration must carry no code and read no files unless that is allowed. "
            f"Received: {', '.join(refused)}. If you trust the code as you trust the key, pass "
            f"allow={tuple(sorted(found))!r}; else have the model saved without.",
            refused,
        )
    return frozenset(found)


def parse_json(data: "bytes | str", what: str) -> dict[str, Any]:
    """The JSON object in `data`, read as Keras reads it, if that is the only way to read it."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) != len(items):
            _refuse(what, "not repeat a key", [key for key, _ in items])
        return value

    if len(data) > MAX_CONFIG_BYTES:
        _refuse(what, f"have at most {MAX_CONFIG_BYTES >> 20} MiB", f"{len(data)} bytes")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=pairs)
    except UnsafeModelError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        _refuse(what, "be JSON in UTF-8", error)
    if not isinstance(value, dict):
        _refuse(what, "be a JSON object", type(value).__name__)
    return value


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in `value`, at any depth."""
    waiting = [(value, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            _refuse("A model's configuration", f"be nested at most {_MAX_DEPTH} deep", "more")
        if isinstance(node, dict):
            yield node
            waiting += [(child, depth + 1) for child in node.values()]
        elif isinstance(node, list):
            waiting += [(child, depth + 1) for child in node]


class _Names:
    """Says of each serialised object what it stands for, in the order in which Keras looks.

    Args:
        custom_objects: The user's, as given to the loading function.
        legacy: Whether names without a module are Keras's own.
    """

    def __init__(self, custom_objects: Mapping[str, Any], legacy: bool):
        self._custom_objects = dict(custom_objects)
        self._legacy = legacy

    def check(self, node: dict[str, Any]) -> set[str]:
        """The code-carrying parts that the object itself is; raises if it is unknown."""
        name = node.get("class_name")
        if name is None or ("config" not in node and not self._is_legacy_type(name)):
            return set()
        if not isinstance(name, str):
            _refuse("A class's name", "be a string", name)
        if name == "__lambda__":
            return {"Lambda"}
        if name in _DATA or (self._legacy and name in ("__tuple__", "TensorShape")):
            return set()
        if name == "function":
            self._check_function(node)
            return set()
        return self._check_class(node, name)

    def _is_legacy_type(self, name: Any) -> bool:
        """These have no "config", and Keras builds them all the same."""
        return self._legacy and name in ("TypeSpec", "CompositeTensor")

    def _custom(self, name: Any) -> Any:
        if not isinstance(name, str):
            return None
        return keras.saving.get_registered_object(name, custom_objects=self._custom_objects)

    def _check_class(self, node: dict[str, Any], name: str) -> set[str]:
        custom = self._find_custom(node, name)
        found = custom or _find_class(node.get("module"), name)
        if found is None:
            _refuse(
                "A model's configuration",
                "name only Keras's own parts, registered classes and those in `custom_objects`",
                f"{node.get('module')}.{name}",
            )
        parts = {name} & CODE_CARRYING if custom is None else set()
        parts = parts or _kinds(found, CODE_CARRYING)
        if _names_a_file(node.get("config")):
            parts |= _kinds(found, _LOOKUPS) or ({name} if custom is None else set())
        return parts

    def _find_custom(self, node: dict[str, Any], name: str) -> Any:
        """The user's object for a class, if Keras would take that and not its own."""
        # A node without a module is read as in legacy files, where registered names do not count.
        is_legacy = self._legacy or "module" not in node
        if is_legacy and (name in vars(keras.layers) or _operations_named(name)):
            return self._custom(name)
        custom = self._custom(node.get("registered_name", name))
        if custom is None and node.get("module") is None:
            custom = self._custom(name)
        return custom

    def _check_function(self, node: dict[str, Any]) -> None:
        name, module = node.get("config"), node.get("module")
        if self._custom(name) is not None or self._is_registered_somewhere(module, name):
            return
        places = _FUNCTIONS_IN if module == "builtins" else (module,)
        if not any(_is_function(place, name) for place in places):
            _refuse(
                "A model's configuration",
                "name only functions of Keras's that compute, registered ones and `custom_objects`",
                f"{module}.{name}",
            )

    def _is_registered_somewhere(self, module: Any, name: Any) -> bool:
        """Whether a function saved by its bare name is registered under any package's."""
        known = {**self._custom_objects, **keras.saving.get_custom_objects()}
        return module == "builtins" and any(key.endswith(f">{name}") for key in known)


def _find_class(module: Any, name: str) -> Any:
    """A class of Keras's that a model is built of, or None.

    Nothing is imported for it: what a file names is looked up among what is there already.
    """
    if module is None:
        candidates = [_public(place, name) for place in _CLASSES_IN]
        candidates += _operations_named(name)
    elif not isinstance(module, str) or module.partition(".")[0] != "keras":
        return None
    elif module.startswith("keras.src."):
        candidates = [vars(sys.modules[module]).get(name)] if module in sys.modules else []
    else:
        candidates = [_public(module, name)]
    for candidate in candidates:
        if isinstance(candidate, type) and (
            issubclass(candidate, _BASES) or (module, name) in _NAMED
        ):
            return candidate
    return None


def _operations_named(name: str) -> list[type]:
    """Keras's own operations that no public namespace has: a functional model's nodes."""
    found, waiting = [], [keras.Operation]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__name__ == name and cls.__module__.startswith("keras.src."):
            found.append(cls)
    return found


def _public(module: str, name: str) -> Any:
    """What stands in one of Keras's public namespaces under `name`, or None."""
    value: Any = keras
    for part in module.split(".")[1:]:
        value = vars(value).get(part) if isinstance(value, type(keras)) else None
    return vars(value).get(name) if isinstance(value, type(keras)) else None


def _is_function(module: Any, name: Any) -> bool:
    if not isinstance(module, str) or not isinstance(name, str) or name in _NO_FUNCTIONS:
        return False
    if not any(module == place or module.startswith(f"{place}.") for place in _FUNCTIONS_IN):
        return False
    found = _public(module, name)
    return callable(found) and (not isinstance(found, type) or issubclass(found, _BASES))


def _names_a_file(config: Any) -> bool:
    """Whether a lookup layer of this configuration would read its vocabulary from a file."""
    keys = ("vocabulary", "idf_weights")
    return isinstance(config, dict) and any(isinstance(config.get(key), str) for key in keys)


def _kinds(found: Any, names: Collection[str]) -> set[str]:
    """Those of Keras's layers named that a class is, or is derived from."""
    if not isinstance(found, type):
        return set()
    return {name for name in names if issubclass(found, getattr(keras.layers, name))}


def _refuse(what: str, rule: str, value: object) -> NoReturn:
    text = printable(str(value)[:300])
    raise UnsafeModelError(f"{what} must {rule}. Received: {text}.")
