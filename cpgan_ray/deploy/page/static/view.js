// What one sees. Text goes into text nodes only.

const FIRST = 6;

export const byId = (id) => document.getElementById(id);
const percent = (share) => share === null ? "an unknown share" : `${(100 * share).toFixed(share > 0.995 || share < 0.005 ? 1 : 0)} %`;
const number = (value) => value.toLocaleString("en");
const fixed = (value) => value === null ? "unknown" : value.toFixed(2).replace("-", "−");
const words = (name) => name.replaceAll("_", " ");

export function showStatus(text, { error = false } = {}) {
  const line = byId("status");
  line.textContent = text;
  line.classList.toggle("error", error);
}

// picture: {width, height, rgba}; box: the part that the privatizer sees.
export function showPicture({ width, height, rgba }, [left, top, right, bottom], name) {
  const whole = new OffscreenCanvas(width, height);
  const opaque = new Uint8ClampedArray(rgba);
  for (let i = 3; i < opaque.length; i += 4) opaque[i] = 255;
  whole.getContext("2d").putImageData(new ImageData(opaque, width, height), 0, 0);
  const canvas = byId("picture");
  canvas.width = 320;
  canvas.height = Math.max(1, Math.round((320 * (bottom - top)) / (right - left)));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, left, top, right - left, bottom - top, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `The chosen picture: ${name}`);
}

// values: Float32Array or Uint8Array of channels * height * width, from 0 to 255.
export function drawTensor(canvas, values, { channels, height, width }) {
  const area = width * height;
  const image = new ImageData(width, height);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(values[(channels === 3 ? c : 0) * area + i]);
    image.data[4 * i + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// The size of the privatizer's input as a JPEG, for comparison.
export async function jpegBytes(input, how) {
  const canvas = new OffscreenCanvas(how.width, how.height);
  drawTensor(canvas, input, how);
  return (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.75 })).size;
}

export function showCode(levels, codec) {
  const far = Math.max(1e-9, ...levels.map(Math.abs));
  const largest = codec.kind === "levels" ? Math.max(1, -codec.lowest, codec.lowest + codec.frequencies.length - 1) : far;
  const cells = levels.map((level) => {
    const cell = document.createElement("i");
    if (level) cell.className = level < 0 ? "low" : "high";
    cell.style.setProperty("--strength", String(0.25 + 0.75 * Math.min(1, Math.abs(level) / largest)));
    cell.title = codec.kind === "levels" ? String(level) : level.toFixed(3);
    return cell;
  });
  const code = byId("code");
  code.style.setProperty("--across", String(Math.ceil(Math.sqrt(levels.length))));
  code.replaceChildren(...cells);
  const zeros = levels.filter((level) => level === 0).length;
  code.setAttribute("aria-label", `The code: ${levels.length} numbers, ${zeros} of them 0`);
}

// bundle: an entry of bundles.json.
export function showCodeText({ k, noise }, bytes, jpeg) {
  const drawn = noise ? " Random noise is added, drawn again each time." : "";
  byId("code-text").textContent =
    `${k} numbers in ${number(bytes)} bytes.${drawn} The same picture as a small JPEG has ${number(jpeg)} bytes.`;
  byId("sent-text").textContent =
    `Sent to Bob: a header of 8 bytes, and ${k} numbers in ${number(bytes)} bytes. With the request the browser sends your key and its ` +
    "usual headers.";
}

function row(name, share) {
  const block = document.createElement("div");
  const [term, value, bar, fill] = ["dt", "b", "dd", "i"].map((tag) => document.createElement(tag));
  value.textContent = percent(share);
  term.append(name, value);
  fill.style.setProperty("--share", `${100 * share}%`);
  bar.append(fill);
  block.append(term, bar);
  return block;
}

// A label of two values has the probability of the second one; a label of several shows the likeliest value.
export function showAnswers(answers, labels) {
  const rows = labels.map(({ name, values }) => {
    const answer = answers[name];
    if (typeof answer === "number") {
      const plain = /^(0|no|false)$/i.test(values[0]) && /^(1|yes|true)$/i.test(values[1]);
      return { name: plain ? words(name) : `${words(name)}: ${words(values[1])}`, share: answer };
    }
    const [value, share] = Object.entries(answer).reduce((best, entry) => (entry[1] > best[1] ? entry : best));
    return { name: `${words(name)}: ${words(value)}`, share };
  });
  rows.sort((a, b) => b.share - a.share);
  byId("answers").replaceChildren(...rows.slice(0, FIRST).map(({ name, share }) => row(name, share)));
  byId("rest").replaceChildren(...rows.slice(FIRST).map(({ name, share }) => row(name, share)));
  byId("more").hidden = rows.length <= FIRST;
  byId("more").querySelector("summary").textContent = `${rows.length - FIRST} more answers`;
  byId("answers-text").textContent = "Bob has the code, not the picture.";
}

export function clearAnswers(reason) {
  byId("answers").replaceChildren();
  byId("more").hidden = true;
  byId("answers-text").textContent = reason;
}

// bundle: an entry of bundles.json.
export function showNumbers(bundle) {
  const { accuracy, eve, twin } = bundle;
  byId("eve").hidden = !eve;
  byId("twin").hidden = !twin;
  byId("eve").classList.toggle("single", !twin);
  byId("eve-caption").textContent = eve ? `From this code: R² ${fixed(eve.r2)}` : "";
  byId("twin-caption").textContent = twin ? `Without protection: R² ${fixed(twin.r2)}` : "";
  byId("eve-text").textContent = eve
    ? `Eve’s attack (${words(eve.attack)}) was fitted on other pictures and their codes.`
    : "This bundle has no Eve: it was exported without her.";
  const bob = accuracy === null ? "" : `On test pictures Bob answers ${percent(accuracy)} of the questions correctly`;
  const undefended = twin ? `; without protection ${percent(twin.accuracy)}` : "";
  byId("measured").textContent = bob ? `${bob}${undefended}. Bundle ${bundle.digest.slice(0, 8)}, ${bundle.name}.` : "";
}

// bundles: all that the slider chooses from. What they have in common is not repeated.
export function showWeight({ name, k, noise, privacyWeight, accuracy, r2 }, bundles) {
  const differ = (value) => new Set(bundles.map(value)).size > 1;
  const parts = [`Privacy weight ${privacyWeight ?? "unknown"}`];
  if (differ((bundle) => bundle.name)) parts.unshift(words(name));
  if (differ((bundle) => bundle.k)) parts.push(`${k} numbers`);
  if (differ((bundle) => bundle.noise?.std ?? 0)) parts.push(noise ? `noise ${Number(noise.std.toPrecision(3))}` : "no noise");
  if (accuracy !== null) parts.push(`Bob’s accuracy ${percent(accuracy)}`);
  if (r2 !== null) parts.push(`Eve’s R² ${fixed(r2)}`);
  byId("weight-text").textContent = parts.join(" · ");
  byId("slider").setAttribute("aria-valuetext", parts.join(", "));
}
