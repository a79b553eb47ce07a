"""The validation report in a real browser: it opens from disk, fits narrow and wide windows, and all of it is there."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import run_twinrun
from PIL import Image

from twinrun.core.params import setting_lines
from twinrun.dataset.pairs import NearPair
from twinrun.dataset.table import table_schema
from twinrun.ingest.facts import Facts, measured
from twinrun.project.presets import preset_params, write_preset
from twinrun.validate.judging import judge_table
from twinrun.validate.report import report_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_MEASURE = """
<script>
addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)];
  const measured = {
    width: innerWidth,
    content: document.documentElement.scrollWidth,
    pictures: all("img").length,
    drawn: all("img").filter(image => image.naturalWidth > 0 && image.getBoundingClientRect().width > 0).length,
    dead: all("a[href^='#']").filter(a => !document.getElementById(a.getAttribute("href").slice(1))).length,
    links: all("a[href^='#']").length,
    cut: all(".set, section, table.wide").filter(box => box.getBoundingClientRect().right > innerWidth + 1).length,
    tiny: all("p, td, figcaption").filter(box => box.innerText && parseFloat(getComputedStyle(box).fontSize) < 11)
      .length,
    heading: document.querySelector("h1").innerText,
  };
  parent.postMessage(JSON.stringify(measured), "*");
});
</script>
"""
# A window has a smallest width, a frame has none.
_FRAME = """
<!doctype html><body style="margin: 0"><script>
addEventListener("message", event => { document.body.dataset.measured = event.data; });
</script><iframe src="PAGE" style="width: WIDTHpx; height: 3000px; border: 0"></iframe>
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page on data with a leak, a near leak, a broken file, long names, and what gives warnings."""
    rng = np.random.default_rng(0)
    images = np.stack(
        [
            np.asarray(Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((64, 64)))
            for _ in range(90)
        ]
    )
    images[40], images[41], images[5], images[6] = images[1], images[2] // 2 + 60, 3, 0
    rows = [
        measured(Facts(file_bytes=1, bytes_sha256=str(row), width=64, height=64, mode="RGB"), images[row])
        for row in range(90)
    ]
    columns: dict[str, list[Any]] = {name: [getattr(row, name, None) for row in rows] for name in table_schema().names}
    columns["id"] = [str(row) for row in range(90)]
    columns["path"] = [
        f"{'ab'[row % 2]}/{'a-very-long-name-' * 6 if row < 3 else ''}{row:03d}.png" for row in range(90)
    ]
    columns["label"] = ["ab"[row % 2] for row in range(90)]
    columns["split"] = [("train", "val", "test")[row // 30] for row in range(90)]
    columns["error"][6], columns["pixels_sha256"][6], columns["phash"][6] = "truncated after 61%", None, None
    table = pa.table(columns, schema=table_schema())
    params = preset_params("folder").validate
    verdict = judge_table(table, images, [NearPair(2, 41, 0.021, "re-encoded")], params)
    folder = tmp_path_factory.mktemp("report")
    write_preset(folder, "folder")
    page = report_html(verdict, table, images, params, setting_lines(folder / "params.yaml"))
    file = folder / "index.html"
    file.write_text(page.replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
    return file


def _opened(page: Path, width_px: int, *options: str) -> dict[str, Any]:
    if CHROMIUM is None:
        pytest.skip("There is no Chromium here; Debian has it: apt-get install chromium")
    frame = page.with_name(f"frame-{width_px}.html")
    frame.write_text(_FRAME.replace("PAGE", page.name).replace("WIDTH", str(width_px)))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1500,3000",
            f"--user-data-dir={page.parent}/profile",
            "--virtual-time-budget=5000",
            *options,
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'data-measured="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    measured: dict[str, Any] = json.loads(found[1].replace("&quot;", '"'))
    return measured


@pytest.mark.parametrize("width_px", [400, 1400])
def test_the_page_fits_the_window_and_shows_every_picture(report: Path, width_px: int) -> None:
    seen = _opened(report, width_px)

    assert seen["width"] == width_px
    assert seen["content"] <= width_px
    assert seen["cut"] == 0
    assert seen["tiny"] == 0
    assert seen["heading"] == "The data did not pass"
    assert seen["pictures"] > 20
    assert seen["drawn"] == seen["pictures"]


def test_every_check_that_was_not_met_links_to_its_pictures_on_the_page(report: Path) -> None:
    seen = _opened(report, 1400)

    assert seen["links"] >= 3
    assert seen["dead"] == 0


def test_the_page_asks_for_nothing_from_elsewhere(report: Path) -> None:
    page = report.read_text(encoding="utf-8")

    outside = re.findall(r'(?:src|href)="(?!data:|#|\.\./data_docs/)([^"]*)"', page)

    assert outside == []
    assert "@import" not in page
    assert "url(" not in page


@pytest.fixture(scope="module")
def hostile(hostile_images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """The page of `twinrun data check` on files that break decoders, what it said, and its exit code."""
    folder = tmp_path_factory.mktemp("hostile")
    root = next(path for path in hostile_images[0].parents if path.name == "hostile-images")
    done = run_twinrun(folder, "data", "check", str(root), "--out", "check", "--no-labels")
    page = folder / "check/index.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
    assert "Traceback" not in done.said
    return page, done.said, done.code


def test_files_that_break_decoders_are_checked_in_words(hostile: tuple[Path, str, int]) -> None:
    page, said, code = hostile

    broken = [row for row in pq.read_table(page.with_name("findings.parquet")).to_pylist() if row["check"] == "decoded"]

    assert code == 1, said
    assert len(said.splitlines()) <= 12
    assert "params.yaml" not in said + page.read_text(encoding="utf-8")
    assert len(broken) > 100
    assert all(row["words"].startswith(row["path"]) and len(row["words"]) > len(row["path"]) + 8 for row in broken)


@pytest.mark.parametrize("width_px", [400, 1400])
def test_the_page_on_such_files_fits_the_window(hostile: tuple[Path, str, int], width_px: int) -> None:
    seen = _opened(hostile[0], width_px)

    assert seen["content"] <= width_px
    assert seen["cut"] == 0
    assert seen["dead"] == 0
    assert seen["heading"] == "The data did not pass"
    assert seen["pictures"] > 20
    assert seen["drawn"] == seen["pictures"]
