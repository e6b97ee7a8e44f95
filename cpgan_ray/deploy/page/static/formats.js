// What the first bytes of a picture file say: files that a browser decodes to other values than Pillow are refused in words.

const MAX_BYTES = 64 * 2 ** 20;

export async function ensureUsable(file) {
  if (!file.size) throw new Error("The file is empty. Choose a picture.");
  if (file.size > MAX_BYTES) throw new Error("The file has more than 64 MB. Choose a smaller picture.");
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (isPng(bytes) && bytes[24] === 16) throw new Error("The picture has 16 bits per colour. Convert it to 8 bits.");
  if (componentsOfJpeg(bytes) === 4) throw new Error("The picture is a JPEG in CMYK. Convert it to RGB.");
  if (startsWith(bytes, "<") || startsWith(bytes, "\u00ef\u00bb\u00bf<")) throw new Error("This is a drawing or a page. Choose a photograph (JPEG, PNG or WebP).");
}

function startsWith(bytes, text) {
  return [...text].every((letter, i) => bytes[i] === letter.charCodeAt(0));
}

function isPng(bytes) {
  return startsWith(bytes, "\u0089PNG\r\n\u001a\n");
}

// The number of colour components in a JPEG's frame header; 0 for other files.
export function componentsOfJpeg(bytes) {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return 0;
  let at = 2;
  while (at + 9 < bytes.length) {
    if (bytes[at] !== 0xff) return 0;
    const marker = bytes[at + 1];
    if (marker === 0xff) { at += 1; continue; }
    if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) { at += 2; continue; }
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return bytes[at + 9];
    const length = bytes[at + 2] * 256 + bytes[at + 3];
    if (length < 2) return 0;
    at += 2 + length;
  }
  return 0;
}
