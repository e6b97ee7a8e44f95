// Codes as bytes in the `plain` coding, and the message that carries them: docs/wire-format.md.

export const CONTENT_TYPE = "application/vnd.cpgan.codes";

function roundHalfToEven(x) {
  const below = Math.floor(x);
  const rest = x - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

export function highestOf(codec) {
  return codec.lowest + codec.frequencies.length - 1;
}

// The levels of one code z (Float32Array); of a codec that does not round, the numbers themselves.
export function levelsOf(z, codec) {
  if (codec.kind === "float32") return Array.from(z);
  const step = Math.fround(codec.step);
  const highest = highestOf(codec);
  return Array.from(z, (value) => {
    const level = roundHalfToEven(Math.fround(value / step));
    return Math.min(highest, Math.max(codec.lowest, level)) + 0;
  });
}

export function packed(levels, codec) {
  if (codec.kind === "float32") {
    const view = new DataView(new ArrayBuffer(4 * levels.length));
    levels.forEach((value, i) => view.setFloat32(4 * i, value, true));
    return new Uint8Array(view.buffer);
  }
  const bits = Math.max(1, Math.ceil(Math.log2(codec.frequencies.length)));
  const bytes = new Uint8Array(Math.ceil((levels.length * bits) / 8));
  levels.forEach((level, i) => {
    const symbol = level - codec.lowest;
    for (let bit = 0; bit < bits; bit++) {
      const at = i * bits + bit;
      if ((symbol >> (bits - 1 - bit)) & 1) bytes[at >> 3] |= 0x80 >> (at & 7);
    }
  });
  return bytes;
}

// codes: a list of levels; digest: of the bundle, hexadecimal.
export function messageOf(codes, codec, digest) {
  const parts = codes.map((levels) => packed(levels, codec));
  const header = [1, 0, codes.length & 255, codes.length >> 8];
  for (let i = 0; i < 4; i++) header.push(parseInt(digest.slice(2 * i, 2 * i + 2), 16));
  return new Uint8Array([...header, ...parts.flatMap((part) => [...part])]);
}

// What Bob and Eve compute with: the code as it arrives.
export function received(levels, codec) {
  const step = Math.fround(codec.step);
  return Float32Array.from(levels, (level) => (codec.kind === "float32" ? level : level * step));
}
