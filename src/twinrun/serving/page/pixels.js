// From a decoded photo to what the network takes, byte for byte as ingest does it: Pillow's integer resize, in its order.

const BITS = 22; // of a weight, as in Pillow

const FILTERS = {
  bilinear: [1, x => (x = Math.abs(x), x < 1 ? 1 - x : 0)],
  bicubic: [2, x => (x = Math.abs(x), x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0)],
};

// The weights of each output pixel: where they begin in the input, and integers that add up to about 2 ** BITS.
function weights(size, from, to, wanted, resample) {
  const [reach, filter] = FILTERS[resample];
  from = Math.fround(from); // single precision, as in Pillow
  const scale = Math.fround(Math.fround(to) - from) / wanted, stretch = Math.max(scale, 1), support = reach * stretch;
  return Array.from({ length: wanted }, (_, at) => {
    const center = from + (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5)), last = Math.min(size, Math.trunc(center + support + 0.5));
    const shares = Array.from({ length: last - first }, (_, k) => filter((k + first - center + 0.5) * (1 / stretch)));
    const sum = shares.reduce((one, other) => one + other, 0);
    const whole = shares.map(share => { const value = (sum ? share / sum : share) * (1 << BITS); return Math.trunc(value + (value < 0 ? -0.5 : 0.5)); });
    return [first, whole];
  });
}

// Resize (height, width, channels) along one axis; `from` and `to` cut a part out of it.
function along(image, axis, wanted, from, to, resample) {
  const { data, height, width, channels } = image, size = axis ? width : height;
  if (size === wanted && from === 0 && to === size) return image;
  const [down, across] = axis ? [height, wanted] : [wanted, width];
  const result = new Uint8ClampedArray(down * across * channels);
  const step = axis ? channels : width * channels;
  weights(size, from, to, wanted, resample).forEach(([first, shares], at) => {
    for (let other = 0; other < (axis ? height : width); other++) for (let channel = 0; channel < channels; channel++) {
      let place = (axis ? other * width * channels : other * channels) + first * step + channel, sum = 1 << (BITS - 1);
      for (const share of shares) { sum = (sum + data[place] * share) | 0; place += step; }
      result[((axis ? other : at) * across + (axis ? at : other)) * channels + channel] = sum >> BITS;
    }
  });
  return { data: result, height: down, width: across, channels };
}

// Python's round: halves to the even number.
const rounded = value => { const down = Math.floor(value), rest = value - down; return rest > 0.5 || (rest === 0.5 && down % 2) ? down + 1 : down; };

export function fit(image, [height, width], how, resample) {
  if (image.height === height && image.width === width) return image;
  if (how === "crop") {
    const across = Math.min(image.width, image.height * width / height), down = Math.min(image.height, image.width * height / width);
    const left = (image.width - across) / 2, top = (image.height - down) / 2;
    return along(along(image, 1, width, left, left + across, resample), 0, height, top, top + down, resample);
  }
  const scale = Math.min(height / image.height, width / image.width);
  const down = Math.max(1, rounded(image.height * scale)), across = Math.max(1, rounded(image.width * scale));
  const inner = along(along(image, 1, across, 0, image.width, resample), 0, down, 0, image.height, resample);
  const { channels } = image, frame = new Uint8ClampedArray(height * width * channels);
  const top = Math.floor((height - down) / 2), left = Math.floor((width - across) / 2);
  for (let row = 0; row < down; row++) frame.set(inner.data.subarray(row * across * channels, (row + 1) * across * channels), ((top + row) * width + left) * channels);
  return { data: frame, height, width, channels };
}

// Pixels of a canvas (red, green, blue, alpha) as gray or colour.
export function channelsOf({ data, height, width }, gray) {
  const channels = gray ? 1 : 3, pixels = new Uint8ClampedArray(height * width * channels);
  for (let from = 0, to = 0; from < data.length; from += 4, to += channels) {
    if (gray) pixels[to] = (data[from] * 19595 + data[from + 1] * 38470 + data[from + 2] * 7471 + 0x8000) >> 16;
    else { pixels[to] = data[from]; pixels[to + 1] = data[from + 1]; pixels[to + 2] = data[from + 2]; }
  }
  return { data: pixels, height, width, channels };
}

// Whether browsers decode a file to ingest's bytes: whole JPEGs of 8 bits in gray or YCbCr, opaque PNGs of 8 bits, WebP without alpha.
export function isDecodedAlike(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), text = (at, length) => String.fromCharCode(...bytes.subarray(at, at + length));
  if (bytes.length < 64) return false;
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return isPlainJpeg(bytes, view);
  if (text(1, 3) === "PNG") {
    const depth = bytes[24], kind = bytes[25];
    if (depth !== 8 || (kind !== 0 && kind !== 2)) return false;
    for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
      const name = text(at + 4, 4);
      if (name === "tRNS" || name === "acTL" || name === "eXIf") return false;
      if (name === "IEND") return true;
    }
    return false;
  }
  if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP") {
    return text(12, 4) === "VP8 " && view.getUint32(4, true) + 8 <= bytes.length;
  }
  return false;
}

function isPlainJpeg(bytes, view) {
  let plain = false;
  for (let at = 2; at + 4 < bytes.length;) {
    if (bytes[at] !== 0xff) return false;
    const marker = bytes[at + 1];
    if (marker === 0xff) { at++; continue; }
    if (marker === 0xda) break;
    const length = view.getUint16(at + 2);
    if ([0xc0, 0xc1, 0xc2].includes(marker)) plain = bytes[at + 4] === 8 && (bytes[at + 9] === 1 || bytes[at + 9] === 3);
    if (marker === 0xee && length >= 14 && bytes[at + 15] === 0) plain = false; // Adobe's RGB
    at += 2 + length;
  }
  for (let at = bytes.length - 2; plain && at > bytes.length - 65536 && at > 0; at--) if (bytes[at] === 0xff && bytes[at + 1] === 0xd9) return true;
  return false;
}
