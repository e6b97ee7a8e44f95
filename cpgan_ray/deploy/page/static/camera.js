// A picture from the camera, if there is one and the visitor allows it.

import { byId, showStatus } from "./view.js";

let stream = null;

export function setUpCamera(choose) {
  if (!navigator.mediaDevices?.getUserMedia) return;
  byId("camera").hidden = false;
  byId("camera").addEventListener("click", open);
  byId("stop").addEventListener("click", close);
  byId("shoot").addEventListener("click", async () => {
    const video = byId("video");
    if (!video.videoWidth) return;
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    close();
    await choose(await canvas.convertToBlob({ type: "image/png" }), "from the camera");
  });
}

async function open() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" } });
  } catch {
    showStatus("The browser gives no access to a camera. Choose a file or a drawn face.", { error: true });
    return;
  }
  byId("video").srcObject = stream;
  byId("viewfinder").hidden = false;
  await byId("video").play();
  byId("shoot").focus();
}

function close() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("viewfinder").hidden = true;
  byId("camera").focus();
}
