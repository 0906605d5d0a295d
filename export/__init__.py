"""Export and verification: a dense model becomes folders that its runtimes serve, then is measured.

`convert` writes the folders, `folders` says what one is and loads it, `compare` sets
their logits beside torch's, `verify` times one on the target in pairs with another. Nothing here
knows how the model came about.
"""

from hwnas.export.compare import check_parity, parity
from hwnas.export.convert import export_model, export_onnx, export_openvino, save_model
from hwnas.export.folders import (
    FORMATS,
    find_format,
    folder_size_mb,
    load_exported,
    served_folder,
)
from hwnas.export.quantize import calibration, quantize_folder
from hwnas.export.verify import Verification, export_and_check, measure_against, score_folder

__all__ = [
    "FORMATS",
    "Verification",
    "calibration",
    "check_parity",
    "export_and_check",
    "export_model",
    "export_onnx",
    "export_openvino",
    "find_format",
    "folder_size_mb",
    "load_exported",
    "measure_against",
    "parity",
    "quantize_folder",
    "save_model",
    "score_folder",
    "served_folder",
]
