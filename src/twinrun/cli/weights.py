"""The command `twinrun weights fetch`: pretrained weights are fetched once, before a training that starts from them."""

from typing import Annotated

import typer

from twinrun.base.errors import ModelError
from twinrun.base.printing import print
from twinrun.core.networks import PACKAGE_MODELS, side_by_side, unknown_network

app = typer.Typer(no_args_is_help=True, help="Fetch pretrained weights, from which trainings start.")


@app.callback()
def _group() -> None:
    """Fetch pretrained weights, from which trainings start."""


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A network of torchvision, such as resnet18, or timm/NAME.")],
) -> None:
    """Fetch the ImageNet weights that torchvision or timm publishes for a network, and keep them in the project.

    Weights in the library's own cache ($TORCH_HOME, $HF_HOME) are taken from there. They are kept as safetensors below
    data/pretrained; train.pretrained: imagenet then starts from them, without a network connection.

    Examples: twinrun weights fetch resnet18, twinrun weights fetch timm/convnext_atto
    """
    from twinrun.core.params import require_project

    require_project()
    if problem := unknown_network(name):
        raise ModelError(problem[0].upper() + problem[1:] + ".")
    for each in side_by_side(name):
        _fetch(each)


def _fetch(name: str) -> None:
    if name in PACKAGE_MODELS.values():
        print(f"The weights of {name} come with the environment. Use them: train.pretrained: imagenet")
        return
    from twinrun.models.pretrained import fetch_weights

    folder, is_new = fetch_weights(name)
    print(
        f"{'Kept in' if is_new else 'Already in'} {folder}. Use them: train.model: {name}, train.pretrained: imagenet"
    )
    if is_new:
        print(f"Share them with the project: dvc add {folder}")
