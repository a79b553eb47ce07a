"""Params of the data stages that contradict one another."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from twinrun.base.errors import ParamsError
from twinrun.core.params import parse_params


def test_sides_that_no_image_can_have_are_refused_with_every_other_problem() -> None:
    settings: dict[str, Any] = YAML(typ="safe").load(Path("params.yaml"))
    settings["validate"].update(min_side_px=500, max_side_px=400)
    settings["train"]["epochs"] = 0

    with pytest.raises(ParamsError) as raised:
        parse_params(settings)

    assert "validate: min_side_px must be at most max_side_px, got 500 and 400" in str(raised.value)
    assert "train.epochs: must be at least 1" in str(raised.value)
    settings["validate"].update(min_side_px=400)
    settings["train"]["epochs"] = 1
    assert parse_params(settings).validate.min_side_px == 400
