// The network on this device. Photos come in and answers go out by messages; nothing is sent over the network from here.
import { channelsOf, fit, isDecodedAlike } from "./pixels.js";

const PLAIN = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
// Photos of the folder selftest, and the sha256 of their pixels as ingest decodes them.
const SELF_TEST = {
  "pixels.png": "f1e43b66bb6e0de51fe470fb86b0cd7dc0c24abb0ac9cd73f22785af0b3707c6",
  "photo.jpg": "9d95d29bd7a78d01086c0b5d71d89bf6f266666ed0d09eeec062d08d00faaec5",
  "photo.webp": "7f666ea6f42987839ccdee3da741e1bd195d927a608a7e346fc0cb0df0af00e7",
};
const CELLS = 12; // along the longer side, of the grid in which parts are covered; a part is two cells wide
let ort, session, model, last;

// Pixels of a file, upright, (height, width, 4).
async function decoded(blob) {
  const bitmap = await createImageBitmap(blob, PLAIN);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

const hex = async data => [...new Uint8Array(await crypto.subtle.digest("SHA-256", data))].map(byte => byte.toString(16).padStart(2, "0")).join("");

// Some browsers change pixels that are read back, in silence, so that no site can recognise the device.
async function check() {
  for (const [file, wanted] of Object.entries(SELF_TEST)) {
    const response = await fetch(`selftest/${file}`);
    const { data } = channelsOf(await decoded(await response.blob()), false);
    if (await hex(data) !== wanted) throw new Error(`this browser changes the pixels of ${file}`);
  }
}

async function start(wanted, headers) {
  model = wanted;
  await check();
  ort = await import("./ort/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("ort/", import.meta.url).href;
  const file = await fetch(`model/${model.onnx_sha256}.onnx`, { headers });
  if (file.status === 401) throw new Error("refused 401"); // which the page knows
  if (!file.ok) throw new Error(`the model cannot be fetched: ${file.status}`);
  const bytes = await file.arrayBuffer();
  if (await hex(bytes) !== model.onnx_sha256) throw new Error("the model's file is not the one that was named");
  await keep(file.url, bytes).catch(() => {}); // a full disk or a private window forbids it; then the next visit needs the network
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

async function keep(address, bytes) {
  if (!self.caches) return;
  const cache = await caches.open("twinrun-1");
  for (const old of await cache.keys()) if (new URL(old.url).pathname.startsWith("/model/")) await cache.delete(old);
  await cache.put(address, new Response(bytes));
  await cache.addAll(["ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "ort.wasm.min.mjs"].map(name => `ort/${name}`));
}

function softmax(logits, temperature = 1) {
  const largest = Math.max(...logits), shares = logits.map(logit => Math.exp((logit - largest) / temperature));
  const sum = shares.reduce((one, other) => one + other, 0);
  return shares.map(share => share / sum);
}

// The same rules as evaluation/conformal.py and serving/engine.py.
function answered(logits, similarity) {
  const { classes, calibration } = model, shares = softmax(logits);
  const order = classes.map((_, at) => at).sort((one, other) => shares[other] - shares[one] || one - other), best = order[0];
  let named, odd = false, confidence = shares[best];
  if (calibration) {
    const calibrated = softmax(logits, calibration.temperature), largest = Math.max(...logits);
    named = order.filter(at => at === best || calibrated[at] >= calibration.least[at]);
    confidence = calibrated[best];
    odd = similarity ? similarity[0] < calibration.similarity : -(largest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0))) > calibration.energy;
  } else {
    let sum = 0;
    named = order.filter(at => { const before = sum; sum += shares[at]; return before < 0.95; });
  }
  const kind = odd || named.length > 3 ? "unknown" : named.length === 1 ? "answer" : "choice";
  return { label: classes[best], probability: shares[best], confidence, kind, labels: named.map(at => classes[at]), probabilities: Object.fromEntries(classes.map((name, at) => [name, shares[at]])) };
}

async function classify(photo) {
  const bytes = new Uint8Array(await photo.arrayBuffer()), settings = model.preprocessing;
  if (!isDecodedAlike(bytes)) throw new Error("this kind of file is decoded by the server alone");
  const image = await decoded(new Blob([bytes]));
  if (image.width * image.height > settings.max_pixels) throw new Error("the photo has too many pixels");
  const pixels = fit(channelsOf(image, settings.channels === "gray"), settings.size_px, settings.fit, settings.resample);
  const data = new Uint8Array(pixels.data.buffer);
  last = pixels;
  const results = await session.run({ images: new ort.Tensor("uint8", data, [1, pixels.height, pixels.width, pixels.channels]) });
  const maps = results.maps && { data: results.maps.data, height: results.maps.dims[2], width: results.maps.dims[3] };
  const facts = { image_sha256: await hex(bytes), pixels_sha256: await hex(data), logits: [...results.logits.data] };
  return { ...answered(facts.logits, results.similarity?.data), ...facts, maps, size: [image.width, image.height], model: model.facts };
}

// For networks without class maps: by how much the log odds of a label fall when a part of the last photo has the mean
// colour instead, for each cell of a grid, the mean over the parts with the cell.
async function cover(label) {
  const { height, width, channels, data } = last, cell = Math.max(1, Math.round(Math.max(height, width) / CELLS)), at = model.classes.indexOf(label);
  const rows = Math.ceil(height / cell), columns = Math.ceil(width / cell), sums = new Float32Array(rows * columns), counts = new Uint8Array(rows * columns);
  const odds = async pixels => {
    const logits = [...(await session.run({ images: new ort.Tensor("uint8", new Uint8Array(pixels), [1, height, width, channels]) }, ["logits"])).logits.data];
    const others = logits.filter((_, place) => place !== at), largest = Math.max(...others);
    return logits[at] - largest - Math.log(others.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
  };
  const before = await odds(data), colour = model.preprocessing.mean.map(share => Math.round(share * 255));
  for (let top = 0; top < Math.max(1, rows - 1); top++) for (let left = 0; left < Math.max(1, columns - 1); left++) {
    const part = Uint8Array.from(data);
    for (let y = top * cell; y < Math.min(height, (top + 2) * cell); y++) for (let x = left * cell; x < Math.min(width, (left + 2) * cell); x++) part.set(colour, (y * width + x) * channels);
    const drop = before - await odds(part);
    for (let y = top; y < Math.min(rows, top + 2); y++) for (let x = left; x < Math.min(columns, left + 2); x++) { sums[y * columns + x] += drop; counts[y * columns + x]++; }
  }
  return { data: sums.map((sum, place) => sum / counts[place]), height: rows, width: columns };
}

let turn = Promise.resolve(); // one after the other
self.onmessage = ({ data: { id, kind, photo, label, model: wanted, headers } }) => {
  turn = turn.then(async () => {
    try {
      self.postMessage({ id, result: await (kind === "start" ? start(wanted, headers) : kind === "cover" ? cover(label) : classify(photo)) });
    } catch (error) {
      self.postMessage({ id, error: String(error.message || error) });
    }
  });
};
