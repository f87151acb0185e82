"""Genuine inputs that need nothing of the package; fuzzing begins with them too."""

import json
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "integrity"

# The configuration of a model with a layer that carries code.
CONFIG = json.dumps(
    {
        "module": "keras",
        "class_name": "Sequential",
        "config": {
            "name": "s",
            "layers": [
                {
                    "module": "keras.layers",
                    "class_name": name,
                    "config": {
                        "units": 1,
                        "activation": "relu",
                        "kernel_initializer": {
                            "module": "keras.initializers",
                            "class_name": "GlorotUniform",
                            "config": {"seed": None},
                            "registered_name": None,
                        },
                    },
                    "registered_name": None,
                    "build_config": {"input_shape": [None, 2]},
                }
                for name in ("Dense", "Lambda")
            ],
        },
        "registered_name": None,
        "compile_config": {"optimizer": "adam", "loss": "mse"},
    }
).encode()
