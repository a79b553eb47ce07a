"""Bundles that somebody else made or changed: each is loaded as what it is, or refused with a reason."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from tracking_support import AB, evaluate, train

from pipeline import register
from twinrun.base.errors import BundleError, run_main
from twinrun.base.files import write_text
from twinrun.models.bundle import load_bundle
from twinrun.models.stored import tensors_hash
from twinrun.tracking.registry import Registry, check_bundle
from twinrun.tracking.store import find_tracker

Change = Callable[[Path], None]


def _sign(folder: Path) -> None:
    """Make the manifest that of the files as they are now, as whoever changes them can."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps({"sha256": hashes}))


def _set(**changes: Any) -> Change:
    """Change values of model.json, such as preprocessing__std=[0.0]; None as a name's value is JSON's null."""

    def change(folder: Path) -> None:
        model = json.loads((folder / "model.json").read_text())
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            (model[section] if section else model)[key] = value
        (folder / "model.json").write_text(json.dumps(model))

    return change


def _without(name: str) -> Change:
    def change(folder: Path) -> None:
        model = json.loads((folder / "model.json").read_text())
        section, _, key = name.rpartition("__")
        del (model[section] if section else model)[key]
        (folder / "model.json").write_text(json.dumps(model))

    return change


def _text(old: str, new: str) -> Change:
    """Change the text of model.json."""

    def change(folder: Path) -> None:
        text = json.dumps(json.loads((folder / "model.json").read_text()))
        assert old in text
        (folder / "model.json").write_text(text.replace(old, new, 1))

    return change


def _content(name: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def _tensors(change_tensors: Callable[[dict[str, Any]], Any], *, described: bool) -> Change:
    """Change the weights; where `described`, the weights hash in model.json is that of the new ones."""

    def change(folder: Path) -> None:
        tensors = load((folder / "weights.safetensors").read_bytes())
        change_tensors(tensors)
        weights = save(tensors)
        (folder / "weights.safetensors").write_bytes(weights)
        if described:
            with suppress(ValueError):
                _set(weights_hash=tensors_hash(weights))(folder)

    return change


def _link(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def _folder(folder: Path) -> None:
    (folder / "model.json").unlink()
    (folder / "model.json").mkdir()


def _pipe(folder: Path) -> None:
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")


HASH = "is not the one that was written"
CANNOT = "cannot be used by this version of Twinrun"
SIGNED: dict[str, tuple[Change, str]] = {
    "a hash of other weights": (_set(weights_hash="cd" * 32), "files are of two models"),
    "a hash that is none": (_set(weights_hash="AB"), CANNOT),
    "other weights": (_tensors(lambda t: t["5.bias"].fill(0.5), described=False), "files are of two models"),
    "a tensor more": (_tensors(lambda t: t.update(extra=np.ones(3)), described=True), CANNOT),
    "a tensor less": (_tensors(lambda t: t.pop("5.bias"), described=True), CANNOT),
    "another shape": (_tensors(lambda t: t.update({"5.bias": np.ones(3, np.float32)}), described=True), CANNOT),
    "a weight that is NaN": (_tensors(lambda t: t["5.bias"].fill(np.nan), described=True), "holds NaN or infinity"),
    "an infinite weight": (_tensors(lambda t: t["5.bias"].fill(np.inf), described=True), "holds NaN or infinity"),
    "weights that are text": (_content("weights.safetensors", b"not weights"), CANNOT),
    "no weights": (_content("weights.safetensors", b""), CANNOT),
    "a header of 2^60 bytes": (_content("weights.safetensors", (2**60).to_bytes(8, "little") + b"{}"), CANNOT),
    "a pickle": (_content("weights.safetensors", b"\x80\x04cos\nsystem\n(S'true'\ntR."), CANNOT),
    "a deviation of zero": (_set(preprocessing__std=[0.0]), "greater than 0"),
    "a deviation below zero": (_set(preprocessing__std=[-0.3]), "greater than 0"),
    "a deviation of NaN": (_text('"std": [0.3]', '"std": [NaN]'), "no number of JSON"),
    "a mean of infinity": (_text('"mean": [0.3]', '"mean": [Infinity]'), "no number of JSON"),
    "a mean of 1e999": (_text('"mean": [0.3]', '"mean": [1e999]'), "too large"),
    "a mean of 200": (_set(preprocessing__mean=[200.0]), "less than or equal to 1"),
    "a mean that is text": (_set(preprocessing__mean=["0.3"]), CANNOT),
    "a mean that is not a list": (_set(preprocessing__mean=0.3), CANNOT),
    "three means for gray": (_set(preprocessing__mean=[0.3] * 3), "gray has 1 of mean and std each"),
    "one mean for colour": (_set(preprocessing__channels="rgb"), "rgb has 3 of mean and std each"),
    "unknown channels": (_set(preprocessing__channels="cmyk"), CANNOT),
    "an unknown fit": (_set(preprocessing__fit="stretch"), CANNOT),
    "an unknown filter": (_set(preprocessing__resample="nearest"), CANNOT),
    "a size that is a number": (_set(preprocessing__size_px=8), CANNOT),
    "a size of zero": (_set(preprocessing__size_px=[0, 8]), CANNOT),
    "a size below zero": (_set(preprocessing__size_px=[-8, -8]), CANNOT),
    "a size of 10^30": (_set(preprocessing__size_px=[10**30, 8]), CANNOT),
    "a size of another network": (_set(preprocessing__size_px=[16, 16]), CANNOT),
    "no limit of pixels": (_set(preprocessing__max_pixels=2**40), CANNOT),
    "a limit that is true": (_set(preprocessing__max_pixels=True), CANNOT),
    "no preprocessing": (_without("preprocessing"), CANNOT),
    "preprocessing that is null": (_set(preprocessing=None), CANNOT),
    "no mean": (_without("preprocessing__mean"), CANNOT),
    "an unknown setting": (_set(preprocessing__gamma=2.2), CANNOT),
    "classes that are text": (_set(classes="01"), CANNOT),
    "classes that are numbers": (_set(classes=[0, 1]), CANNOT),
    "three classes": (_set(classes=["0", "1", "2"]), CANNOT),
    "one class": (_set(classes=["0"]), CANNOT),
    "a class twice": (_set(classes=["0", "0"]), "named twice"),
    "a class without a name": (_set(classes=["0", ""]), CANNOT),
    "a class that colours": (_set(classes=["0", "\x1b[31m1"]), "not a name on one line"),
    "a class that reverses": (_set(classes=["0", "\u202e1"]), "not a name on one line"),
    "a class with a line break": (_set(classes=["0", "1\n2"]), "not a name on one line"),
    "a class that is no text": (_text('"1"]', '"\\ud800"]'), CANNOT),
    "an unknown network": (_set(architecture="evil"), "no network is called"),
    "a network that is a path": (_set(architecture="../../evil"), "no network is called"),
    "another network": (_set(architecture="lenet5"), CANNOT),
    "a network that is a list": (_set(architecture=["mlp"]), CANNOT),
    "format 3": (_set(format=3), "format 3, and this version reads formats up to 2"),
    "a format that is text": (_set(format="2"), CANNOT),
    "a format that is true": (_set(format=True), CANNOT),
    "no format": (_without("format"), "has no format"),
    "an unknown key": (_set(loader="os.system"), CANNOT),
    "a key twice": (_text('"format": 2,', '"format": 2, "format": 2,'), "a key comes twice"),
    "a JSON list": (_content("model.json", b"[]"), CANNOT),
    "no JSON": (_content("model.json", b"{"), CANNOT),
    "no UTF-8": (_content("model.json", b"\xff\xfe{}"), CANNOT),
    "100,000 levels": (_content("model.json", b"[" * 100_000 + b"]" * 100_000), CANNOT),
    "an empty file": (_content("model.json", b""), CANNOT),
    "a number of 10,000 digits": (_text('"format": 2', f'"format": {"9" * 10_000}'), CANNOT),
}
_NUMBERS = b'{"sha256": {"model.json": 1, "weights.safetensors": 2}}'
UNSIGNED: dict[str, tuple[Change, str]] = {
    "a link to the weights": (_link("weights.safetensors"), "is a link"),
    "a link to the description": (_link("model.json"), "is a link"),
    "a link to the manifest": (_link("manifest.json"), "is a link"),
    "a pipe": (_pipe, "is not a regular file"),
    "a folder": (_folder, "is not a regular file"),
    "a file more": (_content("loader.py", b"print('hi')"), "is not part of a model"),
    "no weights file": (lambda folder: (folder / "weights.safetensors").unlink(), "is missing"),
    "no description": (lambda folder: (folder / "model.json").unlink(), "is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "is missing"),
    "no folder": (shutil.rmtree, "cannot be read"),
    "a manifest that is a list": (_content("manifest.json", b"[]"), HASH),
    "a manifest without hashes": (_content("manifest.json", b'{"sha256": null}'), HASH),
    "a manifest of another file": (_content("manifest.json", b'{"sha256": {"../x": "0"}}'), HASH),
    "a manifest 100,000 levels deep": (_content("manifest.json", b'{"a":' * 100_000), HASH),
    "hashes that are numbers": (_content("manifest.json", _NUMBERS), HASH),
    "another byte": (_content("weights.safetensors", b"other"), HASH),
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    train(tmp_path)
    return tmp_path / "data/out/train/bundle"


def test_the_bundle_that_is_attacked_here_is_sound(bundle: Path) -> None:
    assert load_bundle(bundle).weights_hash == check_bundle(bundle).model.weights_hash == AB


@pytest.mark.parametrize(("change", "reason"), SIGNED.values(), ids=SIGNED)
def test_a_bundle_whose_manifest_agrees_with_what_was_changed_is_refused(
    bundle: Path, change: Change, reason: str
) -> None:
    change(bundle)
    _sign(bundle)

    with pytest.raises(BundleError, match=reason) as refused:
        load_bundle(bundle)

    assert str(refused.value).isprintable() or "\n" in str(refused.value)


@pytest.mark.parametrize(("change", "reason"), UNSIGNED.values(), ids=UNSIGNED)
def test_a_folder_that_is_not_the_bundle_that_was_written_is_refused(bundle: Path, change: Change, reason: str) -> None:
    change(bundle)

    with pytest.raises(BundleError, match=reason):
        load_bundle(bundle)
    with pytest.raises(BundleError, match=reason):
        check_bundle(bundle)


@pytest.mark.parametrize("name", ["a tensor less", "a hash of other weights", "a deviation of zero"])
def test_register_makes_no_version_of_a_bundle_that_cannot_be_loaded(
    tracked_project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tracked_project)
    evaluate(tracked_project)
    SIGNED[name][0](tracked_project / "data/out/train/bundle")
    _sign(tracked_project / "data/out/train/bundle")

    with pytest.raises(SystemExit):
        run_main(register.main)

    error = capsys.readouterr().err
    assert "not registered" in error
    assert "Traceback" not in error
    assert Registry(find_tracker(), "twinrun-digits").versions() == []


@pytest.mark.parametrize(
    "content", ["{: : x\n\t- [", "[]", "flavors: [1]", "flavors: {python_function: {data: ../..}}"]
)
def test_a_model_whose_description_mlflow_never_wrote_is_one_sentence(
    content: str, registered: Path, tmp_path: Path, twinrun: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(registered, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_text(content, next(Path("mlruns").rglob("MLmodel")))

    printed = twinrun("predict", "0.png")

    assert "MLmodel of version 1 of twinrun-digits is not what Twinrun writes, so it was not used" in printed
    assert "Traceback" not in printed
