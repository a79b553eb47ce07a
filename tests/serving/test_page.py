"""The page in a real browser: the same pixels, logits and labels as ingest's."""

import base64
import hashlib
import io
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from firefox_support import FIREFOX, Firefox
from image_files import HEIC
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Request, Route, expect, sync_playwright

from twinrun.base.errors import DecodeError
from twinrun.decoding.decode import decode_image, fit_image
from twinrun.serving.app import PAGE, make_app
from twinrun.serving.engine import Engine
from twinrun.serving.follow import ModelInService
from twinrun.serving.rules import read_regions
from twinrun.serving.waste import waste_engine

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DATA = Path(os.environ.get("TWINRUN_TEST_DATA", ""))
PHOTOS = int(os.environ.get("TWINRUN_TEST_PHOTOS", "12"))  # of TrashNet
AXE = Path(__file__).with_name("axe.min.js")
SERIOUS = """async () => (await axe.run()).violations.filter(({ impact }) => ["serious", "critical"].includes(impact))
  .map(({ id, nodes }) => `${id}: ${nodes.map(node => node.target.join(" ")).join(", ")}`)"""
DRAW = """async ([strokes, size, mean]) => {
  const { drawn, pngOf, styleOf } = await import("./draw.js"), pixels = drawn(strokes, size, styleOf(mean));
  const file = new Uint8Array(await (await pngOf(pixels, size)).arrayBuffer());
  return { pixels: [...pixels], file: [...file] };
}"""
Evaluate = Callable[[str, Any], Any]
"""Gives what a JavaScript function returns for one argument, in an opened page."""
CLASSIFY = """async ([version, photos]) => {
  const worker = new Worker("worker.js", { type: "module" });
  const ask = message => new Promise(done => {
    worker.onmessage = ({ data }) => done(data);
    worker.postMessage({ id: 1, ...message });
  });
  const started = await ask({ kind: "start", model: { ...version, facts: {} } });
  if (started.error) throw new Error(started.error);
  const answers = [];
  for (const photo of photos) {
    const blob = new Blob([Uint8Array.from(atob(photo), letter => letter.charCodeAt(0))]);
    const { result, error } = await ask({ kind: "classify", photo: blob });
    answers.push(error ? { error } : { ...result, maps: null });
  }
  worker.terminate();
  return answers;
}"""
CHOOSE = """photo => {
  const files = new DataTransfer(), input = document.querySelector("#file");
  files.items.add(new File([Uint8Array.from(atob(photo), letter => letter.charCodeAt(0))], "photo.jpg"));
  input.files = files.files;
  input.dispatchEvent(new Event("change"));
}"""
HAND_OVER = """([kind, photo]) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(photo), letter => letter.charCodeAt(0))], "photo.jpg"));
  const given = { bubbles: true, cancelable: true, dataTransfer: files, clipboardData: files };
  const event = kind === "drop" ? new DragEvent(kind, given) : new ClipboardEvent(kind, given);
  document.querySelector("h1").dispatchEvent(event);
}"""
FIT = """async cases => {
  const { channelsOf, fit } = await import("./pixels.js");
  return cases.map(([data, height, width, size, how, resample, gray]) =>
    [...fit(channelsOf({ data: Uint8ClampedArray.from(data), height, width }, gray), size, how, resample).data]);
}"""
TOKEN = "0123456789abcdef"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium here; Debian has it: apt-get install chromium"),
    pytest.mark.skipif(not (PAGE / "ort/ort.wasm.min.mjs").is_file(), reason="onnxruntime-web is not here: make phone"),
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return waste_engine()


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[uvicorn.Server]:
    with _serving(engine, token=None) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(engine: Engine) -> Iterator[uvicorn.Server]:
    with _serving(engine, token=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    if FIREFOX is None:
        pytest.skip("There is no Firefox here; Debian has it: apt-get install firefox-esr")
    firefox = Firefox(tmp_path_factory.mktemp("firefox") / "profile")
    yield firefox
    firefox.close()


@pytest.fixture(params=["chromium", "firefox"])
def evaluate(request: pytest.FixtureRequest, server: uvicorn.Server) -> Evaluate:
    if request.param == "chromium":
        return _open(request.getfixturevalue("context"), server).evaluate
    firefox: Firefox = request.getfixturevalue("firefox")
    _open_in_firefox(firefox, server)
    return firefox.evaluate


@pytest.fixture
def unkept(browser: Browser) -> Iterator[BrowserContext]:
    """Without a service worker, so that each request can be held back."""
    with browser.new_context(service_workers="block") as context:
        context.set_default_timeout(30_000)
        yield context


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as context:
        context.set_default_timeout(120_000)
        yield context


def test_the_worker_gives_the_pixels_logits_and_labels_of_the_server(evaluate: Evaluate, engine: Engine) -> None:
    photos = [*_made_photos(), *_real_photos(PHOTOS)]
    version = engine.facts() | engine.how_it_answers()

    answers = evaluate(CLASSIFY, [version, [base64.b64encode(photo).decode() for photo in photos]])

    for photo, answer in zip(photos, answers, strict=True):
        pixels = engine.read(photo)
        expected = engine.answer(pixels)
        assert answer["pixels_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
        assert (answer["label"], answer["labels"], answer["kind"]) == (
            expected.label,
            list(expected.labels),
            expected.kind,
        )
        assert np.abs(np.array(answer["logits"]) - expected.logits).max() <= 1e-5 * np.abs(expected.logits).max()
        assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-5)


def test_files_that_browsers_decode_otherwise_are_left_to_the_server(evaluate: Evaluate, engine: Engine) -> None:
    photos = _other_files()

    answers = evaluate(
        CLASSIFY,
        [engine.facts() | engine.how_it_answers(), [base64.b64encode(photo).decode() for photo in photos.values()]],
    )

    assert {name: answer.get("error") for name, answer in zip(photos, answers, strict=True)} == dict.fromkeys(
        photos, "this kind of file is decoded by the server alone"
    )
    with pytest.raises(DecodeError):
        engine.read(photos["cut off"])


def test_the_resize_of_the_page_is_that_of_ingest_for_every_fit_filter_and_size(evaluate: Evaluate) -> None:
    rng = np.random.default_rng(0)
    cases: list[Any] = []
    for at in range(24):
        height, width = int(rng.integers(1, 90)), int(rng.integers(1, 90))
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        size, how = (int(rng.integers(8, 50)), int(rng.integers(8, 50))), ("pad", "crop")[at % 2]
        cases.append((pixels, size, how, ("bilinear", "bicubic")[at // 2 % 2], at % 3 == 0))

    found = evaluate(FIT, [[p.ravel().tolist(), *p.shape[:2], list(size), *rest] for p, size, *rest in cases])

    for (pixels, size, how, resample, gray), values in zip(cases, found, strict=True):
        image = Image.fromarray(pixels[:, :, :3]).convert("L" if gray else "RGB")
        channels = np.asarray(image).reshape(*pixels.shape[:2], -1)
        assert bytes(values) == fit_image(channels, size, how, resample).tobytes()


def test_nothing_is_sent_before_the_person_agrees(
    context: BrowserContext, server: uvicorn.Server, tmp_path: Path
) -> None:
    sent: list[Request] = []
    context.on("request", lambda request: sent.append(request) if request.method != "GET" else None)
    page = _open(context, server)
    _wait_for_device(page, "yes")
    (tmp_path / "cmyk.jpg").write_bytes(_other_files()["CMYK"])

    page.click("#examples button")
    page.wait_for_selector("#rule:not([hidden]), #choices button")
    heading = page.text_content("#answer-heading")
    page.click("#why")
    shown = page.is_visible("#map")
    page.set_input_files("#file", tmp_path / "cmyk.jpg")
    page.wait_for_selector("#choices button.main")
    before = len(sent)
    page.click("#choices button.main")
    page.wait_for_selector("#details:not([hidden])")

    assert heading == "Glass"
    assert shown
    assert before == 0
    assert [request.url.rpartition("/")[2] for request in sent] == ["classify"]


def test_each_photo_that_is_to_leave_the_device_is_asked_about_and_the_page_says_when_it_left(
    context: BrowserContext, server: uvicorn.Server, tmp_path: Path
) -> None:
    sent: list[Request] = []
    context.on("request", lambda request: sent.append(request) if request.method != "GET" else None)
    page = _open(context, server)
    _wait_for_device(page, "yes")
    cmyk, empty, heic = tmp_path / "cmyk.jpg", tmp_path / "empty.jpg", tmp_path / "photo.heic"
    cmyk.write_bytes(_other_files()["CMYK"])
    empty.write_bytes(b"")
    heic.write_bytes(HEIC)

    page.set_input_files("#file", cmyk)
    page.click("#choices button.main")
    page.wait_for_selector("#details:not([hidden])")
    left = page.text_content("#privacy")
    page.set_input_files("#file", heic)
    page.wait_for_selector("#choices button.main")
    page.wait_for_selector("#picture", state="hidden")  # and no icon of a broken image
    kept = page.text_content("#privacy")
    page.set_input_files("#file", empty)
    page.wait_for_selector("text=This file is empty.")

    assert left == "This photo was sent to the server."
    assert kept == "Your photo stays on this device."
    assert len(sent) == 1


def test_a_server_with_a_token_has_the_page_ask_for_it_and_the_photo_stays_on_the_device(
    context: BrowserContext, guarded: uvicorn.Server
) -> None:
    page = _open(context, guarded)
    sent, asked = list[str](), list[str]()
    given = iter(["not the token of it", None, TOKEN])
    page.on("request", lambda request: sent.append(request.method))

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        token = next(given)
        dialog.dismiss() if token is None else dialog.accept(token)

    page.on("dialog", answer)

    page.click("#examples button >> nth=0")
    page.get_by_text("asks for a token, which").wait_for()
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#details:not([hidden])")

    assert asked[0] == asked[2] == "This server asks for a token:"
    assert "was not accepted" in asked[1]
    assert page.inner_text("#privacy") == "Your photo stays on this device."
    assert "POST" not in sent
    assert page.evaluate("document.body.dataset.device") == "yes"


def test_a_photo_chosen_while_the_page_loads_is_classified_and_every_text_follows_the_last_language(
    unkept: BrowserContext, server: uvicorn.Server
) -> None:
    page, held = unkept.new_page(), list[Route]()
    for name in ("app.js", "version"):
        page.route(f"**/{name}", partial(_hold, held))
    with page.expect_request("**/app.js"):
        page.goto(server.address, wait_until="commit")  # type: ignore[attr-defined]

    page.set_input_files("#file", PAGE / "examples" / "metal.jpg")
    with page.expect_request("**/version"):
        held.pop().continue_()
    expect(page.locator("#file")).to_have_value("")  # or the same photo again would be no change
    page.set_input_files("#file", PAGE / "examples" / "glass.jpg")
    held.pop().continue_()
    page.wait_for_selector("#answer-heading:text-is('Glass')")
    page.route("**/lang/de.json", partial(_hold, held))
    page.select_option("#language", "de")
    page.select_option("#language", "ko")
    page.wait_for_selector("#answer-heading:text-is('유리')")
    with page.expect_response("**/lang/de.json"):
        held.pop().continue_()
    page.route("**/lang/en.json", lambda route: route.abort())
    page.select_option("#language", "en")
    expect(page.locator("#language")).to_have_value("ko")

    assert page.evaluate("localStorage.getItem('language')") == "ko"
    assert page.get_attribute("#picture", "alt") == "내 사진"
    assert page.inner_text("#model").startswith("모델: ")
    assert page.evaluate("document.documentElement.lang") == "ko"


@pytest.mark.parametrize(
    ("missing", "answer"), [("regions", "Der Server antwortet"), ("lang/*", "The server does not")]
)
def test_a_page_that_cannot_load_all_says_that_the_server_does_not_answer(
    unkept: BrowserContext, server: uvicorn.Server, missing: str, answer: str
) -> None:
    page = unkept.new_page()
    page.add_init_script("localStorage.setItem('language', 'de')")
    page.route(f"**/{missing}", lambda route: route.abort())

    page.goto(server.address)  # type: ignore[attr-defined]

    page.wait_for_selector(f"#confidence:has-text('{answer}')")


def test_thanks_for_one_photo_do_not_stand_below_the_next_one(unkept: BrowserContext, server: uvicorn.Server) -> None:
    page, held = unkept.new_page(), list[Route]()
    page.route("**/version", partial(_change, {"feedback": True}))
    page.route("**/feedback", partial(_hold, held))
    page.goto(server.address)  # type: ignore[attr-defined]

    page.set_input_files("#file", PAGE / "examples" / "glass.jpg")
    page.click("#wrong summary")
    page.check("#consent")
    page.click("#labels button >> nth=0")
    page.set_input_files("#file", PAGE / "examples" / "metal.jpg")
    page.wait_for_selector("#answer-heading:text-is('Metal')")
    with page.expect_response("**/feedback"):
        held.pop().fulfill(status=201, json={})
    page.click("#wrong summary")
    page.click("#labels button >> nth=0")

    assert page.inner_text("#taught") == "Please agree first."


def test_a_device_whose_disk_is_full_still_looks_at_photos_itself(
    context: BrowserContext, server: uvicorn.Server
) -> None:
    page = context.new_page()
    quota = {"origin": server.address, "quotaSize": 100_000}  # type: ignore[attr-defined]
    context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", quota)

    page.goto(server.address)  # type: ignore[attr-defined]

    _wait_for_device(page, "yes")


def test_why_shows_the_places_of_the_label_where_names_are_numbers(
    unkept: BrowserContext, server: uvicorn.Server
) -> None:
    names, maps = ["1", "10", "11", "2", "3", "4"], list[str]()
    for classes in ({}, {"classes": names}):
        page = unkept.new_page()
        page.route("**/version", partial(_change, classes))
        page.goto(server.address)  # type: ignore[attr-defined]
        page.set_input_files("#file", PAGE / "examples" / "glass.jpg")
        page.click("#why")
        page.wait_for_selector("#map:not([hidden])")
        maps.append(page.evaluate("document.querySelector('#map').toDataURL()"))

    assert page.inner_text("#answer-heading") == "10"
    assert maps[0] == maps[1]


def test_a_question_and_an_error_follow_the_language_that_is_chosen_while_they_stand(
    context: BrowserContext, server: uvicorn.Server, tmp_path: Path
) -> None:
    page = _open(context, server)
    _wait_for_device(page, "yes")
    cmyk, empty = tmp_path / "cmyk.jpg", tmp_path / "empty.jpg"
    cmyk.write_bytes(_other_files()["CMYK"])
    empty.write_bytes(b"")

    page.set_input_files("#file", cmyk)
    page.wait_for_selector("#choices button.main")
    page.select_option("#language", "de")
    page.wait_for_selector("#answer-heading:text-is('Foto an den Server senden?')")
    button = page.text_content("#choices button.main")
    page.set_input_files("#file", empty)
    page.wait_for_selector("#confidence:text-is('Diese Datei ist leer.')")
    page.select_option("#language", "en")
    page.wait_for_selector("#confidence:text-is('This file is empty.')")

    assert button == "Senden"


def test_why_a_photo_is_refused_is_said_in_the_language_that_is_chosen(
    context: BrowserContext, server: uvicorn.Server, tmp_path: Path
) -> None:
    page = _open(context, server)
    _wait_for_device(page, "yes")
    notes = tmp_path / "notes.jpg"
    notes.write_text("no photo")
    full = "The answer could not be recorded, and so is not given: No space left on device"

    page.set_input_files("#file", notes)
    page.click("#choices button.main")
    page.wait_for_selector("#confidence:text-is('This file cannot be read as a photo.')")
    page.select_option("#language", "de")
    page.wait_for_selector("#confidence:text-is('Diese Datei kann nicht als Foto gelesen werden.')")
    for wait, said in (("1", "Der Server ist beschäftigt. Bitte versuchen Sie es gleich noch einmal."), ("60", full)):
        page.route("**/classify", partial(_refuse, message=full, wait=wait))
        page.set_input_files("#file", notes)
        page.click("#choices button.main")
        page.wait_for_selector(f"#confidence:text-is('{said}')")


def test_an_answer_of_a_model_promoted_meanwhile_is_calibrated_as_that_model_is_and_never_wholly_sure(
    context: BrowserContext, server: uvicorn.Server, tmp_path: Path
) -> None:
    page = _open(context, server)
    _wait_for_device(page, "yes")
    photo = tmp_path / "odd.jpg"
    photo.write_bytes(_other_files()["CMYK"])
    version = page.evaluate("async () => (await fetch('version')).json()")
    shares = dict.fromkeys(version["classes"], 0.0) | {"glass": 0.9, "metal": 0.1}
    answer = {"kind": "answer", "label": "glass", "labels": ["glass"], "confidence": 1.0, "probabilities": shares}
    page.route("**/classify", lambda route: route.fulfill(json={**answer, "temperature": 2.0, "model": version}))

    page.set_input_files("#file", photo)
    page.click("#choices button.main")

    page.wait_for_selector("#confidence:text-is('Very sure (99.9%)')")
    assert page.text_content("#table td") == "75%"  # 3 to 1: the square root of 9 to 1


def test_a_page_that_stays_open_follows_a_promotion_and_its_answer_keeps_its_model(
    unkept: BrowserContext, server: uvicorn.Server
) -> None:
    page = _open(unkept, server)
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#details:not([hidden])")
    before = page.text_content("#model")
    page.route(
        "**/version*", partial(_change, {"name": "bins", "version": 8, "weights_hash": "5" * 64, "feedback": True})
    )
    page.route("**/regions", lambda route: route.fulfill(json=[]))

    page.route("**/model/*.onnx", lambda route: route.abort())
    with page.expect_request_finished(lambda request: "version?now" in request.url), page.expect_event("requestfailed"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.click("#examples button >> nth=1")
    page.wait_for_selector("#details:not([hidden])")
    assert page.text_content("#model") == before

    page.unroute("**/model/*.onnx")
    with page.expect_response("**/model/*.onnx"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector("#waste", state="hidden")
    assert page.text_content("#model") == before
    photo = base64.b64encode((PAGE / "examples/glass.jpg").read_bytes()).decode()
    page.evaluate(CHOOSE, photo)

    expect(page.locator("#model")).to_contain_text("bins")
    expect(page.locator("#model")).to_contain_text("5" * 12)
    page.wait_for_selector("#details:not([hidden])")

    page.route("**/version*", lambda route: route.fulfill(status=503, json={"error": "of a proxy"}))
    with page.expect_response("**/version?now"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.evaluate(CHOOSE, photo)
    page.wait_for_selector("#details:not([hidden])")
    page.click("#wrong summary")


def test_a_photo_can_be_taken_chosen_pasted_or_dropped_anywhere(
    context: BrowserContext, server: uvicorn.Server
) -> None:
    page = _open(context, server)
    _wait_for_device(page, "yes")
    photo = base64.b64encode((PAGE / "examples/glass.jpg").read_bytes()).decode()

    for kind in ("paste", "drop"):
        page.evaluate(HAND_OVER, [kind, photo])
        page.wait_for_selector("#answer-heading:text-is('Glass')")
        page.click("#examples button >> nth=1")
        page.wait_for_selector("#answer-heading:text-is('Metal')")

    assert page.get_attribute("#file", "capture") is None  # or a phone opens its camera, and offers no photo it has
    assert page.get_attribute("#camera", "capture") == "environment"
    assert not page.is_visible("#take")


def test_the_table_of_classes_has_the_confidence_of_the_answer(context: BrowserContext, server: uvicorn.Server) -> None:
    page = _open(context, server)
    _wait_for_device(page, "yes")

    page.click("#examples button >> nth=2")
    page.wait_for_selector("#answer-heading:text-is('Cardboard')")

    share = page.text_content("#table td")
    assert page.text_content("#confidence") == f"Very sure ({share})"


def test_no_bin_is_named_before_the_person_chose_a_region_which_is_remembered(
    context: BrowserContext, server: uvicorn.Server
) -> None:
    page = _open(context, server)
    page.click("#examples button")
    page.wait_for_selector("#rule:not([hidden])")
    asked = page.text_content("#rule")
    page.fill("#find", "b")
    found = page.text_content("#found")

    page.click("#why")
    page.select_option("#region", index=2)
    named = page.text_content("#stream")
    explained = page.is_visible("#map"), page.get_attribute("#why", "aria-pressed")
    page.reload()
    page.wait_for_selector("body[data-ready]")

    assert "Choose where you live" in str(asked)
    assert "Choose where you live" in str(found)
    assert str(named).startswith("Goes to: ")
    assert explained == (True, "true")
    assert page.input_value("#region") == "1"


def test_firefox_sends_nothing_before_the_person_agrees_either(firefox: Firefox, server: uvicorn.Server) -> None:
    _open_in_firefox(firefox, server)
    before = len(firefox.sent)

    heading = _ask_in_firefox(firefox, 0)
    firefox.evaluate("document.querySelector('#why').click()")
    firefox.wait_for("#map:not([hidden])")
    firefox.evaluate(CHOOSE, base64.b64encode(_other_files()["CMYK"]).decode())
    firefox.wait_for("#choices button.main")
    unasked = firefox.sent[before:]
    firefox.evaluate("document.querySelector('#choices button.main').click()")
    firefox.wait_for("#details:not([hidden])")

    assert heading == "Glass"
    assert unasked == []
    assert firefox.sent[before:] == [f"POST {server.address}/classify"]  # type: ignore[attr-defined]


def test_every_step_of_the_network_is_shown_once_asked_also_where_the_server_wants_a_token(
    context: BrowserContext, guarded: uvicorn.Server, engine: Engine
) -> None:
    sent, problems = list[Request](), list[str]()
    context.on("request", lambda request: sent.append(request) if request.method != "GET" else None)
    context.on("dialog", lambda dialog: dialog.accept(TOKEN))
    page = _open(context, guarded)
    page.click("#examples button")
    page.wait_for_selector("#rule:not([hidden])")
    offered = page.is_visible("#explain")

    page.click("#why")
    before = len(sent)
    with context.expect_page(timeout=300_000) as opened:
        page.click("#explain button")
    explanation = opened.value
    explanation.on("pageerror", lambda error: problems.append(str(error)))
    explanation.click("text=1. Convolution")

    assert not offered
    assert before == 0
    assert explanation.text_content("h1") == "What the network does with your photo"
    assert engine.model.weights_hash[:12] in str(explanation.text_content("body"))
    assert explanation.is_visible("text=The answer: glass")
    assert explanation.is_visible("text=Softmax")
    assert problems == []
    assert [request.url.rpartition("/")[2] for request in sent] == ["explain"]
    assert sent[0].headers["origin"] == guarded.address  # type: ignore[attr-defined]


def test_where_pixels_are_read_back_altered_the_page_asks_and_answers_nothing_itself(
    browser: Browser, server: uvicorn.Server
) -> None:
    altered = io.BytesIO()
    Image.new("RGB", (72, 96), (1, 2, 3)).save(altered, "JPEG")
    with browser.new_context(service_workers="block") as context:
        context.set_default_timeout(120_000)
        context.route("**/selftest/photo.jpg", lambda route: route.fulfill(body=altered.getvalue()))
        page = _open(context, server)
        _wait_for_device(page, "no")

        page.click("#examples button")
        page.wait_for_selector("#choices button.main")

        assert page.text_content("#answer-heading") == "Send the photo to the server?"
        assert "only after you agree" in str(page.text_content("#privacy"))


def test_a_drawing_is_framed_and_toned_as_the_training_images_are(evaluate: Evaluate) -> None:
    stroke = [[100, 40], [130, 10], [130, 200]]  # a 1, right of the middle

    found = {mean: evaluate(DRAW, [[stroke], [32, 48], mean]) for mean in (0.13, 0.87, 0.3)}

    images = {mean: np.array(each["pixels"], float).reshape(32, 48) for mean, each in found.items()}
    for mean, each in found.items():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(bytes(each["file"])))), images[mean])
    mnist, inverted, whole = images.values()
    assert np.array_equal(inverted, 255 - mnist)
    down, across = np.mgrid[:32, :48] + 0.5
    assert (mnist * down).sum() / mnist.sum() == pytest.approx(16, abs=0.1)
    assert (mnist * across).sum() / mnist.sum() == pytest.approx(24, abs=0.1)
    assert np.ptp(np.flatnonzero((mnist > 127).any(axis=1))) + 1 == pytest.approx(32 * 20 / 28, abs=1)
    assert np.ptp(np.flatnonzero((whole > 127).any(axis=1))) + 1 == pytest.approx(32, abs=1)


def test_what_is_drawn_with_a_pen_is_classified_after_the_last_stroke(
    browser: Browser, server: uvicorn.Server, engine: Engine
) -> None:
    digits = engine.facts() | engine.how_it_answers()
    digits |= {"classes": list("0123456789"), "onnx_sha256": "0" * 64}  # so that the drawing goes to the server
    digits["preprocessing"] = {**digits["preprocessing"], "channels": "gray", "mean": [0.13], "size_px": [28, 28]}
    with browser.new_context(service_workers="block") as context:
        context.set_default_timeout(120_000)
        context.route("**/version", partial(_fulfill, digits))
        page = _open(context, server)
        box = page.locator("#pad").bounding_box()
        assert box is not None

        for stroke in ([(0.4, 0.1), (0.3, 0.6), (0.7, 0.6)], [(0.6, 0.3), (0.6, 0.9)]):  # a 4
            for at, (x, y) in enumerate(stroke):
                page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
                if at == 0:
                    page.mouse.down()
            page.mouse.up()
        with page.expect_request("**/classify") as sent:
            page.click("#choices button.main")
        page.wait_for_selector("#picture")
        page.click("#clear")
        page.wait_for_timeout(1000)  # in which an answer that is still to come would be shown
        shown = page.is_visible("#picture") or page.is_visible("#answer")

        assert not shown
        image = Image.open(io.BytesIO(sent.value.post_data_buffer or b""))
        assert (image.mode, image.size) == ("L", (28, 28))
        assert np.asarray(image)[:2].max() == 0
        assert 0.05 < np.asarray(image).mean() / 255 < 0.25


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here: make axe")
def test_axe_finds_nothing_serious_in_any_state(
    browser: Browser, server: uvicorn.Server, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "cmyk.jpg").write_bytes(_other_files()["CMYK"])
    version = engine.facts() | engine.how_it_answers()
    calibration = version["calibration"]
    states = {
        "answer": calibration,
        "choice": calibration | {"least": [0.0 if name in ("metal", "glass") else 1.0 for name in version["classes"]]},
        "unknown": calibration | {"similarity": 1.0},
    }
    found = {}
    for state, changed in states.items():
        long_name = "one_word_that_is_wider_than_a_phone_and_has_no_space"
        shown = version | {"calibration": changed, "feedback": True, "classes": [*version["classes"][:-1], long_name]}
        with browser.new_context(service_workers="block", viewport={"width": 320, "height": 800}) as context:
            context.set_default_timeout(120_000)
            context.route("**/version", partial(_fulfill, shown))
            page = _open(context, server)
            _wait_for_device(page, "yes")
            page.evaluate(AXE.read_text(encoding="utf-8"))
            if state == "answer":
                page.evaluate("document.getElementById('draw').hidden = false")
                found["start"] = _serious(page)
            page.click("#examples button")
            page.wait_for_selector("#details:not([hidden])")
            page.click("#why")
            page.click("#details summary")
            page.evaluate("document.getElementById('wrong').open = true")
            page.fill("#find", "b")
            page.select_option("#region", index=1)
            found[state] = _serious(page)
            assert bool(page.query_selector("#choices button")) == (state == "choice")
            assert page.is_visible("#tips") == (state == "unknown")
            assert page.evaluate("document.documentElement.scrollWidth") == 320
            if state == "answer":
                page.set_input_files("#file", tmp_path / "cmyk.jpg")
                page.wait_for_selector("#choices button.main")
                found["question"] = _serious(page)

    assert found == {state: [] for state in found}


@pytest.mark.skipif(FIREFOX is None, reason="There is no Firefox here; Debian has it: apt-get install firefox-esr")
def test_firefox_that_resists_fingerprinting_answers_nothing_itself(tmp_path: Path, server: uvicorn.Server) -> None:
    firefox = Firefox(tmp_path / "profile", **{"privacy.resistFingerprinting": True})
    try:
        _open_in_firefox(firefox, server)
        firefox.wait_for("body[data-device]")
        device = firefox.evaluate("document.body.dataset.device")

        firefox.evaluate("document.querySelector('#examples button').click()")
        firefox.wait_for("#choices button.main")
        heading = firefox.evaluate("document.querySelector('#answer-heading').textContent")
    finally:
        firefox.close()

    assert device == "no"
    assert heading == "Send the photo to the server?"


def test_the_example_photos_and_the_self_test_are_what_the_page_says(engine: Engine) -> None:
    worker = (PAGE / "worker.js").read_text()

    for file in sorted((PAGE / "selftest").iterdir()):
        pixels = decode_image(file.read_bytes(), channels="rgb", max_pixels=10**6).pixels
        assert f'"{file.name}": "{hashlib.sha256(pixels.tobytes()).hexdigest()}"' in worker
    for file in sorted((PAGE / "examples").iterdir()):
        assert engine.classify(file.read_bytes()).labels == (file.stem,)


def test_after_the_first_visit_the_page_answers_without_a_server(
    context: BrowserContext, server: uvicorn.Server, request: pytest.FixtureRequest
) -> None:
    firefox: Firefox | None = request.getfixturevalue("firefox") if FIREFOX else None
    if firefox is not None:
        _open_in_firefox(firefox, server)
        firefox.evaluate("async () => { await navigator.serviceWorker.ready; }")
        _ask_in_firefox(firefox, 0)
    page = _open(context, server)
    _wait_for_device(page, "yes")
    page.wait_for_function("async () => (await navigator.serviceWorker.ready).active.state === 'activated'")
    page.click("#examples button")
    page.wait_for_selector("#rule:not([hidden])")
    server.should_exit = True
    deadline = time.monotonic() + 30
    while server.started and _is_answering(server) and time.monotonic() < deadline:
        time.sleep(0.1)

    page.reload()
    _wait_for_device(page, "yes")
    page.click("#examples button:nth-of-type(2)")
    page.wait_for_selector("#rule:not([hidden])")

    assert not _is_answering(server)
    assert page.text_content("#answer-heading") == "Metal"
    if firefox is not None:
        before = len(firefox.sent)
        firefox.open(server.address)  # type: ignore[attr-defined]
        assert _ask_in_firefox(firefox, 1) == "Metal"
        assert firefox.sent[before:] == []


@contextmanager
def _serving(engine: Engine, token: str | None) -> Iterator[uvicorn.Server]:
    app = make_app(ModelInService(engine), read_regions(engine.model.classes), host="127.0.0.1", token=token)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    server.address = f"http://127.0.0.1:{listening.getsockname()[1]}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield server
    server.should_exit = True
    thread.join(30)
    listening.close()


def _open(context: BrowserContext, server: Any) -> Page:
    while not server.started:
        time.sleep(0.05)
    page = context.new_page()
    page.goto(server.address)
    page.wait_for_selector("body[data-ready]")
    return page


def _ask_in_firefox(firefox: Firefox, example: int) -> str:
    """What the page itself answers for one of its examples."""
    firefox.wait_for("body[data-device=yes]")
    firefox.evaluate(f"document.querySelectorAll('#examples button')[{example}].click()")
    firefox.wait_for("#rule:not([hidden])")
    return str(firefox.evaluate("document.querySelector('#answer-heading').textContent"))


def _serious(page: Page) -> list[str]:
    """What axe finds, in light and in dark colours."""
    problems: list[str] = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        problems += page.evaluate(SERIOUS)
    return problems


def _hold(held: list[Route], route: Route) -> None:
    held.append(route)


def _change(changes: dict[str, Any], route: Route) -> None:
    route.fulfill(json=route.fetch().json() | changes)


def _fulfill(answer: dict[str, Any], route: Route) -> None:
    route.fulfill(json=answer)


def _open_in_firefox(firefox: Firefox, server: Any) -> None:
    while not server.started:
        time.sleep(0.05)
    firefox.open(server.address)
    firefox.wait_for("body[data-ready]")


def _refuse(route: Route, *, message: str, wait: str) -> None:
    route.fulfill(status=503, headers={"Retry-After": wait}, json={"error": message})


def _wait_for_device(page: Page, answer: str) -> None:
    page.wait_for_selector("body[data-device]")
    assert page.evaluate("document.body.dataset.device") == answer


def _is_answering(server: Any) -> bool:
    port = int(server.address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _made_photos() -> list[bytes]:
    """JPEGs of every orientation, gray, progressive and with other samplings, PNGs and WebPs, of several sizes."""
    rng, photos = np.random.default_rng(0), []
    for at in range(16):
        height, width = int(rng.integers(30, 700)), int(rng.integers(30, 700))
        image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        exif = Image.Exif()
        exif[0x0112] = 1 + at % 8
        file = io.BytesIO()
        image = image.convert("L") if at % 5 == 0 else image
        kind = "PNG" if at in (3, 9) else "WEBP" if at in (4, 11) else "JPEG"
        options = {"exif": exif, "progressive": at % 2 == 0, "subsampling": at % 3} if kind == "JPEG" else {}
        image.save(file, kind, **options)
        photos.append(file.getvalue())
    return photos


def _other_files() -> dict[str, bytes]:
    """Files that browsers decode otherwise, or not at all."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (40, 60), dtype=np.uint16))
    saved: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "CMYK": (image.convert("CMYK"), "JPEG", {}),
        "alpha": (image.convert("RGBA"), "PNG", {}),
        "16 bits": (deep, "PNG", {}),
        "palette": (image.convert("P"), "PNG", {}),
        "transparent": (image, "PNG", {"transparency": (1, 2, 3)}),
        "WebP with alpha": (image.convert("RGBA"), "WEBP", {"lossless": True}),
        "TIFF": (image, "TIFF", {}),
        "GIF": (image, "GIF", {}),
        "cut off": (image, "JPEG", {}),
    }
    files = {}
    for name, (picture, kind, options) in saved.items():
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files[name] = file.getvalue()
    files["cut off"] = files["cut off"][:-400]
    return files


def _real_photos(count: int) -> list[bytes]:
    """Photos of TrashNet's test split; none where there are no data."""
    names = DATA / "trashnet/one-indexed-files-notrash_test.txt"
    if not names.is_file():
        return []
    photos = [line.split()[0] for line in names.read_text().splitlines()[:count]]
    return [(DATA / "trashnet/dataset-resized" / name.rstrip("0123456789.jpg") / name).read_bytes() for name in photos]
