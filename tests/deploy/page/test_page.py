"""Tests of the page in a real browser: a face is chosen, its code goes to Bob, nothing else leaves, the four panels are filled."""

import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cpgan_ray.common.codec import PLAIN
from cpgan_ray.deploy.answers import probabilities
from cpgan_ray.deploy.bundle import EVE, PRIVATIZER, TWIN_EVE, TWIN_PRIVATIZER, Bundle, read_bundle
from cpgan_ray.deploy.client import Client
from cpgan_ray.deploy.manifest import NOISY_FORMAT
from cpgan_ray.deploy.message import write_message
from cpgan_ray.deploy.onnx_export import onnx_model
from cpgan_ray.deploy.page import page_files
from cpgan_ray.deploy.page.faces import offered_faces
from cpgan_ray.deploy.sessions import open_session
from tests.deploy import bundles
from tests.deploy.bob import KEY
from tests.deploy.page.server import Site, serve_page

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
ATTACK = {"attack": "ridge", "r2": 0.25, "low": 0.2, "high": 0.3}


class Painter(nn.Module):
    """Any reconstruction: codes (B, k) -> pictures (B, 3, SIDE, SIDE) in [0, 255]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(bundles.K, 3 * bundles.SIDE**2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (127.5 + 60 * self.linear(z)).clamp(0, 255).unflatten(1, (3, bundles.SIDE, bundles.SIDE))


def with_eve(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    torch.manual_seed(5)
    program = torch.export.export(Painter(), (torch.zeros(2, bundles.K),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    eve = onnx_model(program, input_name="z", output_name="pictures", weights="float32")
    more = {EVE: eve, TWIN_EVE: eve, TWIN_PRIVATIZER: files[PRIVATIZER]}
    return bundles.remake(files | more, **changes)


@pytest.fixture(scope="module")
def pair(bundle_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """A bundle with Eve and the twin, and one of a larger privacy weight without them; the second one comes first."""
    open_numbers = {"run": {"privacy_weight": 0.1}, "bundle": {"accuracy": 0.91, "strongest": {"r2": 0.25}}}
    first = with_eve(bundle_files, eve=ATTACK, twin=ATTACK | {"accuracy": 0.95, "r2": 0.6}, **open_numbers)
    second = bundles.contents(seed=1, run={"privacy_weight": 0.5}, bundle={"accuracy": 0.8, "strongest": {"r2": 0.1}})
    folder = tmp_path_factory.mktemp("pair")
    return [read_bundle(bundles.write(folder / name, files)) for name, files in (("second", second), ("first", first))]


@pytest.fixture(scope="module")
def shown(pair: list[Bundle], site: Site) -> Iterator[Site]:
    """The page of the pair, served. `site` skips the test where onnxruntime-web cannot be had."""
    with serve_page(pair, page_files(pair)) as served:
        yield served


class Visit:
    """A tab of the browser that shows the page, with everything that it sends and complains about."""

    def __init__(self, page: Any, url: str, *, key: str | None) -> None:
        self.page, self.requests, self.complaints = page, list[Any](), list[str]()
        page.on("request", lambda request: self.requests.append(request))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(url + (f"/#key={key}" if key else "/"))
        page.locator("body[data-ready]").wait_for(timeout=60_000)

    def choose_face(self, index: int) -> np.ndarray:
        """Choose a face; returns the levels of its code."""
        return self.levels_after(lambda: self.page.locator("#faces button").nth(index).click())

    def levels_after(self, act: Any) -> np.ndarray:
        self.page.evaluate("delete document.body.dataset.levels")
        act()
        self.page.locator("body[data-levels]").wait_for(timeout=60_000)
        return np.array(self.page.evaluate("document.body.dataset.levels").split(" "), int)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def open_page(url: str, *, key: str | None = KEY, viewport: dict[str, int] = DESKTOP, **settings: Any) -> Visit:
            context = browser.new_context(viewport=viewport, **settings)
            stack.callback(context.close)
            return Visit(context.new_page(), url, key=key)

        yield open_page


def expected(bundle: Bundle, picture: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Python's levels (k,) and code (1, k) of a picture."""
    levels = bundle.codec.levels(Client(bundle).codes([picture]))  # pyright: ignore[reportAttributeAccessIssue]
    return levels[0], bundle.codec.codes(levels)  # pyright: ignore[reportAttributeAccessIssue]


def test_chosen_faces_have_pythons_codes_answers_and_eve(shown, pair, visit):
    tab, bundle = visit(shown.url), pair[1]
    for index, face in enumerate(offered_faces()):
        shown.bodies.clear()
        levels, (wanted, z) = tab.choose_face(index), expected(bundle, face)
        assert np.array_equal(levels, wanted)
        assert shown.bodies == [write_message(z, bundle.codec, digest=bundle.digest, coding=PLAIN)]
    (answer,) = probabilities(bundles.expected_logits(bundle, z), bundle.manifest.labels)
    assert isinstance(answer["Smiling"], float)
    assert isinstance(answer["Hair"], dict)
    likeliest = max(answer["Hair"], key=answer["Hair"].get)  # pyright: ignore[reportArgumentType, reportCallIssue]
    shares = {"Male": answer["Male"], "Smiling": answer["Smiling"], f"Hair: {likeliest}": answer["Hair"][likeliest]}
    rows = dict(text.rsplit("\n", 1) for text in tab.page.locator("#answers dt").all_inner_texts())
    assert rows.keys() == shares.keys()
    for name, share in shares.items():
        assert float(rows[name].rstrip(" %")) == pytest.approx(100 * share, abs=0.51)
    (eve,) = open_session(bundle, EVE).run(None, {"z": z})
    drawn = tab.page.evaluate("""() => { const c = document.getElementById("eve-picture");
        return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data); }""")
    drawn = np.array(drawn).reshape(bundles.SIDE, bundles.SIDE, 4)[:, :, :3].transpose(2, 0, 1)
    assert np.abs(drawn - np.asarray(eve)[0]).max() <= 1
    assert drawn.std() > 5
    assert tab.complaints == []


def test_no_request_carries_a_picture_or_leaves_the_service(shown, pair, visit, tmp_path):
    tab = visit(shown.url)
    own = tmp_path / "private-name.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)).save(own)
    levels = tab.levels_after(lambda: tab.page.locator("#file").set_input_files(own))
    assert np.array_equal(levels, expected(pair[1], own.read_bytes())[0])
    assert all(request.url.startswith(shown.url) for request in tab.requests)
    assert not any(word in request.url for request in tab.requests for word in ("private-name", KEY))
    sent = [request for request in tab.requests if request.method != "GET"]
    assert [(request.method, request.url) for request in sent] == [("POST", f"{shown.url}/v1/answers")]
    body = sent[0].post_data_buffer
    assert len(body) == 8 + pair[1].codec.plain_bytes
    assert sent[0].headers["content-type"] == "application/vnd.cpgan.codes"
    assert all(request.post_data_buffer is None for request in tab.requests if request.method == "GET")
    assert tab.complaints == []


def test_key_is_taken_from_the_address_or_asked_for(shown, visit):
    tab = visit(shown.url, key=KEY)
    assert KEY not in tab.page.url
    tab = visit(shown.url, key=None)
    tab.choose_face(0)
    assert not [request for request in tab.requests if request.method == "POST"]
    assert "Give the key" in tab.text("#status")
    tab.page.locator("#key").fill("wrong")
    tab.levels_after(lambda: tab.page.keyboard.press("Enter"))
    assert "does not know this key" in tab.text("#status")
    tab.page.locator("#key").fill(KEY)
    tab.levels_after(lambda: tab.page.keyboard.press("Enter"))
    assert tab.page.locator("#answers dt").count() == 3
    assert tab.text("#status") == "Done. Only the code was sent."


def test_slider_changes_the_bundle_and_its_numbers(shown, pair, visit):
    tab = visit(shown.url)
    tab.choose_face(2)
    assert "91 %" in tab.text("#weight-text")
    assert "0.60" in tab.text("#twin-caption")
    tab.page.locator("#slider").focus()
    levels = tab.levels_after(lambda: tab.page.keyboard.press("ArrowRight"))
    assert np.array_equal(levels, expected(pair[0], offered_faces()[2])[0])
    assert "Privacy weight 0.5" in tab.text("#weight-text")
    assert "no Eve" in tab.text("#eve-text")
    assert not tab.page.locator("#eve").is_visible()
    assert shown.bodies[-1][4:8].hex() == pair[0].digest[:8]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_is_used_by_keyboard(shown, visit, scheme):
    tab = visit(shown.url, viewport=PHONE, color_scheme=scheme)
    tab.page.locator("#faces button").first.focus()
    tab.levels_after(lambda: tab.page.keyboard.press("Enter"))
    width, seen = tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width <= seen
    unnamed = tab.page.evaluate("""() => [...document.querySelectorAll("button, input, canvas, img, video")].filter((e) =>
        !(e.getAttribute("aria-label") || e.alt || e.textContent.trim() || e.labels?.length || e.hasAttribute("aria-labelledby") ||
          e.querySelector("img[alt]"))).map((e) => e.outerHTML)""")
    assert unnamed == []


@pytest.mark.parametrize("std", [0.001, 0.7])
def test_code_of_a_noisy_release_has_the_noise_of_its_manifest(bundle_files, visit, tmp_path, site, std):
    noise = {"kind": "gaussian", "std": std, "clip": 1.1}
    files = bundles.remake(bundle_files, format=NOISY_FORMAT, noise=noise, run={"privacy_weight": 0.1})
    bundle = read_bundle(bundles.write(tmp_path / "noisy", files))
    silent = read_bundle(bundles.write(tmp_path / "silent", bundles.remake(bundle_files, run={"privacy_weight": 0.1})))
    with serve_page([bundle, silent], page_files([bundle, silent])) as served:
        tab = visit(served.url)
        tab.page.locator("#slider").focus()
        tab.page.keyboard.press("ArrowRight")
        assert f"noise {std:g}" in tab.text("#weight-text")
        codes = [tab.choose_face(index % len(offered_faces())) for index in range(12)]
        assert "drawn again" in tab.text("#code-text")
        assert tab.complaints == []
    clipped = Client(silent).codes(list(offered_faces())).clip(-1.1, 1.1)
    expected_codes = np.tile(bundle.codec.levels(clipped), (2, 1))  # pyright: ignore[reportAttributeAccessIssue]
    if std < 0.1:
        assert np.array_equal(codes, expected_codes)
    else:
        assert 0.1 < np.mean(codes != expected_codes) < 0.95
        assert not np.array_equal(codes[:6], codes[6:])


def test_picture_of_the_camera_is_encoded_and_the_camera_closed(shown, pair, visit):
    tab = visit(shown.url, permissions=["camera"])
    tab.page.locator("#camera").focus()
    tab.page.keyboard.press("Enter")
    tab.page.locator("#shoot:focus").wait_for()
    levels = tab.levels_after(lambda: tab.page.keyboard.press("Enter"))
    assert len(levels) == bundles.K
    assert tab.page.evaluate("document.getElementById('video').srcObject.getTracks().map((track) => track.readyState)") == ["ended"]
    assert not tab.page.locator("#viewfinder").is_visible()
    assert tab.page.locator("#picture").get_attribute("aria-label") == "The chosen picture: from the camera"
    assert len(shown.bodies[-1]) == 8 + pair[1].codec.plain_bytes
    assert tab.complaints == []


def test_camera_that_is_not_allowed_is_reported(shown, visit):
    tab = visit(shown.url, permissions=[])
    tab.page.locator("#camera").click()
    tab.page.locator("#status.error").wait_for()
    assert "no access to a camera" in tab.text("#status")
    assert len(tab.choose_face(0)) == bundles.K


def test_file_that_is_no_picture_keeps_the_page_usable(shown, visit, tmp_path):
    tab, wrong = visit(shown.url), tmp_path / "a.png"
    wrong.write_bytes(b"not a picture")
    tab.page.locator("#file").set_input_files(wrong)
    tab.page.locator("#status.error").wait_for()
    assert "not a picture" in tab.text("#status")
    assert not [request for request in tab.requests if request.method == "POST"]
    assert len(tab.choose_face(1)) == bundles.K


def test_bundle_that_takes_no_pictures_is_left_out(bundle_files, bundle, tmp_path, site):
    signals = bundles.PREPROCESSING.as_json() | {"kind": "array"}
    other = read_bundle(bundles.write(tmp_path / "signals", bundles.remake(bundle_files, preprocessing=signals)))
    described = json.loads(page_files([other, bundle])["/page/bundles.json"].content)["bundles"]
    assert [entry["digest"] for entry in described] == [bundle.digest]


def test_bundle_without_numbers_is_shown_without_them(bundle_files, visit, tmp_path, site):
    bundle = read_bundle(bundles.write(tmp_path / "silent", with_eve(bundle_files)))
    with serve_page([bundle], page_files([bundle])) as served:
        tab = visit(served.url)
        assert np.array_equal(tab.choose_face(4), expected(bundle, offered_faces()[4])[0])
        assert "R² unknown" in tab.text("#eve-caption")
        assert tab.complaints == []


def test_offered_faces_are_different_pictures_of_fixed_size():
    faces = [Image.open(io.BytesIO(face)) for face in offered_faces()]
    assert {(face.size, face.mode) for face in faces} == {((178, 218), "RGB")}
    assert len(set(offered_faces())) == len(faces) == 6
