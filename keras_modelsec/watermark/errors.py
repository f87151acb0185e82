"""The errors and the warning of this domain; nothing else."""


class WatermarkError(ValueError):
    """A watermark cannot be embedded, kept or read as asked; the message says what to do."""


class WatermarkKeyError(WatermarkError):
    """A watermark key is missing, weak, malformed, or not the one the mark was made with."""


class WatermarkWarning(UserWarning):
    """Training goes on, but a watermark is not being kept."""
