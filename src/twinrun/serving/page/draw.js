// A drawn digit as an image like those that its model was trained on, computed without a canvas, whose pixels some
// browsers change.

// How the training images were made, by the mean of their pixels, in [0, 1]. MNIST: a box of 20 of 28 pixels, centred by
// its mass, thin strokes. Scikit-learn's digits: the whole height, strokes of blocks of 4 of 32 pixels, so wide and soft.
export function styleOf(mean) {
  const bright = mean < 0.5, ink = bright ? mean : 1 - mean;
  return ink < 0.2 ? { bright, fill: 20 / 28, stroke: 0.1, soft: 0.04, byMass: true } : { bright, fill: 1, stroke: 0.2, soft: 0.13, byMass: false };
}

// Gray pixels (height * width) of `strokes`, lists of [x, y] in any unit.
export function drawn(strokes, [height, width], style) {
  const side = Math.min(height, width), radius = style.stroke * side / 2, points = strokes.flat();
  const [left, right, top, bottom] = [0, 1].flatMap(axis => { const all = points.map(point => point[axis]); return [Math.min(...all), Math.max(...all)]; });
  const scale = Math.max(0, style.fill * side - 2 * radius) / Math.max(right - left, bottom - top, 1e-9);
  const placed = ([across, down]) => strokes.map(stroke => stroke.map(([x, y]) => [(x - (left + right) / 2) * scale + across, (y - (top + bottom) / 2) * scale + down]));
  const centre = [width / 2, height / 2], first = covered(placed(centre), height, width, radius, style.soft * side);
  if (!style.byMass) return toned(first, style.bright);
  let mass = 0, across = 0, down = 0;
  first.forEach((share, at) => { mass += share; across += share * (at % width + .5); down += share * (Math.floor(at / width) + .5); });
  return toned(covered(placed([2 * centre[0] - across / mass, 2 * centre[1] - down / mass]), height, width, radius, style.soft * side), style.bright);
}

const toned = (shares, bright) => Uint8Array.from(shares, share => Math.round(255 * (bright ? share : 1 - share)));

// How far each pixel is covered by lines of this radius with an edge `soft` pixels wide, in [0, 1].
function covered(strokes, height, width, radius, soft) {
  const shares = new Float64Array(height * width), edge = Math.max(1, soft);
  strokes.forEach(stroke => stroke.forEach(([x, y], at) => {
    const [fromX, fromY] = stroke[Math.max(0, at - 1)], reach = radius + edge, length = (x - fromX) ** 2 + (y - fromY) ** 2;
    for (let row = Math.max(0, Math.floor(Math.min(y, fromY) - reach)); row < Math.min(height, Math.max(y, fromY) + reach); row++)
      for (let column = Math.max(0, Math.floor(Math.min(x, fromX) - reach)); column < Math.min(width, Math.max(x, fromX) + reach); column++) {
        const [overX, overY] = [column + .5 - fromX, row + .5 - fromY];
        const along = length ? Math.max(0, Math.min(1, (overX * (x - fromX) + overY * (y - fromY)) / length)) : 0;
        const distance = Math.hypot(overX - along * (x - fromX), overY - along * (y - fromY));
        const share = Math.max(0, Math.min(1, (radius - distance) / edge + .5));
        if (share > shares[row * width + column]) shares[row * width + column] = share;
      }
  }));
  return shares;
}

// Gray pixels as a PNG file.
export async function pngOf(pixels, [height, width]) {
  const lines = new Uint8Array(height * (width + 1));
  for (let row = 0; row < height; row++) lines.set(pixels.subarray(row * width, (row + 1) * width), row * (width + 1) + 1);
  const packed = new Uint8Array(await new Response(new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer());
  const header = new Uint8Array(13), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = 8; // bits, and all else 0: gray, not interlaced
  return new Blob([Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), chunk("IHDR", header), chunk("IDAT", packed), chunk("IEND", new Uint8Array())], { type: "image/png" });
}

function chunk(name, data) {
  const bytes = new Uint8Array(12 + data.length), view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set([...name].map(letter => letter.charCodeAt(0)), 4);
  bytes.set(data, 8);
  let check = -1;
  for (const byte of bytes.subarray(4, 8 + data.length)) {
    check ^= byte;
    for (let bit = 0; bit < 8; bit++) check = check & 1 ? check >>> 1 ^ 0xedb88320 : check >>> 1;
  }
  view.setUint32(8 + data.length, ~check);
  return bytes;
}
