"""Write the waste model that comes with the package, from a project that the preset trashnet trained and registered.

    twinrun preset trashnet && dvc repro && python -m benchmarks.waste_model

The ONNX file of the version becomes a graph with the head alone: the tensors of the backbone are named by where they
lie in the file that they came from, and in which order of their axes.
"""

import importlib.util
import json
import shutil
from itertools import permutations
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data
from onnx.numpy_helper import to_array

from twinrun.base.files import read_json, write_json
from twinrun.serving.waste import BACKBONE, FOLDER
from twinrun.tracking.registry import ONNX

_SMALL = 64  # bytes of a constant, which stays in the graph


def main(project: Path = Path()) -> None:
    """Write FOLDER anew; its licence stays."""
    module, name = BACKBONE
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / name
    data = file.read_bytes()
    model = onnx.load_model(project / "data/out/register/onnx" / ONNX)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= _SMALL:
            continue
        numbers = to_array(tensor)
        for axes in permutations(range(numbers.ndim)):
            at = data.find(numbers.transpose(axes).tobytes())
            if at >= 0:
                set_external_data(tensor, file.name, offset=at, length=len(tensor.raw_data))
                tensor.ClearField("raw_data")
                tensor.doc_string = json.dumps(axes)
                break
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ONNX).write_bytes(model.SerializeToString(deterministic=True))
    shutil.copyfile(project / "data/out/train/bundle/model.json", FOLDER / "model.json")
    write_json(read_json(project / "data/out/train/card.json"), FOLDER / "card.json")


if __name__ == "__main__":
    main()
