"""A bundle's network as one ONNX file that takes images as ingest makes them, and whether it answers the same."""

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinrun.core.arrays import IntArray, Pixels
from twinrun.core.errors import ModelError
from twinrun.evaluation.gate import Gate
from twinrun.models.bundle import Bundle

if TYPE_CHECKING:
    import onnx

SAME_IN_ONNX = "same answers in ONNX"
_OPSET = 18
_TOLERANCE = 1e-4  # of the largest logit
_POOLING = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
_WITHOUT_EFFECT = ("Flatten", "Reshape", "Squeeze", "Identity", "Dropout")


def onnx_file(bundle: Bundle) -> bytes:
    """The network as an ONNX model: `images`, uint8 (batch, H, W, C), to `logits`, float32 (batch, classes).

    Where the network ends in pooling and one linear layer, `features` (batch, maps, h, w) is what is pooled, from which
    an exact class activation map follows. The metadata hold the weights hash. Raises ModelError where an operation of
    the network has no counterpart in ONNX.
    """
    import onnx
    import torch
    from torch import Tensor, nn

    from twinrun.models.predict import channel_tensor, normalised

    class FromPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = bundle.network
            self.mean = nn.Buffer(channel_tensor(bundle.preprocessing.mean))
            self.std = nn.Buffer(channel_tensor(bundle.preprocessing.std))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(normalised(images, self.mean, self.std))
            return logits

    black = torch.zeros((2, *bundle.preprocessing.size_px, len(bundle.preprocessing.mean)), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            # The older exporter: the newer one needs onnxscript and takes ten times as long.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                FromPixels().eval(),
                (black,),
                Path(folder, "model.onnx"),
                dynamo=False,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )
            model = onnx.load_model(Path(folder, "model.onnx"))
        _add_features(model)
    except Exception as error:  # the exporter raises of its own, and whatever the network raises under it
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{bundle.architecture} cannot be written as ONNX: {reason}") from error
    model.metadata_props.add(key="weights_hash", value=bundle.weights_hash)
    return bytes(model.SerializeToString(deterministic=True))


def judge_onnx(bundle: Bundle, file: bytes, images: Pixels, rows: IntArray) -> Gate:
    """The gate that compares ONNX Runtime with PyTorch on `images[rows]`, uint8 (N, H, W, C)."""
    import onnxruntime
    import torch

    from twinrun.models.predict import channel_tensor, normalised, pass_size

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    mean, std = channel_tensor(bundle.preprocessing.mean), channel_tensor(bundle.preprocessing.std)
    apart, scale, other_labels = 0.0, 0.0, 0
    for start in range(0, len(rows), pass_size(images)):
        part = np.ascontiguousarray(images[rows[start : start + pass_size(images)]])
        with torch.inference_mode():
            expected = bundle.network(normalised(torch.from_numpy(part), mean, std)).numpy()
        (found,) = session.run(["logits"], {"images": part})
        apart, scale = max(apart, float(np.abs(found - expected).max())), max(scale, float(np.abs(expected).max()))
        other_labels += int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())
    share = apart / (scale or 1.0)
    return Gate(
        name=SAME_IN_ONNX,
        passed=share <= _TOLERANCE and other_labels == 0,
        sentence=f"ONNX Runtime's logits of {len(rows):,} test images differ from PyTorch's by at most {share:.1g} of "
        f"their scale, and {other_labels:,} labels differ; at most {_TOLERANCE:g} and no label are allowed",
        value=share,
        limit=_TOLERANCE,
    )


def _add_features(model: "onnx.ModelProto") -> None:
    """Make what is pooled before the last linear layer a second output, where the network ends so."""
    from onnx import TensorProto, helper, shape_inference

    made_by = {name: node for node in model.graph.node for name in node.output}
    node = made_by.get("logits")
    if node is None or node.op_type not in ("Gemm", "MatMul", "Add"):
        return
    if node.op_type == "Add":  # a linear layer without a Gemm
        node = next((made_by[name] for name in node.input if name in made_by), node)
    node = made_by.get(node.input[0])
    while node is not None and node.op_type in _WITHOUT_EFFECT:
        node = made_by.get(node.input[0])
    if node is None or node.op_type not in _POOLING:
        return
    pooled = node.input[0]
    shapes = {info.name: info for info in shape_inference.infer_shapes(model).graph.value_info}
    if pooled not in shapes or len(shapes[pooled].type.tensor_type.shape.dim) != 4:
        return
    sides = [dim.dim_value or None for dim in shapes[pooled].type.tensor_type.shape.dim[1:]]
    model.graph.node.append(helper.make_node("Identity", [pooled], ["features"]))
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", *sides]))
