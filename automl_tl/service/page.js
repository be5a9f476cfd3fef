"use strict";
// One page, no library: everything it knows comes from /api, with the token that the link to it carried.

const $ = (id) => document.getElementById(id);
const ENDED = ["finished", "cancelled", "failed"];
const PAGE = 15;
const META = {
  images: "training images", classes: "classes", smallest_class: "of the smallest class", imbalance: "largest to smallest class",
  side: "median side, pixels", colourfulness: "colourfulness, 0–1", contrast: "contrast, 0–1", effective_dimension: "effective dimension",
};
let token = "";
let images = null; // what the next job is about
let watched = null; // the job that is shown: {id, abort, place, trials, winner}

// Small tools

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map((child) => child instanceof Node ? child : String(child)));
  return made;
}

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function table(caption, columns, rows) {
  // columns: [title, class]; rows: {cells, best}
  const head = element("tr", {}, ...columns.map(([title, kind]) => element("th", { scope: "col", class: kind }, title)));
  const body = rows.map((row) => element("tr", { class: row.best ? "best" : null },
    ...row.cells.map((cell, i) => element("td", { class: columns[i][1] }, cell))));
  return element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
}

const figure = (value) => value === null || value === undefined ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
  : Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(3)));
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const seconds = (value) => value < 90 ? `${value.toFixed(value < 10 ? 1 : 0)} s` : `${(value / 60).toFixed(1)} min`;
const settings = (values) => Object.entries(values).map(([name, value]) =>
  `${name.replaceAll("_", " ")} ${typeof value === "number" ? figure(value) : value}`).join(", ");
const scoreOf = (validation) => validation.score ?? validation.accuracy;

function trouble(error) {
  $("trouble").hidden = !error;
  $("trouble").textContent = error ? error.message || String(error) : "";
  if (error) $("trouble").scrollIntoView({ block: "nearest" });
}

/** Runs what a person asked for; what goes wrong is said at the top of the page. */
const trying = (action) => async (...given) => {
  try {
    trouble(null);
    await action(...given);
  } catch (error) {
    if (error.name !== "AbortError") trouble(error);
  }
};

const turns = {};

/** What is asked for again may be answered in another order: tells whether this is still the last time that it was asked for. */
function turn(what) {
  const mine = turns[what] = (turns[what] || 0) + 1;
  return () => turns[what] === mine;
}

// The server

async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  if (options.json !== undefined) {
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(options.json);
  }
  let answer;
  try {
    answer = await fetch(path, { method: options.method || "GET", body: options.body, headers, signal: options.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it running?");
  }
  if (answer.ok) return answer;
  const fault = await answer.json().catch(() => ({ message: `the server answered ${answer.status}` }));
  if (answer.status === 401) forget();
  throw Object.assign(new Error(fault.message), { status: answer.status });
}

const ask = async (path, options) => (await call(path, options)).json();

/** fetch cannot tell how much of an upload is sent; this can. */
function send(path, form, told) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("Authorization", `Bearer ${token}`);
    request.upload.onprogress = (event) => told(event.loaded / event.total);
    request.onerror = () => reject(new Error("The archive could not be sent: the server does not answer, or it is too large."));
    request.onload = () => {
      let facts = {};
      try { facts = JSON.parse(request.responseText); } catch { facts = { message: `the server answered ${request.status}` }; }
      if (request.status === 401) forget();
      if (request.status < 300) resolve(facts); else reject(new Error(facts.message));
    };
    request.send(form);
  });
}

/** Server-sent events with the token in a header, which EventSource cannot do; goes on after an interruption. */
async function watch(job, heard) {
  for (;;) {
    try {
      const answer = await call(`/api/jobs/${job.id}/events`, { signal: job.abort.signal, headers: { "Last-Event-ID": String(job.place) } });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const fields = Object.fromEntries(part.split("\n").filter((line) => !line.startsWith(":")).map((line) => line.split(/: (.*)/s)));
          if (!fields.data) continue;
          job.place = Number(fields.id);
          heard(fields.event, JSON.parse(fields.data));
        }
      }
      if (ENDED.includes(job.state)) return;
    } catch (error) {
      if (error.name === "AbortError" || error.status) throw error;
      $("step").textContent = "The connection is lost; trying again …";
    }
    await new Promise((later) => setTimeout(later, 1000));
  }
}

// Coming in

async function enter(given) {
  token = given;
  await call("/api/jobs?limit=1");
  sessionStorage.setItem("automl_tl.token", token);
  $("entry").hidden = true;
  $("work").hidden = false;
  await Promise.all([showJobs(), showHistory()]);
  const job = new URLSearchParams(location.hash.slice(1)).get("job");
  if (job) await showJob(job);
}

function forget() {
  sessionStorage.removeItem("automl_tl.token");
  $("entry").hidden = false;
  $("work").hidden = true;
  $("token").focus();
}

async function start() {
  const given = new URLSearchParams(location.hash.slice(1));
  const carried = given.get("token");
  if (carried) { // out of the address bar: it would be in every screenshot
    given.delete("token");
    history.replaceState(null, "", location.pathname + (String(given) ? `#${given}` : ""));
  }
  const known = carried || sessionStorage.getItem("automl_tl.token");
  if (known) await enter(known); else forget();
}

// Images

async function sendArchive(file) {
  if (!file) return;
  const form = new FormData();
  form.append("archive", file);
  $("sending").hidden = false;
  try {
    const dataset = await send("/api/datasets", form, (share) => { $("sending").value = share; });
    const classes = Object.keys(dataset.classes);
    const over = dataset.passed_over ? `, ${dataset.passed_over} other files passed over` : "";
    take({ dataset: dataset.id }, `${dataset.name}: ${dataset.images} images of ${classes.length} classes (${classes.slice(0, 6).join(", ")}${classes.length > 6 ? ", …" : ""})${over}`);
  } finally {
    $("sending").hidden = true;
    $("sending").value = 0;
    $("archive").value = "";
  }
}

function take(what, words) {
  images = what;
  $("taken").textContent = words;
  $("ask").hidden = false;
}

async function begin(kind) {
  if (!images) throw new Error("Give images first: drop a zip.");
  const request = { kind, images };
  if (kind === "fit") request.budget = $("budget").value;
  const job = await ask("/api/jobs", { method: "POST", json: request });
  await showJob(job.id);
}

// One job

async function showJob(id) {
  const last = turn("job");
  const facts = await ask(`/api/jobs/${id}`);
  if (!last()) return;
  if (watched) watched.abort.abort();
  const job = { id, kind: facts.kind, abort: new AbortController(), place: 0, trials: new Map(), winner: null, state: facts.state };
  watched = job;
  history.replaceState(null, "", `#job=${id}`);
  for (const part of ["outcome", "trials", "ranking", "profile", "report"]) $(part).hidden = true;
  $("predictions").replaceChildren();
  $("read").setAttribute("aria-expanded", "false");
  $("job-title").textContent = `${{ fit: "Training", recommend: "Advice", profile: "Profile" }[facts.kind]} · ${facts.name}`;
  $("job").hidden = false;
  $("job-title").focus({ preventScroll: true }); // what was pressed may be hidden now
  showState(job, facts.state, facts.error);
  $("job").scrollIntoView();
  await watch(job, (event, told) => { if (watched === job) hear(job, event, told); });
  if (watched === job) await showResult(job);
}

function hear(job, event, told) {
  if (event === "state") {
    showState(job, told.state, told.error || told.note);
    showJobs().catch(trouble);
  } else if (event === "progress") {
    $("step").textContent = told.step;
    if (told.total) { $("bar").max = told.total; $("bar").value = told.done; } else $("bar").removeAttribute("value");
  } else if (event === "advice") {
    $("job-title").textContent = $("job-title").textContent.replace(/· .*/, `· ${told.task.name}`);
    showProfile(told.profile, told.task);
    showRanking(told);
  } else if (event === "trial") {
    job.trials.set(told.id, { ...job.trials.get(told.id), ...told, curve: told.curve.length ? told.curve : job.trials.get(told.id)?.curve || [] });
    showTrials(job);
  } else if (event === "epoch") {
    const trial = job.trials.get(told.id);
    if (!trial) return;
    trial.curve = [...trial.curve.filter((point) => point.epoch < told.epoch), told];
    $("step").textContent = `training: ${trial.candidate.strategy} on ${trial.candidate.backbone}, epoch ${figure(told.epoch)}, score ${percent(told.score)}`;
    showTrials(job);
  }
}

function showState(job, state, note) {
  job.state = state;
  $("state").textContent = state;
  $("state").className = `state ${state}`;
  $("cancel").hidden = ENDED.includes(state) || state === "cancelling";
  $("resume").hidden = !(state === "cancelled" || state === "failed");
  $("bar").hidden = ENDED.includes(state);
  if (state === "queued") { $("bar").value = 0; $("step").textContent = "waiting for its turn"; } else if (state === "running") $("bar").removeAttribute("value");
  if (ENDED.includes(state)) $("step").textContent = "";
  $("spot").textContent = note || "";
}

async function showResult(job) {
  const facts = await ask(`/api/jobs/${job.id}`);
  const result = facts.result;
  if (!result || watched !== job) return;
  if (result.profile) showProfile(result.profile, result.task);
  if (result.ranking) showRanking(result);
  if (!result.winner || !facts.model) return;
  const { winner } = result;
  job.winner = winner.id;
  for (const trial of result.trials) job.trials.set(trial.id, trial);
  showTrials(job);
  const tested = winner.test.accuracy;
  $("said").textContent = `${winner.candidate.strategy} on ${winner.candidate.backbone} is recommended: it classifies ` +
    `${percent(tested ?? winner.validation.accuracy)} of the ${tested === undefined ? "validation" : "test"} images correctly.`;
  const done = result.trials.filter((trial) => trial.status === "finished").length;
  keyFigures("scores", [
    ["validation accuracy", percent(winner.validation.accuracy)], ["test accuracy", tested === undefined ? "no test images" : percent(tested)],
    ["trials to the end", `${done} of ${result.trials.length}`], ["time spent", seconds(result.seconds)],
  ]);
  $("read").hidden = !facts.report;
  $("outcome").hidden = false;
  await showHistory();
}

function keyFigures(id, pairs) {
  $(id).replaceChildren(...pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function showProfile(profile, task) {
  const pairs = Object.entries(META).filter(([name]) => name in profile.meta).map(([name, words]) => [words, figure(profile.meta[name])]);
  keyFigures("figures", pairs);
  const shown = profile.warnings.slice(0, 10).map((text) => element("li", {}, text));
  if (profile.warnings.length > 10) shown.push(element("li", {}, `and ${profile.warnings.length - 10} more`));
  $("warnings").replaceChildren(...shown);
  const near = Object.entries(profile.distances).filter(([, scores]) => "frechet" in scores).sort((a, b) => a[1].frechet - b[1].frechet);
  const most = Math.max(...near.map(([, scores]) => scores.frechet), 1e-9);
  const rows = near.map(([source, scores]) => {
    const bar = element("i", { "aria-hidden": "true" });
    bar.style.width = `${100 * scores.frechet / most}%`;
    return { cells: [source, figure(scores.frechet), bar] };
  });
  const caption = "How far the sources of the networks are (Fréchet distance; smaller is closer)";
  $("distances").replaceChildren(...(rows.length ? [table(caption, [["source", ""], ["distance", "n"], ["", "track"]], rows)] : []));
  $("profile").hidden = false;
}

function showRanking(advice) {
  $("basis").textContent = `From ${advice.basis}; the first of ${advice.candidates} candidates${advice.stage === 1 ? ", by numbers alone" : ""}.`;
  const known = advice.ranking.some((item) => item.low > 0 || item.high < 1);
  const rows = advice.ranking.slice(0, 6).map((item, place) => ({
    best: place === 0,
    cells: [place + 1, element("span", {}, `${item.candidate.strategy} on ${item.candidate.backbone}`, element("br"), element("span", { class: "thin" }, settings(item.candidate.hyperparameters))),
      known ? `${percent(item.score)} (${Math.round(100 * item.low)}–${Math.round(100 * item.high)})` : "–", seconds(item.seconds), item.reasons.join("; ")],
  }));
  $("ranking-table").replaceChildren(table("Best first, with what is expected", [["", ""], ["candidate", ""], ["accuracy (90 %)", "n"], ["time", "n"], ["why", "why"]], rows));
  $("ranking").hidden = false;
}

function showTrials(job) {
  const trials = [...job.trials.values()];
  const scored = trials.filter((trial) => trial.curve.length);
  const top = job.winner || scored.reduce((best, trial) => !best || lastScore(trial) > lastScore(best) ? trial : best, null)?.id;
  const rows = trials.map((trial, number) => ({
    best: trial.id === top,
    cells: [number + 1, `${trial.candidate.strategy} on ${trial.candidate.backbone}`, trial.error || trial.status,
      scoreOf(trial.validation) !== undefined ? percent(scoreOf(trial.validation)) : trial.curve.length ? percent(lastScore(trial)) : "", trial.seconds ? seconds(trial.seconds) : ""],
  }));
  $("trial-table").replaceChildren(table("What was trained", [["", ""], ["candidate", ""], ["status", ""], ["score", "n"], ["time", "n"]], rows));
  $("curves").replaceChildren(...(scored.some((trial) => trial.curve.length > 1) ? [curves(scored, top)] : []));
  $("trials").hidden = false;
}

const lastScore = (trial) => Math.max(...trial.curve.map((point) => point.score));

function curves(trials, top) {
  const [left, right, up, down] = [40, 590, 10, 190];
  const end = Math.max(...trials.flatMap((trial) => trial.curve.map((point) => point.epoch)), 1);
  const low = Math.min(...trials.flatMap((trial) => trial.curve.map((point) => point.score)));
  const floor = Math.max(0, Math.floor(10 * low - 0.5) / 10);
  const x = (epoch) => left + (right - left) * epoch / end;
  const y = (score) => down - (down - up) * (score - floor) / (1 - floor);
  const picture = drawn("svg", { viewBox: "0 0 620 220", role: "img", "aria-label": `Score after each epoch of ${trials.length} trials, from ${percent(floor)} to 100 %` });
  for (let step = 0; step <= 4; step += 1) {
    const score = floor + (1 - floor) * step / 4;
    const label = drawn("text", { x: 0, y: y(score) + 4 });
    label.textContent = `${Math.round(100 * score)} %`;
    picture.append(drawn("line", { x1: left, x2: right, y1: y(score), y2: y(score) }), label);
  }
  const name = drawn("text", { x: right - 60, y: 212 });
  name.textContent = `epoch ${figure(end)}`;
  picture.append(name);
  for (const trial of [...trials].sort((a, b) => (a.id === top) - (b.id === top))) {
    const kind = trial.id === top ? "best" : "other";
    const points = trial.curve.map((point) => `${x(point.epoch).toFixed(1)},${y(point.score).toFixed(1)}`);
    if (points.length > 1) picture.append(drawn("polyline", { class: kind, points: points.join(" ") }));
    else picture.append(drawn("circle", { class: kind, cx: x(trial.curve[0].epoch), cy: y(trial.curve[0].score), r: 3 }));
  }
  return picture;
}

function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function readReport() {
  const job = watched;
  const frame = $("report");
  const open = frame.hidden;
  if (open) {
    const text = await (await call(`/api/jobs/${job.id}/report`)).text();
    if (watched !== job) return;
    // in a frame without an address, #trials alone would be a part of this page; base-uri forbids a <base>
    frame.srcdoc = text.replace(/(<a\b[^>]*\shref=")#/g, "$1about:srcdoc#");
  }
  frame.hidden = !open;
  $("read").setAttribute("aria-expanded", String(open));
}

async function predict(files) {
  const job = watched;
  const chosen = [...files];
  $("pictures").value = ""; // the same may be chosen again
  if (!chosen.length) return;
  const form = new FormData();
  for (const file of chosen) form.append("images", file);
  const told = await ask(`/api/models/${job.id}/predictions`, { method: "POST", body: form });
  if (watched !== job) return;
  $("predictions").replaceChildren(...told.predictions.map((one, number) => {
    const order = one.probabilities.map((share, i) => [share, told.classes[i]]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const bars = order.flatMap(([share, name]) => {
      const bar = element("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${100 * share}%`;
      return [`${name} ${percent(share)}`, bar];
    });
    const shown = element("img", { src: URL.createObjectURL(chosen[number]), alt: one.name });
    shown.addEventListener("load", () => URL.revokeObjectURL(shown.src), { once: true });
    return element("li", {}, shown, element("div", {}, element("strong", {}, one.label), ...bars));
  }));
}

async function download() {
  const { id } = watched;
  save(await (await call(`/api/models/${id}/archive`)).blob(), `model-${id}.zip`);
}

async function resume() {
  const job = watched;
  await ask(`/api/jobs/${job.id}/resume`, { method: "POST" });
  if (watched === job) await showJob(job.id);
}

// All jobs, and the history

async function showJobs() {
  const last = turn("jobs");
  const { items, total } = await ask("/api/jobs?limit=10");
  if (!last()) return;
  const rows = items.map((job) => ({
    cells: [new Date(1000 * job.created).toLocaleString(), job.kind, job.name, job.before ? `${job.state}, ${job.before} before it` : job.state,
      element("button", { class: "plain", type: "button", "aria-label": `Show ${job.kind} ${job.id}`, "data-job": job.id, onclick: trying(() => showJob(job.id)) }, "Show")],
  }));
  const held = $("job-table").contains(document.activeElement) ? document.activeElement.dataset.job : undefined;
  $("job-table").replaceChildren(rows.length ? table(total > items.length ? `The newest ${items.length} of ${total}` : "Newest first", [["asked for", ""], ["what", ""], ["images", ""], ["state", ""], ["", ""]], rows)
    : element("p", { class: "note" }, "None yet."));
  if (held) ($("job-table").querySelector(`[data-job="${held}"]`) || $("job-table")).focus({ preventScroll: true });
}

let offset = 0;
let names = null;

async function showHistory() {
  const last = turn("history");
  const query = new URLSearchParams({ search: $("words").value, limit: PAGE, offset });
  const found = await ask(`/api/history/trials?${query}`);
  if (!names || found.items.some((trial) => !names.has(trial.task))) {
    names = new Map((await ask("/api/history/tasks")).items.map((task) => [task.fingerprint, task.name]));
  }
  if (!last()) return;
  const rows = found.items.map((trial) => ({
    cells: [names.get(trial.task) || trial.task, trial.candidate.backbone, trial.candidate.strategy, trial.error || trial.status,
      scoreOf(trial.validation) === undefined ? "" : percent(scoreOf(trial.validation)), seconds(trial.seconds)],
  }));
  const columns = [["task", ""], ["backbone", ""], ["strategy", ""], ["status", ""], ["score", "n"], ["time", "n"]];
  $("history-table").replaceChildren(table("What was tried, newest first", columns, rows));
  $("found").textContent = found.total ? `${offset + 1}–${offset + rows.length} of ${found.total.toLocaleString("en")} trials` : "No trial matches.";
  $("newer").disabled = offset === 0;
  $("older").disabled = offset + PAGE >= found.total;
}

// What a person does

function droppable(zone, action) {
  for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => { event.preventDefault(); action(event.dataTransfer.files); });
}

document.addEventListener("DOMContentLoaded", trying(async () => {
  $("entry").addEventListener("submit", trying(async (event) => { event.preventDefault(); await enter($("token").value.trim()); }));
  $("archive").addEventListener("change", trying(() => sendArchive($("archive").files[0])));
  droppable($("drop"), trying((files) => sendArchive(files[0])));
  $("folder").addEventListener("submit", trying(async (event) => { event.preventDefault(); take({ path: $("path").value }, `${$("path").value}, on the server`); }));
  $("ask").addEventListener("submit", trying(async (event) => { event.preventDefault(); await begin("fit"); }));
  $("advise").addEventListener("click", trying(() => begin("recommend")));
  $("cancel").addEventListener("click", trying(() => ask(`/api/jobs/${watched.id}/cancel`, { method: "POST" })));
  $("resume").addEventListener("click", trying(resume));
  $("read").addEventListener("click", trying(readReport));
  $("download").addEventListener("click", trying(download));
  $("pictures").addEventListener("change", trying(() => predict($("pictures").files)));
  droppable($("pictures-drop"), trying(predict));
  let typed = 0;
  $("words").addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(trying(async () => { offset = 0; await showHistory(); }), 250); });
  $("search").addEventListener("submit", (event) => event.preventDefault());
  $("older").addEventListener("click", trying(() => { offset += PAGE; return showHistory(); }));
  $("newer").addEventListener("click", trying(() => { offset = Math.max(0, offset - PAGE); return showHistory(); }));
  addEventListener("hashchange", trying(async () => { // a link that was pasted into the open page, or the back button
    const given = new URLSearchParams(location.hash.slice(1));
    const job = given.get("job");
    if (given.has("token")) await start();
    else if (token && job && job !== watched?.id) await showJob(job);
  }));
  await start();
}));
