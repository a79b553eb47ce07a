"""All checks on any folder of images, without a pipeline: no split is drawn, and no params.yaml read."""

import tempfile
from pathlib import Path

from twinrun.data.folders import list_images
from twinrun.data.nearest import near_duplicates
from twinrun.data.pack import creating_pack, open_pack
from twinrun.data.packing import Shape, available_cores, facts_table, fill_pack
from twinrun.data.progress import fraction
from twinrun.data.report import report_html
from twinrun.data.validation.findings import Verdict
from twinrun.data.validation.judging import judge_table
from twinrun.data.validation.results import findings_table, result_json
from twinrun.params import LabelErrorParams, SplitFractions, ValidateParams
from twinrun.publish import ensure_writable, write_json, write_table, write_text

REPORT = "index.html"
_MAX_PIXELS = 100_000_000
# As presets/folder.yaml has it, but that a class may be small: nobody said that all images are here.
_SETTINGS = ValidateParams(
    seed=0,
    fractions=SplitFractions(train=0.7, val=0.15, test=0.15),
    min_images_per_class=1,
    max_imbalance=10.0,
    min_side_px=8,
    max_side_px=10_000,
    modes=["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16"],
    on_broken="stop",
    on_size="stop",
    on_mode="stop",
    on_classes="stop",
    on_names="warn",
    on_contradiction="stop",
    on_leak="stop",
    on_near_leak="stop",
    on_duplicate="warn",
    on_label_error="warn",
    label_errors=LabelErrorParams(folds=5, budget_s=600.0),
    on_shortcut="stop",
    max_shortcut=0.9,
    on_quality="warn",
    on_drift="warn",
    reference=None,
    decisions=None,
    expectations=[],
)


def check_folder(folder: Path, out: Path, *, size_px: int) -> tuple[Verdict, list[str]]:
    """Check the images below `folder` and write index.html, result.json and findings.parquet into `out`.

    Labels and splits are those of its folders, where it has such. Returns the verdict and notes for the terminal.
    Raises SourceError where there is nothing to check.
    """
    listing = list_images(folder, leave_out=out)
    ensure_writable(out, 0)
    shape = Shape(size_px, "rgb", "pad", _MAX_PIXELS)
    with tempfile.TemporaryDirectory(prefix="twinrun-check-") as temp:
        pack = Path(temp, "images.npy")
        with creating_pack(pack, (len(listing.items), *shape.of_image)) as unfinished:
            facts = fill_pack(listing, shape, unfinished, available_cores())
        images, table = open_pack(pack), facts_table(listing, facts)
        with fraction("Searching for near copies") as progress:
            pairs = near_duplicates(images, facts, progress=progress)
        verdict = judge_table(table, images, pairs, _SETTINGS, draw_splits=False)
        write_text(report_html(verdict, table, images, _SETTINGS, {}, docs=None), out / REPORT)
        write_table(findings_table(verdict, table), out / "findings.parquet")
        write_json(result_json(verdict, table), out / "result.json")
    return verdict, listing.notes
