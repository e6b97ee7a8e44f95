// Pillow's bicubic resizing in whole numbers, as docs/wire-format.md states it: the same pixels give the same bytes.

const BITS = 22;

function kernel(x) {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * -0.5 : 0;
}

// For each of `outputs` pixels along one side: the first input pixel, and the whole-number weights from it on.
// The rectangle's edges are float32, as Pillow keeps them.
export function weightsOf(inputs, from, to, outputs) {
  const start = Math.fround(from);
  const scale = Math.fround(Math.fround(to) - start) / outputs;
  const stretch = Math.max(1, scale);
  const rows = [];
  for (let i = 0; i < outputs; i++) {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 2 * stretch + 0.5));
    const end = Math.min(inputs, Math.trunc(centre + 2 * stretch + 0.5));
    const raw = [];
    let sum = 0;
    for (let x = first; x < end; x++) {
      const value = kernel((x - centre + 0.5) * (1 / stretch));
      raw.push(value);
      sum += value;
    }
    rows.push({ first, weights: raw.map((value) => {
      const scaled = (sum === 0 ? value : value / sum) * 2 ** BITS;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    }) });
  }
  return rows;
}

function clip(sum) {
  return Math.min(255, Math.max(0, sum >> BITS));
}

// One pass: `lines` lines, each with its pixels `step` values apart and its first value at `line * lineStep`.
function pass(source, channels, lines, lineStep, step, rows, target, targetLineStep, targetStep) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < rows.length; i++) {
      const { first, weights } = rows[i];
      for (let c = 0; c < channels; c++) {
        let sum = 1 << (BITS - 1);
        let at = line * lineStep + first * step + c;
        for (let j = 0; j < weights.length; j++, at += step) sum += source[at] * weights[j];
        target[line * targetLineStep + i * targetStep + c] = clip(sum);
      }
    }
  }
}

function acrossRows({ values, width, height }, channels, from, to, outputs) {
  if (outputs === width && from === 0 && to === width) return { values, width, height };
  const next = new Uint8Array(height * outputs * channels);
  pass(values, channels, height, width * channels, channels, weightsOf(width, from, to, outputs), next, outputs * channels, channels);
  return { values: next, width: outputs, height };
}

function downColumns({ values, width, height }, channels, from, to, outputs) {
  if (outputs === height && from === 0 && to === height) return { values, width, height };
  const line = width * channels;
  const next = new Uint8Array(outputs * line);
  pass(values, channels, width, channels, line, weightsOf(height, from, to, outputs), next, channels, line);
  return { values: next, width, height: outputs };
}

// pixels: Uint8Array of height * width * channels; box: left, top, right, bottom. Returns the resized pixels in the same order.
// Each pass rounds, so their order counts.
export function resize(pixels, channels, width, height, box, outWidth, outHeight) {
  const [left, top, right, bottom] = box.map(Math.fround);
  const start = { values: pixels, width, height };
  if (outHeight < height && height - outHeight > 2 * (width - outWidth)) {
    return acrossRows(downColumns(start, channels, top, bottom, outHeight), channels, left, right, outWidth).values;
  }
  return downColumns(acrossRows(start, channels, left, right, outWidth), channels, top, bottom, outHeight).values;
}
