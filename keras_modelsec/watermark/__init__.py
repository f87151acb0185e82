"""The owner's mark in a model's weights: writing it, keeping it, reading it."""

from keras_modelsec.watermark.attaching import attach_watermark, restore_key
from keras_modelsec.watermark.keys import generate_key
from keras_modelsec.watermark.verification import verify_watermark
from keras_modelsec.watermark.watermark_monitor import WatermarkMonitor
from keras_modelsec.watermark.watermark_regularizer import WatermarkRegularizer
from keras_modelsec.watermark.watermark_report import LayerEvidence, WatermarkReport

__all__ = [
    "WatermarkRegularizer",
    "WatermarkMonitor",
    "attach_watermark",
    "restore_key",
    "verify_watermark",
    "WatermarkReport",
    "LayerEvidence",
    "generate_key",
]
