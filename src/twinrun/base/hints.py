"""What other tools call the settings of params.yaml and their values. Pure: names in, hints out."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

# Other names, in lower case without underscores and hyphens, of each setting.
_OTHER_NAMES = {
    "ingest.path": "data datadir datapath dataroot dataset imagedir imagefolder",
    "ingest.size_px": "imagesize imgsize imgsz inputsize inputshape resolution resize cropsize size",
    "ingest.channels": "inchannels inputchannels colormode colourmode grayscale greyscale",
    "ingest.resample": "interpolation resampling",
    "ingest.workers or train.threads": "numworkers nworkers dataloadernumworkers njobs nthreads numthreads",
    "ingest.leave_out": "exclude ignore",
    "validate.fractions.val": "valsplit validationsplit valsize valfraction valratio validsplit validation",
    "validate.fractions.test": "testsplit testsize testfraction testratio",
    "train.seed": "randomstate randomseed rngseed",
    "train.seeds": "randomseeds nseeds numseeds nruns repeats",
    "train.folds": "cv kfold kfolds nfolds numfolds crossvalidation",
    "train.probe_views": "views nviews",
    "train.model": "arch architecture backbone network net modeltype",
    "train.pretrained": "weights checkpoint pretrainedweights pretrainedmodel initfrom finetune",
    "train.freeze": "freezebackbone frozen freezelayers",
    "train.head_first_epochs": "freezeepochs unfreezeepoch headepochs",
    "train.backbone_learning_rate": "backbonelr lrbackbone backboneslr discriminativelr",
    "train.patience": "earlystopping earlystop earlystoppingpatience",
    "train.balance": "classweight classweights balanced oversample oversampling sampler weightedsampler",
    "train.augment.crop_scale": "randomresizedcrop randomcrop scale rrc",
    "train.augment.crop_ratio": "ratio",
    "train.augment.brightness": "colorjitter colourjitter jitter hsvv",
    "train.augment.saturation": "hsvs",
    "train.augment.hue": "hsvh",
    "train.augment.mixup": "mixupalpha",
    "train.augment.cutmix": "cutmixalpha",
    "train.epochs": "epoch numepochs nepochs maxepochs numtrainepochs",
    "train.batch_size": "batch bs batchsize trainbatchsize perdevicetrainbatchsize",
    "train.optimizer": "optim opt optimiser",
    "train.learning_rate": "lr lr0 maxlr baselr initlr initiallr peaklr learningrate",
    "train.momentum": "beta1 betas",
    "train.weight_decay": "wd decay l2reg weightdecay",
    "train.warmup_epochs": "warmup warmupsteps warmupratio",
    "train.schedule": "scheduler lrscheduler lrschedule lrschedulertype coslr",
    "train.label_smoothing": "labelsmooth smoothing",
    "train.gradient_clip": "gradclip clipgrad clipgradnorm maxgradnorm gradientclipval clipnorm clip",
    "train.ema_decay": "ema emamomentum modelema",
    "train.augment.flip": "hflip fliplr horizontalflip randomflip mirror",
    "train.augment.rotate_deg": "rotation rotate degrees rotationrange",
    "train.augment.shift_px": "shift translate translation",
    "train.augment.shift_border": "padding paddingmode padmode border fillmode reflect",
    "train.augment.erase": "cutout erasing randomerasing randomerase",
    "train.start_size": "progressiveresizing startsize initialsize",
    "train.test_views.flip": "tta testtimeaugmentation",
    "train.precision": "amp fp16 bf16 half mixedprecision dtype",
    "train.devices": "gpus numgpus ngpus ngpu nprocs worldsize",
    "train.accelerator": "device cuda usecuda usegpu gpu",
    "register.model_name": "experiment experimentname registeredmodelname runname",
}
_SETTING_OF = {name: setting for setting, names in _OTHER_NAMES.items() for name in names.split()}
# Settings of other tools that are not settings here.
_NO_SETTING = {
    **dict.fromkeys(
        ("resume", "resumefrom", "ckptpath", "resumefromcheckpoint", "autoresume"),
        "a stopped training resumes by itself: dvc repro",
    ),
    **dict.fromkeys(
        ("dropout", "droprate", "droppath"),
        "networks have their own dropout; train.weight_decay and train.augment work against overfitting too",
    ),
    **dict.fromkeys(("deterministic", "cudnnbenchmark", "benchmark"), "every training is deterministic"),
    **dict.fromkeys(("pinmemory", "prefetchfactor", "persistentworkers"), "images are read from one file in memory"),
}
_OTHER_VALUES = {
    "ingest.source": {"imagefolder": "folder", "custom": "folder", "images": "folder", "fashionmnist": "fashion-mnist"},
    "ingest.levels": {
        **dict.fromkeys(("class", "classes", "labels", "category", "species", "target"), "label"),
        **dict.fromkeys(("splits", "subset", "partition", "train"), "split"),
        **dict.fromkeys(("groups", "patient", "clip", "fold"), "group"),
        **dict.fromkeys(("ignore", "none", "null", ""), "skip"),
    },
    "ingest.channels": {"1": "gray", "l": "gray", "grey": "gray", "grayscale": "gray", "3": "rgb", "color": "rgb"},
    "ingest.fit": {"letterbox": "pad", "contain": "pad", "centercrop": "crop", "cover": "crop"},
    "ingest.resample": {"linear": "bilinear", "cubic": "bicubic", "lanczos": "bicubic"},
    "train.optimizer": {"adam": "adamw", "nesterov": "sgd", "momentum": "sgd"},
    "train.schedule": {"cosineannealing": "cosine", "onecycle": "cosine", "none": "constant", "poly": "linear"},
    "train.pretrained": {"true": "imagenet", "false": "null"},
    "train.freeze": {"true": "backbone", "all": "backbone", "false": "none", "none": "none"},
    "train.precision": {
        **dict.fromkeys(("fp16", "float16", "16", "16mixed", "half", "mixed", "amp", "true"), "bf16"),
        **dict.fromkeys(("bfloat16", "bf16mixed", "bf16true"), "bf16"),
        **dict.fromkeys(("float32", "32", "32true", "full", "false"), "fp32"),
    },
    "train.accelerator": {"cuda": "gpu", "cuda0": "gpu", "nvidia": "gpu", "mps": "cpu", "0": "gpu"},
}
_YES_AND_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def meant_by_name(where: Sequence[str], value: Any, settings: Sequence[str]) -> str | None:
    """A hint for the name of a setting that does not exist, given with its path and value; None where none comes near.

    `settings` are the paths of all that exist, such as `train.learning_rate`, sections among them.
    """
    *section, name = where
    siblings = {path.rpartition(".")[2]: path for path in settings if path.rpartition(".")[0] == ".".join(section)}
    plain = _plain(name)
    if plain in _NO_SETTING:
        return _NO_SETTING[plain]
    same = [path for path in settings if _plain(path.rpartition(".")[2]) == plain and "." in path]
    if same:
        return f"did you mean {' or '.join(same)}?"
    if plain in _SETTING_OF:
        setting = _SETTING_OF[plain]
        meant = meant_by_value(setting, True if value == 1 else value) if isinstance(value, str | bool | int) else None
        return f"did you mean {setting}{f': {meant}' if meant else ''}?"
    if near := difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean {siblings[near[0]]}?"
    anywhere = {path.rpartition(".")[2]: path for path in settings}
    near = difflib.get_close_matches(name, anywhere, n=1, cutoff=0.8)
    return f"did you mean {anywhere[near[0]]}?" if near else None


def meant_by_value(setting: str, value: Any) -> str | None:
    """The value that `setting` has for what other tools call `value`; None where none is known."""
    plain = _plain(str(value))
    return None if value and not plain else _OTHER_VALUES.get(setting, {}).get(plain)


def several_values(setting: str, values: Sequence[Any]) -> str:
    """What to do in place of a list for a setting that takes one value."""
    if setting == "train.seeds":
        return f"did you mean {len(values)}?"
    listed = ",".join(map(str, values))
    return f"one run has one value; for several: dvc exp run --queue -S '{setting}={listed}'"


def yes_or_no(value: Any) -> str | None:
    """The boolean of YAML 1.2 for a word of YAML 1.1."""
    return _YES_AND_NO.get(str(value).lower())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
