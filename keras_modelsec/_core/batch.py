"""What travels through the hooks of one train step: the batch, and what its backward pass gave."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Batch:
    """One batch of training data, and what hooks found out about it.

    A hook never changes a batch: it hands on another one, made by `replace`.

    Attributes:
        x: Inputs, any structure of tensors with the examples along the first axis.
        y: Targets as `fit` takes them, or None.
        sample_weight: Weights of the examples' losses, or None. A row of weight 0 has no part in
            the compiled loss, which is how data without labels travel; what a defence makes of
            such a row is its own affair.
        aux: Tensors by name that one hook leaves for those after it: adversarial inputs, a
            teacher's answers. What belongs to an example has the examples along the first axis.

    Example:
    ```python
    batch = batch.replace(aux={**batch.aux, "adversarial": adversarial})
    ```
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    aux: dict[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> "Batch":
        """The same batch with other values for the fields that are named."""
        return dataclasses.replace(self, **changes)


class Extra(NamedTuple):
    """What the backward pass gave beside the gradients of the weights.

    Attributes:
        input_gradients: The gradient of the training loss in the structure of `batch.x`, where
            `wants_input_gradients` asks for it; None otherwise, and for what is not floating-point.
            Its scale is that of the loss that was differentiated (divided by the number of
            examples, multiplied for float16), so only its direction means something.
    """

    input_gradients: Any = None
