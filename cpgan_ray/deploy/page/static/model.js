// The models of a bundle, run in this browser by onnxruntime-web.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const sessions = new Map();

export function load(url) {
  if (!sessions.has(url)) {
    const session = fetchModel(url).catch((error) => { sessions.delete(url); throw error; });
    sessions.set(url, session);
  }
  return sessions.get(url);
}

async function fetchModel(url) {
  const reply = await fetch(url, { credentials: "omit" });
  if (!reply.ok) throw new Error(`A model could not be loaded (status ${reply.status}). Reload the page.`);
  return ort.InferenceSession.create(new Uint8Array(await reply.arrayBuffer()), { executionProviders: ["wasm"] });
}

// input: Uint8Array or Float32Array of the dimensions `dims`. Returns Float32Array. onnxruntime runs one model at a time.
let queue = Promise.resolve();

export function run(url, input, dims) {
  const result = queue.then(async () => {
    const session = await load(url);
    const tensor = new ort.Tensor(input instanceof Uint8Array ? "uint8" : "float32", input, dims);
    const outputs = await session.run({ [session.inputNames[0]]: tensor });
    return Float32Array.from(outputs[session.outputNames[0]].data);
  });
  queue = result.catch(() => {});
  return result;
}
