"""Tests of the page's modules in a real browser: inputs equal to Pillow's, bytes equal to those of docs/wire-format.md."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest

from cpgan_ray.common.codec import LevelCodec
from cpgan_ray.deploy.manifest import Preprocessing
from cpgan_ray.deploy.preprocessing import prepare

WIRE_FORMAT = Path(__file__).parents[3] / "docs" / "wire-format.md"
PREPARE = """async ([content, how]) => {
    const { decode, toInput } = await import("/page/picture.js");
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    try {
        return Array.from(toInput(await decode(new Blob([bytes])), how));
    } catch (error) {
        return error.message;
    }
}"""
MESSAGE = """async ([codes, codec, digest]) => {
    const { messageOf } = await import("/page/codec.js");
    return Array.from(messageOf(codes, codec, digest));
}"""


@pytest.fixture(scope="module")
def page(browser: Any, site: Any) -> Any:
    opened = browser.new_page()
    opened.goto(site.url)
    return opened


def how(*, width: int, height: int, crop: float = 1.0, channels: int = 3) -> Preprocessing:
    return Preprocessing(kind="picture", channels=channels, height=height, width=width, crop=crop, dtype="uint8")


def noise(width: int, height: int, mode: str) -> Image.Image:
    """A picture of random values, in which each wrong weight shows."""
    bands = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, *bands), np.uint8)
    return Image.frombytes(mode, (width, height), values.tobytes())


def packed(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **settings)
    return file.getvalue()


def in_browser(page: Any, content: bytes, preprocessing: Preprocessing) -> Any:
    return page.evaluate(PREPARE, [base64.b64encode(content).decode(), preprocessing.as_json()])


def ensure_equal(page: Any, content: bytes, preprocessing: Preprocessing) -> None:
    given = in_browser(page, content, preprocessing)
    assert not isinstance(given, str), given
    expected = prepare([content], preprocessing)[0].ravel()
    assert np.array_equal(np.array(given), expected), f"{np.mean(np.array(given) != expected):.2%} of the values differ"


@pytest.mark.parametrize(
    ("size", "target", "crop"),
    [
        ((178, 218), (64, 64), 0.8),
        ((178, 218), (64, 64), 1.0),
        ((64, 64), (64, 64), 1.0),
        ((64, 64), (64, 64), 0.7),
        ((13, 7), (32, 48), 0.93),
        ((301, 97), (17, 16), 0.61),
        ((64, 200), (64, 32), 1.0),
        ((3, 3), (28, 28), 1.0),
        ((1, 1), (8, 8), 1.0),
        ((1, 50), (8, 8), 0.1),
        ((40, 64), (16, 16), 1.0),
        ((40, 65), (16, 16), 1.0),
        ((30, 40), (16, 12), 0.8),
        ((30, 41), (16, 12), 0.8),
        ((9, 35), (37, 37), 0.9),
    ],
)
def test_resampling_equals_pillows_in_all_bytes(page, size, target, crop):
    ensure_equal(page, packed(noise(*size, "RGB")), how(width=target[0], height=target[1], crop=crop))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "transparent palette"])
def test_picture_of_any_mode_equals_pillows(page, mode, channels):
    settings: dict[str, Any] = {}
    if mode in ("P", "transparent palette"):
        image = noise(40, 30, "RGB").quantize(64)
        settings = {"transparency": 3} if mode != "P" else {}
    else:
        image = noise(40, 30, "L").convert("1") if mode == "1" else noise(40, 30, mode)
    ensure_equal(page, packed(image, **settings), how(width=16, height=16, crop=0.9, channels=channels))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_upright_as_with_pillow(page, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = noise(6, 4, "RGB").resize((45, 30), Image.Resampling.BICUBIC)
    ensure_equal(page, packed(smooth, kind, exif=exif), how(width=16, height=12, crop=0.8))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_decoded_as_pillow_decodes_it(page, mode, subsampling):
    smooth = noise(9, 11, mode).resize((178, 218), Image.Resampling.BICUBIC)
    settings = {"subsampling": subsampling} if mode == "RGB" else {}
    ensure_equal(page, packed(smooth, "JPEG", quality=85, **settings), how(width=64, height=64, crop=0.8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "The file is empty"),
        (b"not a picture at all", "not a picture that the browser can read"),
        (packed(noise(8, 8, "RGB"))[:60], "not a picture that the browser can read"),
        (packed(noise(8, 8, "RGB").convert("CMYK"), "JPEG"), "JPEG in CMYK"),
        (packed(Image.fromarray(np.zeros((9, 9), np.uint16))), "16 bits"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "drawing"),
        (packed(Image.new("1", (9000, 9000))), "pixels"),
    ],
)
def test_file_that_cannot_be_used_is_refused_in_words(page, content, reason):
    assert reason in in_browser(page, content, how(width=8, height=8))


def test_messages_equal_the_test_vectors_of_the_wire_format(page):
    blocks = [json.loads(text) for text in re.findall(r"```json\n(\{\"digest\".*?)```", WIRE_FORMAT.read_text(), re.DOTALL)]
    compared = 0
    for block in blocks:
        for case in (case for case in block["cases"] if case["coding"] == "plain"):
            codes = case.get("levels") or case["codes"]
            assert bytes(page.evaluate(MESSAGE, [codes, block["codec"], block["digest"]])).hex() == case["message"]
            compared += 1
    assert compared == 4


@pytest.mark.parametrize("step", [0.5, 0.7, 2.0])
def test_levels_are_rounded_as_in_python(page, step):
    codec = LevelCodec(k=400, step=step, lowest=-9, frequencies=(1,) * 18 + ((1 << 24) - 18,))
    halves = np.arange(-20, 20, dtype=np.float32) * np.float32(step) / 2
    z = np.concatenate([halves, np.random.default_rng(0).normal(0, 4, 360).astype(np.float32)])
    script = """async ([z, codec]) => {
        const { levelsOf } = await import("/page/codec.js");
        return levelsOf(Float32Array.from(z), codec);
    }"""
    given = page.evaluate(script, [z.tolist(), codec.as_json()])
    assert np.array_equal(np.array(given), codec.levels(z[None])[0])


def test_noise_is_gaussian_and_drawn_again_each_time(page):
    script = """async ([count, noise]) => {
        const { withNoise } = await import("/page/noise.js");
        const z = new Float32Array(count).fill(-3);
        return [1, 2].map(() => Array.from(withNoise(z, noise)));
    }"""
    first, second = map(np.array, page.evaluate(script, [20_001, {"std": 0.5, "clip": 1.25}]))
    assert kstest((first + 1.25) / 0.5, "norm").pvalue > 1e-6
    for numbers in (second, np.roll(first, 1), np.roll(first, 10_001)):
        assert abs(np.corrcoef(first, numbers)[0, 1]) < 0.05
    assert np.mean(first == second) < 0.01


def test_code_without_noise_stays_as_it_is(page):
    script = """async (z) => {
        const { withNoise } = await import("/page/noise.js");
        return Array.from(withNoise(Float32Array.from(z), null));
    }"""
    assert page.evaluate(script, [-7.5, 0.25, 9.0]) == [-7.5, 0.25, 9.0]
