"""Names that begin with ~ and name no home folder, as Office and sync programs leave them: files like any other."""

import shutil
import threading
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from twinrun import load
from twinrun.base.errors import BundleError, DataError, ParamsError, PublishError, RegistryError, SourceError
from twinrun.base.paths import expanded
from twinrun.before_dvc import check
from twinrun.cli.chosen import choose_images
from twinrun.cli.predict import require_writable
from twinrun.core.params import parse_params
from twinrun.prediction.inputs import images_in
from twinrun.project.creating import create_project
from twinrun.project.presets import params_text
from twinrun.serving.follow import open_model
from twinrun.tracking.store import find_tracker
from twinrun.validate.reference import find_reference

PHOTO, NOBODY = "~$photo.jpg", "~nobodyhere/photos"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a photo of such a name, and one in a folder of such a name."""
    monkeypatch.chdir(tmp_path)
    for name in (PHOTO, "~$bins/glass/1.jpg", "~$bins/paper/1.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), "white").save(name)
    return tmp_path


def test_a_home_folder_is_found_and_any_other_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")

    assert expanded("~/bins") == Path("/home/ada/bins")
    assert [str(expanded(name)) for name in (PHOTO, NOBODY, "a/~b")] == [PHOTO, NOBODY, "a/~b"]


@pytest.mark.usefixtures("folder")
def test_an_image_is_named_on_the_command_line_in_a_csv_and_from_python() -> None:
    Path("list.csv").write_text(f"path\n{PHOTO}\n")

    assert choose_images([PHOTO, "list.csv"]).paths == [Path(PHOTO), Path(PHOTO)]
    assert images_in([PHOTO, Path(PHOTO)], paths=True) == [Path(PHOTO), Path(PHOTO)]
    with pytest.raises(PublishError, match="is one of the images"):
        require_writable(Path(PHOTO), (".jpg",), [PHOTO])


@pytest.mark.usefixtures("folder")
def test_files_and_folders_of_settings_are_looked_for_under_that_name() -> None:
    settings = YAML(typ="safe", pure=True).load(params_text("folder"))
    settings["ingest"] |= {"path": "~$bins"}
    settings["validate"] |= {"decisions": NOBODY, "reference": PHOTO}
    settings["train"] |= {"pretrained": NOBODY}

    with pytest.raises(ParamsError) as raised:
        parse_params(settings, inputs=True)

    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [
        f"validate.decisions: there is no file {NOBODY}",
        f"train.pretrained: there is no file {NOBODY}",
    ]
    with pytest.raises(DataError, match=r"~nobodyhere/photos is missing\. Name another table of facts"):
        find_reference(NOBODY)


def test_dvc_is_given_a_source_folder_of_that_name(folder: Path) -> None:
    for name in ("pipeline/ingest.py", "dvc.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(Path(__file__).parents[2] / name, folder / name)
    Path("params.yaml").write_text(params_text("folder", ["ingest.path=~$bins"]))

    check(["repro"], folder)
    with pytest.raises(SourceError, match="The source folder ~nobodyhere/photos does not exist"):
        check(["exp", "run", "-S", f"ingest.path='{NOBODY}'"], folder)


@pytest.mark.usefixtures("folder")
def test_a_project_and_a_model_are_sought_under_that_name() -> None:
    with pytest.raises(SourceError, match=r"~nobodyhere/photos \(--data\) does not exist"):
        create_project(Path("~$demo"), "photos", Path(NOBODY))
    with pytest.raises((BundleError, RegistryError)):
        load(NOBODY)
    with pytest.raises((BundleError, RegistryError)):
        open_model(find_tracker(), NOBODY, lambda: "bins", threading.Event())
