"""A bundle's network as one ONNX file that takes images as ingest makes them, and that file's answers."""

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinrun.base.errors import ModelError
from twinrun.core.arrays import FloatArray, IntArray, Pixels

if TYPE_CHECKING:
    import onnx

    from twinrun.models.bundle import Bundle

_OPSET = 18
_IMAGES_AT_ONCE = 4  # more take longer for each, since they leave the processor's cache
_POOLING = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
_AVERAGES = ("GlobalAveragePool", "ReduceMean")
_WITHOUT_EFFECT = ("Flatten", "Reshape", "Squeeze", "Identity", "Dropout")


def onnx_file(bundle: "Bundle") -> bytes:
    """The network as an ONNX model: `images`, uint8 (batch, H, W, C), to `logits`, float32 (batch, classes).

    Where the network ends in pooling and one linear layer, `features` (batch, maps, h, w) is what is pooled, and where
    that is an average, `maps` (batch, classes, h, w) are the exact class activation maps. The file holds the network's
    tensors as they are, each once, `network.` before their names, and in its metadata the weights hash. Raises
    ModelError where an operation of the network has no counterpart in ONNX.
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
                # Evaluation mode as the modules have it, without joining layers: that is ONNX Runtime's own work, and
                # so the file holds the bundle's tensors under their names.
                training=torch.onnx.TrainingMode.PRESERVE,
            )
            model = onnx.load_model(Path(folder, "model.onnx"))
        _add_features(model)
    except Exception as error:  # the exporter raises of its own, and whatever the network raises under it
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{bundle.architecture} cannot be written as ONNX: {reason}") from error
    model.metadata_props.add(key="weights_hash", value=bundle.weights_hash)
    return bytes(model.SerializeToString(deterministic=True))


def onnx_logits(file: bytes, images: Pixels, rows: IntArray) -> FloatArray:
    """ONNX Runtime's logits (n, classes) of `images[rows]`, uint8 (N, H, W, C), which may be memory-mapped."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    parts = [rows[start : start + _IMAGES_AT_ONCE] for start in range(0, len(rows), _IMAGES_AT_ONCE)]
    return np.concatenate(
        [session.run(["logits"], {"images": np.ascontiguousarray(images[part])})[0] for part in parts]
    ).astype(np.float64)


def _add_features(model: "onnx.ModelProto") -> None:
    """Make what is pooled before the last linear layer a second output, where the network ends so."""
    from onnx import TensorProto, helper, shape_inference

    made_by = {name: node for node in model.graph.node for name in node.output}
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    node = made_by.get("logits")
    if node is not None and node.op_type == "Add":  # a linear layer without a Gemm, and its bias
        computed = [name for name in node.input if name not in known]
        node = made_by.get(computed[0]) if len(computed) == 1 else None
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        return
    linear = node
    node = made_by.get(node.input[0])
    while node is not None and node.op_type in _WITHOUT_EFFECT:
        node = made_by.get(node.input[0])
    if node is None or node.op_type not in _POOLING:
        return
    if node.op_type.startswith("Reduce") and _axes(node, made_by, known) != {2, 3}:  # rows and columns
        return
    pooled = node.input[0]
    shapes = {info.name: info for info in shape_inference.infer_shapes(model).graph.value_info}
    if pooled not in shapes or len(shapes[pooled].type.tensor_type.shape.dim) != 4:
        return
    sides = [dim.dim_value or None for dim in shapes[pooled].type.tensor_type.shape.dim[1:]]
    model.graph.node.append(helper.make_node("Identity", [pooled], ["features"]))
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", *sides]))
    weight = known.get(linear.input[1])
    transposed = any(each.name == "transB" and each.i == 1 for each in linear.attribute)
    if linear.op_type != "Gemm" or not transposed or weight is None or node.op_type not in _AVERAGES:
        return
    shape = helper.make_tensor("maps shape", TensorProto.INT64, [4], [*weight.dims, 1, 1])
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", [weight.name, shape.name], ["maps weight"]))
    model.graph.node.append(helper.make_node("Conv", [pooled, "maps weight"], ["maps"]))
    size = ["batch", weight.dims[0], *sides[1:]]
    model.graph.output.append(helper.make_tensor_value_info("maps", TensorProto.FLOAT, size))


def _axes(
    node: "onnx.NodeProto", made_by: "dict[str, onnx.NodeProto]", known: "dict[str, onnx.TensorProto]"
) -> set[int]:
    """Which of four dimensions a node reduces; none where that is computed or not said."""
    from onnx import numpy_helper

    if len(node.input) < 2:
        return set()
    constant = made_by.get(node.input[1])
    tensor = known.get(node.input[1]) if constant is None else constant.attribute[0].t
    return set() if tensor is None else {int(axis) % 4 for axis in numpy_helper.to_array(tensor).ravel()}
