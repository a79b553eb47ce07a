// The page of `twinrun serve`: a photo in, an answer out. Every text from a server or a file is set as text, never as HTML.

import { drawn, pngOf, styleOf } from "./draw.js";

const at = id => document.getElementById(id);
const chosen = (key, value) => { try { return value === undefined ? localStorage.getItem(key) : localStorage.setItem(key, value); } catch { return null; } };
const words = { texts: { failed: "That did not work", "no server": "The server does not answer. Is it still running?" }, language: "en" };
let spoken = 0, early = null; // languages that were asked for, and a photo that came before the page was ready
let regions = [], current = null, teaches = false, guarded = false, accepted = false, asked = 0, token = "", agreed = false, device = null, served = null, named = null, reason = "", clearPad, isFollowing = false;
const replaced = []; // models that a promotion replaced, until the answers that they gave are gone
const NO_TOKEN = "refused 401"; // the name of a text, and the worker's error where the server keeps the model back

// The network on this device, in a worker; `classify` of a photo, or an error that says why it cannot be here.
async function openDevice(version) {
  const worker = new Worker("worker.js", { type: "module" }), waiting = new Map();
  let last = 0;
  worker.onmessage = ({ data: { id, result, error } }) => { const { good, bad } = waiting.get(id); waiting.delete(id); error === undefined ? good(result) : bad(new Error(error)); };
  worker.onerror = event => { for (const { bad } of waiting.values()) bad(new Error(event.message || "the worker cannot be started")); waiting.clear(); };
  const ask = message => new Promise((good, bad) => { waiting.set(++last, { good, bad }); worker.postMessage({ id: last, ...message }); });
  const { name, version: number, weights_hash, onnx_sha256 } = version;
  const model = { ...version, facts: { name, version: number, weights_hash, onnx_sha256 } };
  try { await ask({ kind: "start", model, headers: withToken() }); } catch (error) { worker.terminate(); throw error; }
  return { close: () => worker.terminate(), classes: version.classes, temperature: version.calibration?.temperature, classify: photo => ask({ kind: "classify", photo }), cover: label => ask({ kind: "cover", label }) };
}

const withToken = () => token ? { Authorization: `Bearer ${token}` } : {};
function askForToken() { return token = prompt(put(token ? "token wrong" : "token"))?.trim() || ""; }

function startDevice() {
  device = openDevice(served).then(here => { document.body.dataset.device = "yes"; return here; }, error => {
    reason = error.message;
    if (reason === NO_TOKEN) return; // which is asked for with the first photo
    document.body.dataset.device = "no";
    showPrivacy();
  });
}

// On this device where it can be done exactly; by the server where not, and only after the person agreed.
async function classify(photo) {
  let here = await device;
  while (reason === NO_TOKEN && askForToken()) {
    reason = "";
    startDevice();
    here = await device;
    accepted = Boolean(here);
  }
  if (reason === NO_TOKEN) return { error: NO_TOKEN };
  if (here) {
    try { return { ...await here.classify(photo), here, temperature: here.temperature }; } catch (error) { reason = error.message; }
  }
  if (!photo.size) return { error: "empty" };
  if (here || !agreed) return { ask: photo };
  return classifyThere(photo);
}

// What happens to photos, in the words of now: whether this one has left the device.
function showPrivacy(hasLeft = false) {
  at("privacy").dataset.text = hasLeft ? "privacy left" : document.body.dataset.device === "no" ? "privacy sent" : "privacy";
  at("privacy").textContent = put(at("privacy").dataset.text);
}

async function post(path, body) {
  const response = await fetch(path, { method: "POST", body, headers: withToken() });
  accepted = response.status !== 401;
  return !accepted && askForToken() ? post(path, body) : response;
}

async function classifyThere(photo) {
  const number = asked, response = await post("classify", photo);
  if (number === asked) showPrivacy(true);
  return response.ok ? response.json() : { error: await refusal(response) };
}

// Why a server refuses: the name of a text, where it is one of the usual reasons, else the server's own sentence.
async function refusal(response) {
  const isFull = response.status === 503 && response.headers.get("Retry-After") !== "1"; // not busy: it cannot store
  const name = `refused ${response.status}`, { error } = await response.json().catch(() => ({}));
  return words.texts[name] && !isFull ? name : error || response.statusText;
}

function put(text, values) {
  return (words.texts[text] || text).replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

// Never 100%: no model can be certain.
const percent = share => new Intl.NumberFormat(words.language, { style: "percent", maximumFractionDigits: share > 0.99 ? 1 : 0 }).format(Math.min(share, 0.999));
const inLanguage = texts => texts[words.language] || texts.en || Object.values(texts)[0];
const name = label => words.texts[`class ${label}`] || label;
const certainty = share => share >= 0.99 ? "very sure" : share >= 0.95 ? "sure" : "fairly sure";

async function ask(photo, what = "your photo", look = classify) {
  const number = ++asked;
  while (replaced.length) replaced.pop().close();
  const picture = at("picture");
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(photo);
  picture.alt = put(picture.dataset.what = what);
  picture.classList.toggle("small", what !== "your photo");
  picture.hidden = false;
  current = { isLooking: true };
  render();
  showPrivacy();
  let answer;
  try { answer = await look(photo); } catch { answer = { error: "no server" }; }
  if (number !== asked) return; // another photo was chosen meanwhile
  current = { answer, photo, what, label: answer.kind === "answer" ? answer.label : null };
  render();
  (answer.ask ? at("choices").firstChild : at("answer")).focus({ preventScroll: false });
}

// Takes the answer away, also one that is still to come.
function forget() {
  asked++;
  current = null;
  at("answer").hidden = at("picture").hidden = at("map").hidden = true;
  showModel(served);
  document.body.classList.remove("answered");
  showPrivacy();
}

// The probabilities after calibration, as the confidence is.
function calibrated(probabilities, temperature) {
  const powers = Object.entries(probabilities).map(([label, share]) => [label, share ** (1 / temperature)]);
  const sum = powers.reduce((total, [, power]) => total + power, 0);
  return Object.fromEntries(powers.map(([label, power]) => [label, power / sum]));
}

function askToSend(photo, what) {
  show(put("send"), put("send why"));
  const button = document.createElement("button");
  button.type = "button";
  button.className = "main";
  button.textContent = put("send now");
  button.title = reason;
  button.addEventListener("click", () => { agreed = true; ask(photo, what, classifyThere); });
  at("choices").append(button);
}

function show(heading, detail = "") {
  at("answer").hidden = false;
  document.body.classList.add("answered");
  at("answer-heading").textContent = heading;
  at("confidence").textContent = detail;
  at("choices").replaceChildren();
  for (const id of ["rule", "tips", "details", "why", "why-note", "explain", "wrong"]) at(id).hidden = true;
  at("map").hidden = true;
  at("why").setAttribute("aria-pressed", "false");
}

function render() {
  if (!current) return;
  if (current.isLooking) return show(put("looking"));
  const { answer, label, what } = current;
  if (answer.ask) return askToSend(answer.ask, what);
  if (answer.error) return show(put("failed"), words.texts[answer.error] || answer.error);
  const shares = calibrated(answer.probabilities, answer.temperature ?? 1);
  if (answer.kind === "answer") {
    show(name(answer.label), put(certainty(answer.confidence), { share: percent(answer.confidence) }));
  } else if (answer.kind === "choice") {
    show(label ? name(label) : put("which"), put(label ? "you chose" : "not sure"));
  } else {
    show(put("unknown"), put("best guess", { label: name(answer.label), share: percent(answer.confidence) }));
    at("tips").hidden = false;
  }
  if (answer.kind === "choice") for (const each of answer.labels) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${name(each)} (${percent(shares[each])})`;
    button.setAttribute("aria-pressed", String(each === label));
    button.addEventListener("click", () => { current.label = each; render(); [...at("choices").children][answer.labels.indexOf(each)].focus(); });
    at("choices").append(button);
  }
  showRule(label);
  at("why").hidden = !answer.here; // which the server does not say
  at("explain").hidden = Boolean(answer.here); // else with "Why?"
  const rows = Object.entries(shares).sort((one, other) => other[1] - one[1]).slice(0, 20);
  at("table").replaceChildren(...rows.map(([label, share]) => {
    const row = document.createElement("tr"), head = document.createElement("th"), cell = document.createElement("td");
    head.scope = "row"; head.textContent = name(label); cell.textContent = percent(share);
    row.append(head, cell);
    return row;
  }));
  at("details").hidden = false;
  showModel(answer.model);
  offerToTeach(Object.keys(answer.probabilities), current.photo);
}

// "Wrong?": the right label and, once the person agrees, the photo go to the server, which keeps them until someone looks.
function offerToTeach(labels, photo) {
  at("wrong").hidden = !teaches;
  at("wrong").open = at("consent").checked = false;
  at("taught").textContent = "";
  at("labels").replaceChildren(...labels.map(label => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name(label);
    button.addEventListener("click", () => teach(photo, label));
    return button;
  }));
}

async function teach(photo, label) {
  if (!at("consent").checked) { at("taught").textContent = put("agree first"); at("consent").focus(); return; }
  const body = new FormData();
  for (const [key, value] of [["file", photo], ["label", label], ["consent", "yes"]]) body.append(key, value);
  const tell = text => { if (photo === current?.photo) at("taught").textContent = text; }; // not below another photo
  try {
    const response = await post("feedback", body);
    if (response.ok && photo === current?.photo) showPrivacy(true);
    const refused = response.ok ? "" : await refusal(response);
    tell(response.ok ? put("taught", { label: name(label) }) : words.texts[refused] || refused);
  } catch { tell(put("no server")); }
}

// Which places speak for the label, in red: by its class map, as exact as the network; without such maps by covering parts.
async function drawWhy() {
  const pressed = at("why").getAttribute("aria-pressed") !== "true", { answer, label } = current, canvas = at("map"), number = asked;
  at("why").setAttribute("aria-pressed", String(pressed));
  canvas.hidden = at("why-note").hidden = !pressed;
  at("explain").hidden = !pressed;
  if (!pressed) return;
  let map, place = 0;
  if (answer.maps) [map, place] = [answer.maps, answer.here.classes.indexOf(label || answer.label)]; // an object puts names that are numbers in another order
  else {
    at("why-note").textContent = put("looking");
    try { map = await answer.here.cover(label || answer.label); } catch (error) { at("why-note").textContent = `${put("failed")}: ${error.message}`; return; }
    if (number !== asked || canvas.hidden) return;
  }
  at("why-note").textContent = put(answer.maps ? "why map" : "why covered");
  const { data, height, width } = map, values = data.subarray(place * height * width, (place + 1) * height * width), top = Math.max(...values, 1e-9);
  const small = new ImageData(width, height);
  values.forEach((value, spot) => small.data.set([214, 40, 24, 190 * Math.max(0, value) / top], spot * 4));
  const [across, down] = answer.size, scale = Math.min(height / down, width / across);
  const inner = [(width - across * scale) / 2, (height - down * scale) / 2, across * scale, down * scale]; // without the black frame
  const sheet = new OffscreenCanvas(width, height);
  sheet.getContext("2d").putImageData(small, 0, 0);
  canvas.width = at("picture").clientWidth;
  canvas.height = at("picture").clientHeight;
  canvas.getContext("2d").drawImage(sheet, ...inner, 0, 0, canvas.width, canvas.height);
}

// A pad to draw on; gives a function that clears it.
function openPad() {
  const pad = at("pad"), context = pad.getContext("2d"), styleNow = () => styleOf(served.preprocessing.mean[0]);
  let strokes = [], pen = null, timer = 0;
  const clear = () => {
    clearTimeout(timer);
    strokes = [];
    context.fillStyle = styleNow().bright ? "#000" : "#fff";
    context.fillRect(0, 0, pad.width, pad.height);
  };
  const move = event => {
    if (event.pointerId !== pen) return;
    const style = styleNow(), box = pad.getBoundingClientRect(), stroke = strokes.at(-1), point = [(event.clientX - box.left) / box.width * pad.width, (event.clientY - box.top) / box.height * pad.height];
    stroke.push(point);
    Object.assign(context, { lineWidth: style.stroke * pad.width * .6, lineCap: "round", lineJoin: "round", strokeStyle: style.bright ? "#fff" : "#000" });
    context.beginPath();
    context.moveTo(...stroke.at(-2) || point);
    context.lineTo(...point);
    context.stroke();
  };
  const look = async () => {
    const { size_px: size } = served.preprocessing;
    ask(await pngOf(drawn(strokes, size, styleNow()), size), "your drawing");
  };
  pad.addEventListener("pointerdown", event => {
    if (pen !== null) return;
    clearTimeout(timer);
    pad.setPointerCapture(pen = event.pointerId);
    strokes.push([]);
    move(event);
  });
  pad.addEventListener("pointermove", move);
  for (const kind of ["pointerup", "pointercancel"]) pad.addEventListener(kind, event => {
    if (event.pointerId !== pen) return;
    pen = null;
    timer = setTimeout(look, 700); // after the last stroke of a 4 or a 5
  });
  at("clear").addEventListener("click", () => { clear(); forget(); });
  return clear;
}

const tellsDigits = ({ classes, preprocessing }) => [...classes].sort().join() === "0,1,2,3,4,5,6,7,8,9" && preprocessing.channels === "gray";

async function read(path) {
  const response = await fetch(path);
  if (!response.ok) throw new TypeError(response.statusText); // a proxy answered: the server is away
  return response.json();
}

// The model that answers from now on, here if its worker has started. An answer that stands keeps the model that gave it.
function use(version, here) {
  device?.then(before => { if (before) replaced.push(before); });
  served = version;
  teaches = version.feedback === true;
  guarded = version.guarded === true;
  if (!current) showModel(version);
  at("draw").hidden = !tellsDigits(version);
  clearPad();
  reason = "";
  if (here) device = Promise.resolve(here);
  else startDevice();
}

// A page stays open for weeks on a phone: whether another model was promoted meanwhile. If the network goes in the middle,
// the model before stays, also for a visit without a network: asked with "?now", no version is kept.
async function follow() {
  const version = await read("version?now");
  if (isFollowing || JSON.stringify(version) === JSON.stringify(served)) return;
  isFollowing = true;
  try {
    const here = document.body.dataset.device === "yes" ? await openDevice(version) : null;
    await showRegions();
    await read("version");
    use(version, here);
    say();
  } finally { isFollowing = false; }
}

// The regions whose rules have the model's classes.
async function showRegions() {
  regions = await read("regions");
  at("region").replaceChildren(at("region").options[0], ...regions.map((_, place) => new Option("", place)));
  const known = regions.findIndex(region => inLanguage(region.name) && region.name.en === chosen("region"));
  at("region").value = known >= 0 ? known : regions.length === 1 ? 0 : ""; // no bin of somewhere else
  at("waste").hidden = at("examples").hidden = regions.length === 0;
}

// Things that people look for, and where they go: the region's items, then the model's own classes.
function search() {
  const region = regions[at("region").value], wanted = at("find").value.trim().toLowerCase();
  if (wanted && !region) return at("found").replaceChildren(Object.assign(document.createElement("li"), { textContent: put("region needed") }));
  const things = !wanted ? [] : [...region.items.map(each => [inLanguage(each.name), each.stream, Object.values(each.name)]),
    ...Object.entries(region.classes).map(([label, rule]) => [name(label), rule.stream, [label, name(label)]])];
  const found = things.filter(([, , names]) => names.some(each => each.toLowerCase().includes(wanted))).slice(0, 8);
  if (wanted && !found.length) return at("found").replaceChildren(Object.assign(document.createElement("li"), { textContent: put("not found") }));
  at("found").replaceChildren(...found.map(([thing, stream]) => {
    const row = document.createElement("li");
    row.textContent = `${thing}: ${inLanguage(region.streams[stream].name)}`;
    row.style.borderLeftColor = region.streams[stream].colour;
    return row;
  }));
}

function showRule(label) {
  const region = regions[at("region").value];
  at("rule").hidden = true;
  if (label && regions.length && !region) {
    at("stream").textContent = put("region");
    at("prepare").textContent = put("region needed");
    at("when").textContent = at("rule").style.borderLeftColor = "";
    at("rule").hidden = false;
  }
  const rule = region && label ? region.classes[label] : null;
  if (!rule) return; // also where a promoted model has classes that these rules lack
  const stream = region.streams[rule.stream];
  at("stream").textContent = put("goes to", { stream: inLanguage(stream.name) });
  at("prepare").textContent = inLanguage(rule.prepare);
  at("when").textContent = stream.when ? inLanguage(stream.when) : "";
  at("rule").style.borderLeftColor = stream.colour;
  at("rule").hidden = false;
}

function showRegion() {
  const region = regions[at("region").value];
  at("source").textContent = "";
  if (!region) return;
  const old = Date.now() - Date.parse(region.checked) > 366 * 864e5;
  at("source").textContent = put("source", { source: region.source, date: region.checked }) + (old ? ` ${put("old rules")}` : "");
}

function showModel(model) {
  named = model;
  at("model").textContent = put(model.version === null ? "model folder" : "model", { ...model, weights_hash: model.weights_hash.slice(0, 12) });
  at("model").title = model.weights_hash;
}

async function speak(language) {
  const number = ++spoken, texts = await (await fetch(`lang/${language}.json`)).json();
  if (number !== spoken) return; // another one was chosen meanwhile
  words.texts = texts;
  words.language = document.documentElement.lang = language;
  say();
}

// Every text of the page, in the language of now.
function say() {
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = put(node.dataset.text);
  if (regions.length) for (const node of document.querySelectorAll("[data-waste]")) node.textContent = put(node.dataset.waste);
  document.title = at("title").textContent;
  [...at("region").options].slice(1).forEach((option, place) => { option.textContent = inLanguage(regions[place].name); });
  at("picture").alt = at("picture").dataset.what ? put(at("picture").dataset.what) : "";
  if (named) showModel(named);
  showRegion();
  search();
  render();
}

// A photo that a person gives, once the page is ready.
function take(photo) {
  if (document.body.dataset.ready) ask(photo);
  else early = photo;
}

function listen() {
  for (const id of ["file", "camera"]) at(id).addEventListener("change", event => { if (event.target.files.length) take(event.target.files[0]); event.target.value = ""; });
  for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, event => { // anywhere, or the browser would leave the page
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", event => { if (event.clipboardData.files.length) take(event.clipboardData.files[0]); });
  early = at("file").files[0] || at("camera").files[0]; // chosen before this script was there
  at("file").value = at("camera").value = ""; // or to choose it again would be no change
}

async function start() {
  const languages = [...at("language").options].map(option => option.value);
  const wanted = [chosen("language"), ...navigator.languages.map(each => each.slice(0, 2))];
  at("language").value = wanted.find(each => languages.includes(each)) || "en";
  at("language").addEventListener("change", event => {
    speak(event.target.value).then(() => chosen("language", words.language), () => { event.target.value = words.language; });
  });
  await speak(at("language").value);
  await showRegions();
  at("region").addEventListener("change", () => { chosen("region", regions[at("region").value]?.name.en || ""); showRegion(); search(); if (current) showRule(current.label); });
  say();
  for (const example of document.querySelectorAll("#examples button")) example.addEventListener("click", async () => {
    try { ask(await (await fetch(example.querySelector("img").src)).blob()); } catch { show(put("failed"), put("no server")); }
  });
  at("why").addEventListener("click", drawWhy);
  at("explain").addEventListener("submit", event => {
    if (guarded && !accepted && !askForToken()) { event.preventDefault(); return; }
    if (guarded && !accepted) fetch("metrics", { headers: withToken() }).then(({ ok }) => { accepted = ok; }, () => {}); // or the next time asks again
    // A form sends no headers, so the token goes along as a cookie, which the browser sends to this address alone.
    if (guarded) document.cookie = `token=${encodeURIComponent(token)}; path=${new URL("explain", location.href).pathname}; max-age=60; SameSite=Strict`;
    const files = new DataTransfer();
    files.items.add(new File([current.photo], "photo"));
    at("explain").elements.file.files = files.files;
    showPrivacy(true);
  });
  at("find").addEventListener("input", search);
  clearPad = openPad();
  use(await read("version"));
  navigator.serviceWorker?.register("sw.js").catch(() => {}); // a browser may forbid it; then there is no page without a network
  const look = () => { if (!document.hidden) follow().catch(() => {}); }; // without a network the model stays
  document.addEventListener("visibilitychange", look);
  setInterval(look, 600_000);
  at("picture").addEventListener("error", () => { at("picture").hidden = true; }); // a kind of file that this browser does not show
  document.body.dataset.ready = "yes";
  if (early) ask(early);
}

listen();
start().catch(error => show(put("failed"), error instanceof TypeError ? put("no server") : String(error))); // fetch has no other error
