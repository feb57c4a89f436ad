// Script of the page. Files are sent one at a time; only their bytes are sent, not their names.

const $ = (id) => document.getElementById(id);
const SILENT = "no response from the server; is se-fused fracture serve still running?";
const items = [];
let current = null;
let running = false;

const known = fetch("about").then((response) => response.json());
known.catch(() => {}); // the error is reported in work()

const percent = (p) => (p > 0 && p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
const say = (text) => { $("said").textContent = text; };
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
// Images are drawn on a canvas, because the content security policy forbids data: and blob: URLs.
const bitmap = (text) => createImageBitmap(new Blob([bytes(text)], { type: "image/png" }));

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function paint(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").drawImage(image, 0, 0);
}

async function ask(file, explain) {
  const address = explain === undefined ? "predict" : `predict?explain=${explain}`;
  for (;;) {
    let response;
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      response = await fetch(address, { method: "POST", body: file, headers });
    } catch {
      throw new Error(SILENT);
    }
    if (response.status === 503) {
      await new Promise((done) => setTimeout(done, 1000));
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) {
      throw new Error(typeof answer.detail === "string" ? answer.detail : `the server returned status ${response.status}`);
    }
    return answer;
  }
}

async function receive(item, explain) {
  const answer = await ask(item.file, explain);
  item.heat = await bitmap(answer.heat.png);
  if (!item.picture) item.picture = await bitmap(answer.image.png);
  item.answer = answer;
  item.state = "done";
}

async function work() {
  if (running) return;
  running = true;
  for (let item; (item = items.find((one) => one.state === "waiting")); ) {
    item.state = "busy";
    show();
    try {
      const limit = (await known.catch(() => { throw new Error(SILENT); })).max_bytes;
      if (item.file.size > limit) throw new Error(`larger than the limit of ${limit / 1e6} MB; send a smaller file`);
      await receive(item);
      const best = item.answer.classes[item.answer.predicted];
      say(`${item.name}: ${best.name}, ${percent(best.probability)}`);
    } catch (error) {
      item.state = "failed";
      item.reason = error.message;
    }
    show();
  }
  running = false;
}

function add(files) {
  if (!files.length) return;
  const first = items.length;
  for (const file of files) items.push({ file, name: file.name, state: "waiting" });
  current = items[first];
  document.body.classList.add("compact");
  show();
  work();
}

async function explain(item, place) {
  if (item.busy) return;
  item.busy = true;
  show();
  try {
    await receive(item, place);
    say(`Heat map of ${item.answer.classes[place].name}`);
  } catch (error) {
    item.state = "failed";
    item.reason = error.message;
  }
  item.busy = false;
  show();
}

const STATES = { waiting: "waiting", busy: "reading …", failed: "could not be read" };

function showList() {
  const focused = [...$("list").children].findIndex((one) => one.contains(document.activeElement));
  $("list").replaceChildren(...items.map((item) => {
    const best = item.answer?.classes[item.answer.predicted];
    const thumb = element("canvas", { width: 88, height: 88, ariaHidden: "true" });
    if (item.picture) {
      const { width, height } = item.picture;
      const scale = 88 / Math.max(width, height);
      const [w, h] = [width * scale, height * scale];
      thumb.getContext("2d").drawImage(item.picture, (88 - w) / 2, (88 - h) / 2, w, h);
    }
    const state = best && item.state === "done" ? `${best.name} · ${percent(best.probability)}` : STATES[item.state];
    const text = element("span", { className: "text" },
      element("span", { textContent: item.name, title: item.name }),
      element("span", { className: "state", textContent: state }));
    const button = element("button", { type: "button", className: item.state, onclick: () => { current = item; show(); } }, thumb, text);
    button.setAttribute("aria-current", String(item === current));
    return element("li", {}, button);
  }));
  if (focused >= 0) $("list").children[focused]?.firstChild.focus();
}

function showClasses(item) {
  const { classes, predicted, explained } = item.answer;
  const focused = [...$("classes").children].findIndex((one) => one.contains(document.activeElement));
  $("classes").replaceChildren(...classes.map(({ name, probability }, place) => {
    const fill = element("span", { className: "fill" });
    fill.style.setProperty("--share", `${100 * probability}%`);
    const button = element("button", { type: "button", onclick: () => explain(item, place) },
      element("span", { textContent: name, className: place === predicted ? "first" : "" }),
      element("span", { className: "percent", textContent: percent(probability) }),
      element("span", { className: "track", ariaHidden: "true" }, fill));
    button.setAttribute("aria-pressed", String(place === explained));
    return element("li", {}, button);
  }));
  if (focused >= 0) $("classes").children[focused]?.firstChild.focus();
}

function showDetail(item) {
  const { answer } = item;
  const best = answer.classes[answer.predicted];
  paint($("picture"), item.picture);
  paint($("heat"), item.heat);
  $("picture").setAttribute("aria-label", `Radiograph ${item.name}`);
  $("name").textContent = item.name;
  $("predicted").textContent = best.name;
  $("share").textContent = percent(best.probability);
  $("size").textContent = `${answer.image.width} × ${answer.image.height} pixels`;
  $("explained").textContent = answer.classes[answer.explained].name;
  const { read, classify, explain: heat } = answer.seconds;
  $("time").textContent = [["read", read], ["classes", classify], ["heat map", heat]]
    .map(([what, seconds]) => `${what} ${Math.max(1, Math.round(1000 * seconds))} ms`).join(" · ");
  showClasses(item);
}

function show() {
  $("results").hidden = items.length === 0;
  document.body.classList.toggle("compact", items.length > 0);
  showList();
  const done = current?.state === "done";
  $("detail").hidden = !done;
  $("detail").classList.toggle("busy", Boolean(current?.busy));
  $("problem").hidden = current?.state !== "failed";
  if (done) showDetail(current);
  if (current?.state === "failed") {
    $("problem-name").textContent = current.name;
    $("reason").textContent = current.reason;
  }
}

function strength() {
  $("heat").style.opacity = $("toggle").checked ? $("strength").value / 100 : 0;
  $("strength").disabled = !$("toggle").checked;
}

$("files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = "";
});
$("toggle").addEventListener("change", strength);
$("strength").addEventListener("input", strength);
$("clear").addEventListener("click", () => {
  items.length = 0;
  current = null;
  say("Cleared");
  show();
  $("files").focus();
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  add([...event.dataTransfer.files]);
});
strength();

const about = await known;
$("model").textContent = `${about.models > 1 ? `${about.models} × ` : ""}${about.model} · ${about.preprocessing.size} px · ${about.classes.length} classes`;
$("limits").textContent = `PNG, JPEG, TIFF, BMP or DICOM, 8 or 16 bit, up to ${about.max_bytes / 1e6} MB. Processed in memory, never stored.`;
$("warning").textContent = about.warning ?? "";
