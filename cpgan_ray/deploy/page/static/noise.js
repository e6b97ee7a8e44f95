// The noise of a stochastic release: docs/wire-format.md#noise. It is drawn again for each code, from the browser's secure generator.

const NUMBERS_A_CALL = 8192;

// Uniform numbers in (0, 1), 52 bits each.
function uniform(count) {
  const result = new Float64Array(count);
  for (let start = 0; start < count; start += NUMBERS_A_CALL) {
    const words = crypto.getRandomValues(new Uint32Array(2 * Math.min(NUMBERS_A_CALL, count - start)));
    for (let i = 0; i < words.length / 2; i++) {
      result[start + i] = ((words[2 * i] >>> 6) * 2 ** 26 + (words[2 * i + 1] >>> 6) + 0.5) / 2 ** 52;
    }
  }
  return result;
}

// Independent Gaussian numbers of mean 0 and standard deviation 1, two from two uniform ones (Box and Muller, 1958).
export function gaussian(count) {
  const pairs = Math.ceil(count / 2);
  const u = uniform(2 * pairs);
  const result = new Float64Array(2 * pairs);
  for (let i = 0; i < pairs; i++) {
    const radius = Math.sqrt(-2 * Math.log(u[i]));
    const angle = 2 * Math.PI * u[pairs + i];
    result[2 * i] = radius * Math.cos(angle);
    result[2 * i + 1] = radius * Math.sin(angle);
  }
  return result.subarray(0, count);
}

// What is released of the privatizer's numbers z (Float32Array). noise: {std, clip}, or null if there is none.
export function withNoise(z, noise) {
  if (!noise) return z;
  const drawn = gaussian(z.length);
  return z.map((value, i) => Math.min(noise.clip, Math.max(-noise.clip, value)) + noise.std * drawn[i]);
}
