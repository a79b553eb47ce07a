// The page of `twinrun serve`: a photo in, an answer out. Every text from a server or a file is set as text, never as HTML.

const at = id => document.getElementById(id);
const chosen = (key, value) => { try { return value === undefined ? localStorage.getItem(key) : localStorage.setItem(key, value); } catch { return null; } };
const words = { texts: {}, language: "en" };
let regions = [], current = null, asked = 0, token = "";

// The one place that decides where an image is classified. Running the network in the browser would go here.
async function classify(photo) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch("classify", { method: "POST", body: photo, headers });
  if (response.status === 401) {
    token = prompt(words.texts.token) || "";
    if (token) return classify(photo);
  }
  const answer = await response.json().catch(() => ({ error: response.statusText }));
  return response.ok ? answer : { error: answer.error || response.statusText };
}

function put(text, values) {
  return (words.texts[text] || text).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const percent = share => new Intl.NumberFormat(words.language, { style: "percent", maximumFractionDigits: share > 0.99 && share < 1 ? 1 : 0 }).format(share);
const inLanguage = texts => texts[words.language] || texts.en || Object.values(texts)[0];
const certainty = share => share >= 0.99 ? "very sure" : share >= 0.95 ? "sure" : "fairly sure";

async function ask(photo) {
  const number = ++asked;
  const picture = at("picture");
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(photo);
  picture.alt = put("your photo");
  picture.hidden = false;
  current = null;
  show(put("looking"));
  let answer;
  try { answer = await classify(photo); } catch { answer = { error: put("no server") }; }
  if (number !== asked) return; // another photo was chosen meanwhile
  current = { answer, label: answer.kind === "answer" ? answer.label : null };
  render();
  at("answer").focus({ preventScroll: false });
}

function show(heading, detail = "") {
  at("answer").hidden = false;
  at("answer-heading").textContent = heading;
  at("confidence").textContent = detail;
  at("choices").replaceChildren();
  for (const id of ["rule", "tips", "details"]) at(id).hidden = true;
}

function render() {
  if (!current) return;
  const { answer, label } = current;
  if (answer.error) return show(put("failed"), answer.error);
  if (answer.kind === "answer") {
    show(answer.label, put(certainty(answer.probability), { share: percent(answer.probability) }));
  } else if (answer.kind === "choice") {
    show(label || put("which"), put(label ? "you chose" : "not sure"));
  } else {
    show(put("unknown"), put("best guess", { label: answer.label, share: percent(answer.probability) }));
    at("tips").hidden = false;
  }
  if (answer.kind === "choice") for (const each of answer.labels) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${each} (${percent(answer.probabilities[each])})`;
    button.setAttribute("aria-pressed", String(each === label));
    button.addEventListener("click", () => { current.label = each; render(); [...at("choices").children][answer.labels.indexOf(each)].focus(); });
    at("choices").append(button);
  }
  showRule(label);
  const rows = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]).slice(0, 20);
  at("table").replaceChildren(...rows.map(([name, share]) => {
    const row = document.createElement("tr"), head = document.createElement("th"), cell = document.createElement("td");
    head.scope = "row"; head.textContent = name; cell.textContent = percent(share);
    row.append(head, cell);
    return row;
  }));
  at("details").hidden = false;
  showModel(answer.model);
}

function showRule(label) {
  const region = regions[at("region").value];
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
  if (!region) return;
  const old = Date.now() - Date.parse(region.checked) > 366 * 864e5;
  at("source").textContent = put("source", { source: region.source, date: region.checked }) + (old ? ` ${put("old rules")}` : "");
}

function showModel(model) {
  at("model").textContent = put(model.version === null ? "model folder" : "model", { ...model, weights_hash: model.weights_hash.slice(0, 12) });
  at("model").title = model.weights_hash;
}

async function speak(language) {
  words.texts = await (await fetch(`lang/${language}.json`)).json();
  words.language = document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = put(node.dataset.text);
  document.title = put("title");
  [...at("region").options].forEach((option, place) => { option.textContent = inLanguage(regions[place].name); });
  showRegion();
  render();
}

async function start() {
  const languages = [...at("language").options].map(option => option.value);
  const wanted = [chosen("language"), ...navigator.languages.map(each => each.slice(0, 2))];
  at("language").value = wanted.find(each => languages.includes(each)) || "en";
  at("language").addEventListener("change", event => { chosen("language", event.target.value); speak(event.target.value); });
  regions = await (await fetch("regions")).json();
  at("region").append(...regions.map((_, place) => new Option("", place)));
  const known = regions.findIndex(region => inLanguage(region.name) && region.name.en === chosen("region"));
  if (known >= 0) at("region").value = known;
  at("region").addEventListener("change", () => { chosen("region", regions[at("region").value].name.en); showRegion(); render(); });
  at("waste").hidden = regions.length === 0;
  await speak(at("language").value);
  showModel(await (await fetch("version")).json());
  at("file").addEventListener("change", event => { if (event.target.files.length) ask(event.target.files[0]); event.target.value = ""; });
  const drop = at("drop");
  for (const name of ["dragover", "dragleave", "drop"]) drop.addEventListener(name, event => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) ask(event.dataTransfer.files[0]);
  });
  document.body.dataset.ready = "yes";
}

start().catch(error => show(put("failed"), String(error)));
