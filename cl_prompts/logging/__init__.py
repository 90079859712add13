"""What a person sees of a run: terminal, TensorBoard, pictures. It reads strategies and changes none."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_prompts.logging.attention_pictures import attention_picture
    from cl_prompts.logging.console import print_header, print_summary, reading_progress
    from cl_prompts.logging.image_choice import PicturedImages, pictured_images, pictured_indices
    from cl_prompts.logging.multi_label_pictures import calibration_picture, class_precision_picture
    from cl_prompts.logging.pictures import confusion_picture, curve_picture, stream_picture, to_array
    from cl_prompts.logging.tensorboard import TensorBoardLog
    from cl_prompts.logging.terminal import TerminalProgress

_MODULE_OF = {
    "PicturedImages": "image_choice",
    "TensorBoardLog": "tensorboard",
    "TerminalProgress": "terminal",
    "attention_picture": "attention_pictures",
    "calibration_picture": "multi_label_pictures",
    "class_precision_picture": "multi_label_pictures",
    "confusion_picture": "pictures",
    "curve_picture": "pictures",
    "pictured_images": "image_choice",
    "pictured_indices": "image_choice",
    "print_header": "console",
    "print_summary": "console",
    "reading_progress": "console",
    "stream_picture": "pictures",
    "to_array": "pictures",
}

__all__ = [
    "PicturedImages",
    "TensorBoardLog",
    "TerminalProgress",
    "attention_picture",
    "calibration_picture",
    "class_precision_picture",
    "confusion_picture",
    "curve_picture",
    "pictured_images",
    "pictured_indices",
    "print_header",
    "print_summary",
    "reading_progress",
    "stream_picture",
    "to_array",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
