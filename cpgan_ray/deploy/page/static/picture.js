// A picture file as the privatizer's input: decoded upright, cut, resized, in the order channels, rows, columns.

import { ensureUsable } from "./formats.js";
import { resize } from "./resampling.js";

const MAX_PIXELS = 2 ** 26;
const DECODING = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };

// file: a Blob. Returns {width, height, rgba}, upright; no colour profile is applied.
export async function decode(file) {
  await ensureUsable(file);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, DECODING);
  } catch {
    throw new Error("This file is not a picture that the browser can read. Choose a JPEG, PNG or WebP file.");
  }
  try {
    const { width, height } = bitmap;
    if (width * height > MAX_PIXELS) throw new Error(`The picture has ${width} x ${height} pixels. Choose one with at most 67 million.`);
    return { width, height, rgba: readPixels(bitmap) };
  } finally {
    bitmap.close();
  }
}

function readPixels(bitmap) {
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  for (let i = 3; i < rgba.length; i += 4) {
    if (rgba[i] !== 255) return readTransparent(bitmap);
  }
  return rgba;
}

// A canvas multiplies colours with alpha and loses those of transparent pixels, which Pillow keeps. A texture does not.
function readTransparent(bitmap) {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Error("This browser cannot read a transparent picture of this size. Choose one without transparency.");
  }
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const rgba = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return rgba;
}

// Left, top, right and bottom edge of the largest centred rectangle of the input's shape, times `crop`.
export function cropBox(width, height, how) {
  const isTall = width * how.height <= height * how.width;
  const across = isTall ? how.crop * width : how.crop * ((height * how.width) / how.height);
  const down = isTall ? how.crop * ((width * how.height) / how.width) : how.crop * height;
  const left = (width - across) / 2;
  const top = (height - down) / 2;
  return [left, top, left + across, top + down];
}

// how: the manifest's `preprocessing`. Returns Uint8Array of channels * height * width.
export function toInput(picture, how) {
  const pixels = withChannels(picture, how.channels);
  const box = cropBox(picture.width, picture.height, how);
  const small = resize(pixels, how.channels, picture.width, picture.height, box, how.width, how.height);
  const area = how.width * how.height;
  const input = new Uint8Array(small.length);
  for (let i = 0; i < area; i++) for (let c = 0; c < how.channels; c++) input[c * area + i] = small[i * how.channels + c];
  return input;
}

// RGB without alpha, or grey with Pillow's weights in units of 1 / 65536.
function withChannels({ width, height, rgba }, channels) {
  const pixels = new Uint8Array(width * height * channels);
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 1) pixels[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else { pixels[3 * i] = r; pixels[3 * i + 1] = g; pixels[3 * i + 2] = b; }
  }
  return pixels;
}
