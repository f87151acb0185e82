"""How each kind of layer yields per-example gradient norms and clipped sums.

One file a rule. A new rule is a subclass of `LayerRule` and one call of `register_layer_rule`.
"""

from keras_modelsec.privacy.layer_rules.conv2d import Conv2DRule
from keras_modelsec.privacy.layer_rules.dense import DenseRule
from keras_modelsec.privacy.layer_rules.fallback import FallbackRule
from keras_modelsec.privacy.layer_rules.rule import (
    LayerRule,
    PerExample,
    UnitCall,
    find_rule,
    is_registered,
    register_layer_rule,
)

__all__ = [
    "Conv2DRule",
    "DenseRule",
    "FallbackRule",
    "LayerRule",
    "PerExample",
    "UnitCall",
    "find_rule",
    "is_registered",
    "register_layer_rule",
]
