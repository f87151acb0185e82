"""What TensorBoard shows."""

from typing import Any

import tensorflow as tf

Tensor = Any
Nested = Any


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
