"""What a network does with one image, step by step, with its own numbers: the data of the page of `twinrun explain`.

Of a small network every step is kept, of a deep one the first block and the last. Every number is the network's own: a
function mode sees each operation with its arguments. A class map, which shows the places that support an answer, is
exact where the network ends in pooling and one linear layer (Zhou et al., "Learning Deep Features for Discriminative
Localization", 2016), and otherwise an estimate (Selvaraju et al., "Grad-CAM", 2017). Covering one part of the image at
a time (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014) checks both.
"""

import math
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from twinrun.core.arrays import Float32Array, FloatArray, IntArray, Pixels
from twinrun.evaluation.features import KINDS, as_maps, liveliest, naming_hooks
from twinrun.evaluation.predict import outputs_of
from twinrun.models.architectures import find_head
from twinrun.models.bundle import Bundle
from twinrun.models.predict import channel_tensor, normalised, pass_size, probabilities, single_threads
from twinrun.models.views import plain_network

_MOST_STEPS = 16  # of a network that is shown whole
_FIRST, _LAST = 5, 10  # steps of the first and the last block of a deeper one
_MAP_VALUES = 60_000  # of all maps shown in one step
_MOST_MAPS, _FEWEST_MAPS = 16, 6
_MOST_UNITS, _FEWEST_UNITS, _UNIT_WEIGHTS = 24, 3, 100_000
_CLASSES_SHOWN = 10
_CLASS_MAPS = 3
_CELLS = 12  # along the longer side, of the grid in which parts are covered; a part is two cells wide
_LAYERS_TRIED = 60  # from the last one on, for maps that the answer depends on
_TOKENS_BESIDE = 5  # at most so many tokens of a transformer are no patches
_NEAREST = 6
_SEARCHED_PIXELS = 150_000_000  # of the training images that are compared: about half a minute with a large network
_NOTHING = 1e-12  # added to lengths, so that none is 0
_AGREES = 1e-4  # of the logits' scale

_NAMES: dict[str, tuple[str, ...]] = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "batch_norm": ("input", "mean", "variance", "weight", "bias", "training", "momentum", "eps"),
    "linear": ("input", "weight", "bias"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "adaptive_avg_pool2d": ("input", "output_size"),
    "adaptive_max_pool2d": ("input", "output_size"),
    "mean": ("input", "dim"),
    "amax": ("input", "dim"),
    "add": ("input", "other"),
}
_KINDS = KINDS | {
    "batch_norm": "normalisation", "linear": "fully connected", "flatten": "flatten", "view": "flatten",
    "reshape": "flatten", "mean": "pooling", "amax": "pooling", "add": "addition",
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """The content of the page: `data`, plain values that become its JSON, and the answer (classes, probabilities)."""

    data: dict[str, Any]
    classes: tuple[str, ...]
    probabilities: FloatArray


@dataclass(frozen=True)
class _Call:
    """One operation on a batch of one; the tensors are copies, or missing where only its kind is needed."""

    kind: str
    operation: str
    layer: str
    arguments: dict[str, Any]
    output: Float32Array | None


def anatomy(bundle: Bundle, pixels: Pixels) -> Anatomy:
    """Follow one image, uint8 (H, W, C) as the network takes it, through the network of a bundle.

    The probabilities are those of `twinrun predict`, to the bit; where the answer is a mean over views of the image,
    those of the image itself.
    """
    plain = replace(bundle, network=plain_network(bundle.network))
    return single_threads().submit(_anatomy, plain, pixels).result()


def occlusion(bundle: Bundle, pixels: Pixels) -> dict[str, Any]:
    """How the answer changes when a part of the image (H, W, C) is covered, for parts in a grid over it.

    `probability` of the predicted class and `drop`, the decrease of its log odds, have the shape (rows, columns) of the
    grid; `cell` is its step and `patch` the side of a part, in pixels.
    """
    plain = replace(bundle, network=plain_network(bundle.network))
    cell = max(1, round(max(pixels.shape[:2]) / _CELLS))
    patch = 2 * cell
    tops, lefts = (range(0, max(1, side - patch + cell), cell) for side in pixels.shape[:2])
    colour = np.round(np.array(bundle.preprocessing.mean) * 255).astype(np.uint8)
    covered = np.repeat(pixels[None], len(tops) * len(lefts) + 1, axis=0)
    for number, (top, left) in enumerate((top, left) for top in tops for left in lefts):
        covered[number, top : top + patch, left : left + patch] = colour
    shares = probabilities(plain, covered)
    best = int(shares[-1].argmax())
    odds = np.log(np.maximum(shares[:, best], 1e-300)) - np.log(
        np.maximum(np.delete(shares, best, axis=1).sum(axis=1), 1e-300)
    )
    shape = (len(tops), len(lefts))
    return {
        "cell": cell,
        "patch": patch,
        "label": bundle.classes[best],
        "before": float(shares[-1, best]),
        "probability": shares[:-1, best].reshape(shape).round(6).tolist(),
        "drop": (odds[-1] - odds[:-1]).reshape(shape).round(4).tolist(),
    }


def nearest(bundle: Bundle, pixels: Pixels, images: Pixels, rows: IntArray) -> list[tuple[int, float]]:
    """The rows of the most similar of `images[rows]`, (N, H, W, C), the most similar first, with the similarity.

    It is the cosine, in [-1, 1], between the inputs of the head. Empty for a network without a linear head.
    """
    plain = replace(bundle, network=plain_network(bundle.network))
    _, wanted = outputs_of(plain, pixels[None], np.zeros(1, np.int64))
    if wanted is None:
        return []
    _, features = outputs_of(plain, images, rows)
    if features is None:
        return []
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(wanted) + _NOTHING
    similarity = features @ wanted[0] / lengths
    best = np.argsort(-similarity, kind="stable")[:_NEAREST]
    return [(int(rows[at]), float(similarity[at])) for at in best]


def searched(rows: IntArray, size: tuple[int, int]) -> IntArray:
    """The `rows` to search when images have `size` (H, W): all of them, or evenly spaced ones."""
    most = max(1, _SEARCHED_PIXELS // math.prod(size))
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def agreement(class_map: NDArray[np.floating[Any]], covered: dict[str, Any], size: tuple[int, int]) -> float | None:
    """Rank correlation, in [-1, 1], of a class map (h, w) and the drops of `occlusion`; None where one is constant."""
    down, across = (np.arange(side) * cells // side for side, cells in zip(size, class_map.shape, strict=True))
    fine = class_map[down][:, across]
    drop, cell, patch = np.array(covered["drop"]), covered["cell"], covered["patch"]
    means = [
        fine[row * cell : row * cell + patch, column * cell : column * cell + patch].mean()
        for row, column in np.ndindex(drop.shape)
    ]
    one, other = (ranks - ranks.mean() for ranks in (_ranks(np.array(means)), _ranks(drop.ravel())))
    scale = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / scale if scale else None


def _anatomy(bundle: Bundle, pixels: Pixels) -> Anatomy:
    settings = bundle.preprocessing
    mean, std = channel_tensor(settings.mean), channel_tensor(settings.std)
    filled = np.zeros((pass_size(pixels[None]), *pixels.shape), np.uint8)  # as predict fills its passes, for its bits
    filled[0] = pixels
    images = normalised(torch.from_numpy(filled), mean, std)
    with torch.inference_mode():
        kinds = [call.kind for call in _calls(bundle.network, images, set())[0]]
        chosen = _chosen(kinds)
        calls, logits = _calls(bundle.network, images, set(chosen))
    shares = np.asarray(logits.double().softmax(dim=0).numpy())
    order = np.argsort(-shares, kind="stable")
    head = find_head(bundle.network, len(bundle.classes))
    arrays = _Arrays(images[0].float().numpy())
    preferred = None if head is None else _speaking(head[1], calls, int(order[0]))
    steps = _described([(at, calls[at]) for at in chosen], arrays, preferred, order[:_CLASSES_SHOWN])
    for before, step in zip([-1, *chosen], steps, strict=False):
        step["between"] = dict(Counter(kinds[before + 1 : step.pop("at")]))
    data = {
        "image": {"shape": list(pixels.shape), "data": b64encode(np.ascontiguousarray(pixels).tobytes()).decode()},
        "levels": _packed(_levels(bundle)),
        "arrays": arrays.packed,
        "steps": steps,
        "convolutions": kinds.count("convolution"),
        "classes": list(bundle.classes),
        "logits": _packed(logits.float().numpy()),
        "maps": _class_maps(bundle, images[:1], logits, calls, order[:_CLASS_MAPS]),
    }
    return Anatomy(data, bundle.classes, shares)


class _Arrays:
    """Arrays of float32, each stored once in a page; -1 is the input of the network."""

    def __init__(self, image: Float32Array) -> None:
        self.packed: list[dict[str, Any]] = []
        self._places = {self._key(image): -1}

    def add(self, values: Float32Array) -> int:
        key = self._key(values)
        if key not in self._places:
            self._places[key] = len(self.packed)
            self.packed.append(_packed(values))
        return self._places[key]

    @staticmethod
    def _key(values: Float32Array) -> tuple[tuple[int, ...], bytes]:
        return values.shape, np.ascontiguousarray(values).tobytes()


class _Recorder(TorchFunctionMode):
    """Records every call of a torch function, with arguments and output for those whose number is in `wanted`."""

    def __init__(self, wanted: set[int]) -> None:
        super().__init__()
        self.wanted, self.path, self.calls = wanted, [""], list[_Call]()
        self._sides: tuple[int, ...] = ()

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        operation = getattr(function, "__name__", "").strip("_")
        operation = "add" if operation == "iadd" else operation
        if operation not in _KINDS or not args or not isinstance(args[0], Tensor):
            return function(*args, **(kwargs or {}))
        arguments = dict(zip(_NAMES.get(operation, ("input",)), args, strict=False)) | (kwargs or {})
        shape = args[0].shape
        keep = len(self.calls) in self.wanted
        if keep:  # copies: the operation may work in place
            arguments = {name: _copied(value, name) for name, value in arguments.items()}
        output = function(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and self._is_shown(operation, arguments, shape, output):
            if output.ndim == 4 and math.prod(output.shape[2:]) > 1:
                self._sides = tuple(output.shape[2:])
            kept = output[0].detach().float().cpu().numpy().copy() if keep else None
            self.calls.append(_Call(_KINDS[operation], operation, self.path[-1], arguments if keep else {}, kept))
        return output

    def _is_shown(self, operation: str, arguments: dict[str, Any], shape: torch.Size, output: Tensor) -> bool:
        """Whether the operation is on the way of maps (1, C, h, w) or vectors (1, n); not where they are weighted."""
        match _KINDS[operation]:
            case "fully connected":
                return len(shape) == 2
            case "flatten":
                is_row = output.shape == (shape[0], math.prod(shape[1:]))
                return len(shape) == 4 and is_row and math.prod(shape[2:]) > 1
            case "pooling" if operation in ("mean", "amax"):
                dims = arguments.get("dim")
                return len(shape) == 4 and isinstance(dims, list | tuple) and {dim % 4 for dim in dims} == {2, 3}
            case "addition":
                other = arguments.get("other")
                return (
                    isinstance(other, Tensor | np.ndarray) and output.shape == shape and tuple(shape[2:]) == self._sides
                )
            case "convolution" if operation == "conv2d":
                return math.prod(shape[2:]) > 1
            case "pooling" | "normalisation":
                return len(shape) == 4 and math.prod(shape[2:]) > 1 and operation in _NAMES
            case "activation":
                return len(shape) == 2 or (len(shape) == 4 and tuple(shape[2:]) == self._sides)
        return False


def _copied(value: Any, name: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    of_batch = name in ("input", "other") and value.ndim > 1
    return (value[0] if of_batch else value).detach().float().cpu().numpy().copy()


def _calls(network: nn.Module, images: Tensor, wanted: set[int]) -> tuple[list[_Call], Tensor]:
    """The network's operations in order, and its logits (classes,) of the first image."""
    recorder = _Recorder(wanted)
    hooks = list(naming_hooks(network, recorder.path))
    try:
        with recorder:
            logits = network(images.clone())  # a network may change its input in place
    finally:
        for hook in hooks:
            hook.remove()
    return recorder.calls, logits[0].float()


def _chosen(kinds: Sequence[str]) -> list[int]:
    """Numbers of the operations to show: all, or those of the first and the last block."""
    if len(kinds) <= _MOST_STEPS:
        return list(range(len(kinds)))
    convolutions = [number for number, kind in enumerate(kinds) if kind == "convolution"]
    if not convolutions:
        return [*range(_FIRST), *range(len(kinds) - _LAST, len(kinds))]
    first, last = convolutions[0], convolutions[-1]
    end = next(
        (at for at in range(first + 1, len(kinds)) if kinds[at] in ("convolution", "addition", "fully connected")),
        len(kinds),
    )
    block = range(first, min(end, first + _FIRST))
    return [*block, *(at for at in range(max(last, len(kinds) - _LAST), len(kinds)) if at not in block)]


def _speaking(head: nn.Linear, calls: Sequence[_Call], best: int) -> FloatArray | None:
    """The contribution of each input of the head to the class `best`: weight times input, (features,)."""
    given = calls[-1].arguments.get("input") if calls and calls[-1].kind == "fully connected" else None
    if given is None or given.shape != (head.in_features,):
        return None
    speaking: FloatArray = head.weight[best].detach().double().numpy() * given
    return speaking


def _described(
    chosen: Sequence[tuple[int, _Call]], arrays: _Arrays, preferred: FloatArray | None, classes: IntArray
) -> list[dict[str, Any]]:
    """Every step as plain values, with the maps or units of it that are shown."""
    steps: list[dict[str, Any]] = []
    shown, before = np.zeros(0, np.int64), None
    last = len(chosen) - 1
    for place, (at, call) in enumerate(chosen):
        given, output = call.arguments["input"], call.output
        assert output is not None
        linked = any(_same_values(before, call.arguments.get(name)) for name in ("input", "other"))
        step = {
            "at": at, "kind": call.kind, "operation": call.operation, "layer": call.layer, "linked": linked,
            "shape": [*given.shape], "to": [*output.shape],
        }  # fmt: skip
        if call.kind == "fully connected":
            units = classes if place == last else _strongest(output, given.size)
            step |= _of_linear(call.arguments, units, arrays) | {"output": arrays.add(output)}
        elif call.kind == "flatten" or (output.ndim == 1 and given.ndim == 1):
            step |= {"input": arrays.add(given), "output": arrays.add(output)}
        else:
            follows = linked and len(shown) and call.kind != "convolution" and len(output) == len(before)  # type: ignore[arg-type]
            shown = shown if follows else _maps_to_show(output, preferred)
            step |= {"shown": shown.tolist(), "output": arrays.add(output[shown])}
            step |= _of_convolution(call.arguments, shown, arrays) if call.kind == "convolution" else {}
            step |= _of_maps(call, shown, arrays) if call.kind != "convolution" else {}
        steps.append(step)
        before = output
    return steps


def _same_values(one: Float32Array | None, other: Any) -> bool:
    """Whether two arrays hold the same numbers in the same order, whatever their shapes."""
    return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.array_equal(one.ravel(), other.ravel())


def _maps_to_show(output: Float32Array, preferred: FloatArray | None) -> IntArray:
    """The maps that contribute most to the answer, if the head uses these maps; otherwise those that vary most."""
    size = math.prod(output.shape[1:])
    count = min(len(output), max(_FEWEST_MAPS, min(_MOST_MAPS, _MAP_VALUES // size)))
    if preferred is not None and len(preferred) == len(output):
        return np.argsort(-preferred, kind="stable")[:count]
    return liveliest(output if output.ndim == 3 else output[:, None, None], count)


def _strongest(output: Float32Array, inputs: int) -> IntArray:
    count = max(_FEWEST_UNITS, min(_MOST_UNITS, _UNIT_WEIGHTS // inputs))
    return np.sort(np.argsort(-np.abs(output), kind="stable")[:count])


def _of_linear(arguments: dict[str, Any], units: IntArray, arrays: _Arrays) -> dict[str, Any]:
    bias = arguments.get("bias")
    return {
        "shown": units.tolist(),
        "input": arrays.add(arguments["input"]),
        "weight": arrays.add(arguments["weight"][units]),
        "bias": None if bias is None else arrays.add(bias[units]),
    }


def _of_convolution(arguments: dict[str, Any], shown: IntArray, arrays: _Arrays) -> dict[str, Any]:
    """The kernels of the maps that are shown, and the numbers of the arrays with their input maps."""
    given, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    of_group, outputs_of_group = weight.shape[1], weight.shape[0] // int(arguments.get("groups", 1))
    first = shown // outputs_of_group * of_group  # for each map, the first of the input maps of its group
    needed = np.unique(np.concatenate([np.arange(start, start + of_group) for start in first]))
    sizes = {name: _pair(arguments.get(name, default)) for name, default in (("stride", 1), ("dilation", 1))}
    padding = arguments.get("padding", 0)
    if isinstance(padding, str):
        spread = [d * (k - 1) // 2 for d, k in zip(sizes["dilation"], weight.shape[2:], strict=True)]
        padding = spread if padding == "same" else 0
    return {
        "input": arrays.add(given[needed] if len(needed) < len(given) else given),
        "inputs": needed.tolist() if len(needed) < len(given) else None,
        "first": np.searchsorted(needed, first).tolist(),
        "weight": arrays.add(weight[shown]),
        "bias": None if bias is None else arrays.add(bias[shown]),
        "padding": _pair(padding),
        "count": int(weight.shape[0]),
        **sizes,
    }


def _of_maps(call: _Call, shown: IntArray, arrays: _Arrays) -> dict[str, Any]:
    """What else the page needs to compute the shown maps itself: statistics, windows, the other summand."""
    values: dict[str, Any] = {"input": arrays.add(call.arguments["input"][shown])}
    if call.kind == "addition":
        values["other"] = arrays.add(call.arguments["other"][shown])
    if call.kind == "normalisation":
        ones, arguments = np.ones(len(call.arguments["input"]), np.float32), call.arguments
        for name, default in (("mean", ones), ("variance", ones), ("weight", ones), ("bias", ones * 0)):
            found = arguments.get(name)
            values[name] = arrays.add(np.asarray(default if found is None else found)[shown])
        values["eps"] = float(arguments.get("eps", 1e-5))
    if call.kind == "pooling":
        values["largest"] = call.operation in ("max_pool2d", "adaptive_max_pool2d", "amax")
        if call.operation in ("max_pool2d", "avg_pool2d"):
            kernel = call.arguments["kernel_size"]
            values["kernel"] = _pair(kernel)
            values["stride"] = _pair(call.arguments.get("stride") or kernel)
            values["padding"] = _pair(call.arguments.get("padding", 0))
            values["padded"] = bool(call.arguments.get("count_include_pad", True))
    return values


def _class_maps(
    bundle: Bundle, image: Tensor, logits: Tensor, calls: Sequence[_Call], classes: IntArray
) -> dict[str, Any] | None:
    """For the likeliest classes, how much each place supports the class; None where the network has no maps."""
    exact = _exact_maps(bundle, logits, calls, classes)
    if exact is not None:
        return exact
    with torch.inference_mode(False), torch.enable_grad():
        return _gradient_maps(bundle.network, image.clone(), classes)


def _exact_maps(bundle: Bundle, logits: Tensor, calls: Sequence[_Call], classes: IntArray) -> dict[str, Any] | None:
    """Maps whose values and the bias add up to the logit; None unless the network ends in pooling and a linear head."""
    pooling = next((call for call in reversed(calls) if call.kind == "pooling"), None)
    if pooling is None or pooling.output is None or pooling.arguments["input"].ndim != 3:
        return None
    given = pooling.arguments["input"].astype(np.float64)
    height, width = given.shape[1:]
    if pooling.output.size != len(given) or min(height, width) < 2:
        return None
    head = find_head(bundle.network, len(bundle.classes))
    if head is not None and head[1].in_features == len(given):
        weight = head[1].weight.detach().double().numpy()
        bias = np.zeros(len(weight)) if head[1].bias is None else head[1].bias.detach().double().numpy()
    elif len(given) == len(bundle.classes):  # what is pooled are the classes' maps themselves
        weight, bias = np.eye(len(given)), np.zeros(len(given))
    else:
        return None
    largest = pooling.operation in ("max_pool2d", "adaptive_max_pool2d", "amax")
    if largest:
        where = given.reshape(len(given), -1).argmax(axis=1)
        shares = np.zeros((len(given), height * width))
        shares[np.arange(len(given)), where] = given.reshape(len(given), -1).max(axis=1)
        shares = shares.reshape(given.shape)
    else:
        shares = given / (height * width)
    maps = np.einsum("ck,khw->chw", weight, shares)
    wanted = logits.double().numpy()
    if np.abs(maps.sum(axis=(1, 2)) + bias - wanted).max() > _AGREES * max(1.0, np.abs(wanted).max()):
        return None
    return {
        "kind": "exact",
        "largest": largest,
        "layer": pooling.layer,
        "classes": classes.tolist(),
        "bias": bias[classes].tolist(),
        "maps": _packed(maps[classes].astype(np.float32)),
    }


def _gradient_maps(network: nn.Module, image: Tensor, classes: IntArray) -> dict[str, Any] | None:
    """Grad-CAM on the last maps that the answer depends on, whichever layer makes them."""
    outputs: list[tuple[str, Tensor]] = []
    tokens: set[int] = set()  # how many a transformer has; what has so many rows is no map

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            if output.ndim == 3:
                tokens.add(output.shape[1])
            if _is_spatial(output) and (output.ndim == 3 or output.shape[2] not in tokens):
                outputs.append((name, output))

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in network.named_modules()]
    try:
        logits = network(image.requires_grad_().clone())[0]  # what may be changed in place is no leaf
    finally:
        for hook in hooks:
            hook.remove()
    outputs = outputs[-_LAYERS_TRIED:]
    if not outputs:
        return None
    first, *others = (logits[number] for number in classes.tolist())
    aspect = image.shape[2] / image.shape[3]
    gradients = torch.autograd.grad(first, [output for _, output in outputs], retain_graph=True, allow_unused=True)
    for (name, output), gradient in reversed(list(zip(outputs, gradients, strict=True))):
        if gradient is None or not as_maps(gradient, aspect).any():
            continue
        every = [gradient, *(torch.autograd.grad(logit, output, retain_graph=True)[0] for logit in others)]
        weights = torch.stack([as_maps(each, aspect).mean(dim=(1, 2)) for each in every])
        maps = torch.einsum("ck,khw->chw", weights, as_maps(output, aspect)).relu().detach().float().numpy()
        return {"kind": "gradient", "layer": name, "classes": classes.tolist(), "maps": _packed(maps)}
    return None


def _is_spatial(output: Tensor) -> bool:
    if output.ndim == 4:
        return min(sorted(output.shape[1:])[:2]) > 1 and min(output.shape[2:]) > 1
    if output.ndim != 3:
        return False
    side = math.isqrt(output.shape[1])
    return side > 1 and output.shape[1] - side**2 <= _TOKENS_BESIDE


def _levels(bundle: Bundle) -> Float32Array:
    """The input of the network for each value of a pixel: (channels, 256)."""
    settings = bundle.preprocessing
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 256, 1).repeat(1, 1, 1, len(settings.mean))
    levels: Float32Array = normalised(every, channel_tensor(settings.mean), channel_tensor(settings.std))[
        0, :, 0
    ].numpy()
    return levels


def _packed(values: Float32Array) -> dict[str, Any]:
    """An array as JSON holds it: its shape and base64 of its values, little-endian float32."""
    return {"shape": list(values.shape), "data": b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()}


def unpacked(packed: dict[str, Any]) -> Float32Array:
    """The array from the JSON of `_packed`."""
    return np.frombuffer(b64decode(packed["data"]), "<f4").reshape(packed["shape"])


def _pair(value: Any) -> list[int]:
    return [int(each) for each in value] if isinstance(value, Sequence) else [int(value)] * 2


def _ranks(values: NDArray[np.floating[Any]]) -> FloatArray:
    """Ranks (n,); equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks: FloatArray = (ends - (counts - 1) / 2)[place]
    return ranks
