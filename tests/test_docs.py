"""The documentation: the site builds and loads nothing from elsewhere, and the tutorial's commands work."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from training_support import REPOSITORY, git
from twin_support import copy_repository


def test_the_site_builds_without_dead_links_and_its_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "mkdocs.yml", tmp_path)
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")

    built = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list((REPOSITORY / "docs").glob("*.md")))
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc="?https?:|<link[^>]*rel="?(?:stylesheet|preload)[^>]*https?:"""
    )
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []
    styles = [style.read_text(encoding="utf-8") for style in (tmp_path / "site").rglob("*.css")]
    assert not any(re.search(r"""(?:@import|url\()\s*["']?https?:""", style) for style in styles)


def test_links_of_the_front_page_lead_somewhere_and_it_stays_short() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")

    missing = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if not (REPOSITORY / link).is_file()]

    assert missing == []
    assert len(readme.splitlines()) <= 130


def test_the_commands_of_the_tutorial_take_photos_to_a_model_that_is_trained_again(
    tmp_path: Path, digits: object, new_store: Path, programs: Path
) -> None:
    home, project = tmp_path / "home", tmp_path / "twinrun"
    _write_photos(home / "Pictures/bins", digits)
    copy_repository(project)
    shutil.copytree(new_store, project / "mlruns", dirs_exist_ok=True)
    git(project, "init", "--quiet")
    git(project, "config", "user.name", "Somebody")
    git(project, "config", "user.email", "somebody@example.com")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "Begin")
    blocks = re.findall(r"```\n(.*?)```", (REPOSITORY / "docs/tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks[1:] for line in block.splitlines()]  # the first block sets up the environment
    # Small images, so that the features of the photos take seconds.
    checked, *others = (line.replace("--set ", "--set ingest.size_px=96 --set ", 1) for line in commands)

    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {
        "HOME": str(home),
        "PATH": f"{programs}:{environment['PATH']}",
        "DVC_NO_ANALYTICS": "true",
    }
    script = f"{checked} || [[ $? == 1 ]]\nset -e\n" + "\n".join(others)
    done = subprocess.run(
        ["bash", "-c", script], cwd=project, env=environment, capture_output=True, text=True, timeout=540, check=False
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout)
    assert "IDENTICAL" in done.stdout
    assert (project / "predictions.html").is_file()


def _write_photos(folder: Path, digits: object) -> None:
    """Twenty pictures of each of three handwritten digits, in folders named as in the tutorial."""
    for label, name in enumerate(("glass", "metal", "paper")):
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == label][:20]):  # type: ignore[attr-defined]
            image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).resize((64, 64))
            image.convert("RGB").save(folder / name / f"{number:03d}.jpg", quality=95)
