// From a chosen picture to the four panels.

import { KeyError, ask, forgetKey, keepKey, takeKey } from "./answers.js";
import { setUpCamera } from "./camera.js";
import { levelsOf, messageOf, packed, received } from "./codec.js";
import { load, run } from "./model.js";
import { withNoise } from "./noise.js";
import { cropBox, decode, toInput } from "./picture.js";
import * as view from "./view.js";

const { byId } = view;
const state = { bundles: [], bundle: null, picture: null, name: "", turn: 0 };

const refused = (error) => view.showStatus(error instanceof Error ? error.message : String(error), { error: true });

async function choose(file, name) {
  const turn = ++state.turn;
  try {
    view.showStatus("Reading the picture …");
    const picture = await decode(file);
    if (turn !== state.turn) return;
    Object.assign(state, { picture, name });
    await update();
  } catch (error) {
    if (turn === state.turn) refused(error);
  }
}

// Encode the picture with the present bundle, ask Bob, let Eve try. A later choice overtakes an earlier one.
async function update() {
  const { bundle, picture, name } = state;
  if (!bundle || !picture) return;
  const turn = ++state.turn;
  const isOld = () => turn !== state.turn;
  const { preprocessing: how, codec, noise } = bundle;
  try {
    view.showStatus("The privatizer makes the code …");
    const input = toInput(picture, how);
    view.showPicture(picture, cropBox(picture.width, picture.height, how), name);
    const dims = [1, how.channels, how.height, how.width];
    const levels = levelsOf(withNoise(await run(bundle.files.privatizer, input, dims), noise), codec);
    const jpeg = await view.jpegBytes(input, how);
    if (isOld()) return;
    view.showCode(levels, codec);
    view.showCodeText(bundle, packed(levels, codec).length, jpeg);
    const answered = await showAnswers(levels, isOld);
    if (isOld()) return;
    await showEve(input, dims, levels, isOld);
    if (isOld()) return;
    document.body.dataset.levels = levels.join(" ");
    document.body.dataset.turn = String(turn);
    if (answered) view.showStatus("Done. Only the code was sent.");
  } catch (error) {
    if (!isOld()) refused(error);
  }
}

// Returns whether Bob has answered; if not, the reason is on the page.
async function showAnswers(levels, isOld) {
  const key = takeKey();
  byId("key-form").hidden = Boolean(key);
  if (!key) {
    view.clearAnswers("Bob answers to visitors with a key.");
    view.showStatus("Nothing was sent. Give the key of the service to ask Bob.");
    return false;
  }
  try {
    const answers = await ask(messageOf([levels], state.bundle.codec, state.bundle.digest), key);
    if (!isOld()) view.showAnswers(answers, state.bundle.labels);
    return true;
  } catch (error) {
    if (isOld()) return false;
    if (error instanceof KeyError) {
      forgetKey();
      byId("key-form").hidden = false;
    }
    view.clearAnswers("There are no answers for this picture.");
    refused(error);
    return false;
  }
}

async function showEve(input, dims, levels, isOld) {
  const { files, preprocessing: how, codec, k } = state.bundle;
  if (!files.eve) return;
  const seen = await run(files.eve, received(levels, codec), [1, k]);
  if (isOld()) return;
  view.drawTensor(byId("eve-picture"), seen, how);
  byId("eve-picture").setAttribute("aria-label", "What Eve reconstructs from this code");
  if (!files.twinEve) return;
  const open = await run(files.twinPrivatizer, input, dims);
  const all = await run(files.twinEve, open, [1, k]);
  if (isOld()) return;
  view.drawTensor(byId("twin-picture"), all, how);
  byId("twin-picture").setAttribute("aria-label", "What Eve reconstructs from the undefended twin’s code");
}

function pick(index) {
  state.bundle = state.bundles[index];
  view.showNumbers(state.bundle);
  view.showWeight(state.bundle, state.bundles);
}

function offerFaces(count) {
  for (let i = 0; i < count; i++) {
    const [button, image] = ["button", "img"].map((tag) => document.createElement(tag));
    Object.assign(image, { src: `/page/faces/${i}.png`, alt: `Drawn face ${i + 1}`, width: 178, height: 218 });
    Object.assign(button, { type: "button" });
    button.setAttribute("aria-pressed", "false");
    button.append(image);
    button.addEventListener("click", async () => {
      mark(button);
      try {
        const reply = await fetch(image.src, { credentials: "omit" });
        if (!reply.ok) throw new Error("The face could not be loaded. Reload the page.");
        await choose(await reply.blob(), image.alt.toLowerCase());
      } catch {
        refused(new Error("The face could not be loaded. Is the service still running?"));
      }
    });
    byId("faces").append(button);
  }
}

function mark(button) {
  for (const other of byId("faces").children) other.setAttribute("aria-pressed", String(other === button));
}

function chooseFile(file) {
  if (!file) return;
  mark(null);
  choose(file, "your own file");
}

function setUpSources() {
  byId("file").addEventListener("change", (event) => {
    chooseFile(event.target.files[0]);
    event.target.value = "";
  });
  const zone = byId("drop");
  document.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  document.addEventListener("dragleave", () => zone.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) chooseFile(file);
    else view.showStatus("That is not a file. Drop a picture file.", { error: true });
  });
  setUpCamera((file, name) => { mark(null); return choose(file, name); });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(byId("key").value.trim());
    byId("key").value = "";
    byId("key-form").hidden = true;
    update();
  });
}

async function start() {
  const key = takeKey();
  const reply = await fetch("/page/bundles.json", { credentials: "omit" });
  if (!reply.ok) throw new Error("The page’s description could not be loaded. Reload the page.");
  const { bundles, faces } = await reply.json();
  state.bundles = bundles;
  if (!bundles.length) throw new Error("No bundle of this service takes pictures, so there is nothing to show.");
  pick(0);
  const slider = byId("slider");
  byId("weights").hidden = bundles.length < 2;
  slider.max = String(bundles.length - 1);
  slider.value = "0";
  slider.addEventListener("input", () => { pick(Number(slider.value)); update(); });
  offerFaces(faces);
  setUpSources();
  byId("key-form").hidden = Boolean(key);
  await load(state.bundle.files.privatizer);
  if (!state.picture) view.showStatus("Ready. Choose a face.");
  document.body.dataset.ready = "true";
}

window.addEventListener("hashchange", () => { if (takeKey()) { byId("key-form").hidden = true; update(); } });
start().catch(refused);
