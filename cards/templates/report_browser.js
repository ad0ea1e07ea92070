// The browser of pairs: fields, list and the open pair. Every text goes into the page as text, never as HTML.

const find = (id) => document.getElementById(id);
const section = find("pairs"), list = find("pair-list"), detail = find("pair"), shownText = find("shown");
const search = find("filter-q"), help = find("keys"), filters = find("filters");
const LIMITS = {}, rows = new Map();
let state = nothing(), shown = [], open = null, begun = false, addressTimer = 0;

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const count = (value) => value.toLocaleString("en");
const number = (value) => (value === null ? "not measured" : value.toFixed(2));
const text = (words, name = "") => make("span", { class: `text ${name}`, dir: "auto" }, words || "(empty)");

// --- the open pair -------------------------------------------------------------------------------------------------

function player(pair) {
  const clip = pair.question.clip;
  if (clip === null) return make("p", { class: "no-clip" }, data.reasons[pair.question.why] ?? data.reasons.absent);
  const video = make("video", { loop: "", playsinline: "", preload: "auto", "aria-label": `clip: ${pair.question.text}` });
  const button = make("button", { type: "button", "aria-label": "play", "aria-keyshortcuts": "Space" });
  const seek = make("input", { type: "range", min: 0, max: 1, step: "any", value: 0, "aria-label": "place in the clip" });
  const wide = make("button", { type: "button", class: "wide-screen", "aria-label": "full screen" });
  const time = make("span", { class: "time" }, "0.0 s"), box = make("div", { class: "player" }, video);
  const seconds = () => (Number.isFinite(video.duration) ? video.duration : 0);
  const paint = () => {
    box.classList.toggle("playing", !video.paused);
    button.setAttribute("aria-label", video.paused ? "play" : "pause");
    if (document.activeElement !== seek || !video.paused) seek.value = seconds() ? video.currentTime / seconds() : 0;
    seek.setAttribute("aria-valuetext", `${video.currentTime.toFixed(1)} of ${seconds().toFixed(1)} seconds`);
    time.textContent = `${video.currentTime.toFixed(1)} / ${seconds().toFixed(1)} s`;
    if (!video.paused && box.isConnected) requestAnimationFrame(paint);
  };
  video.muted = true;
  video.addEventListener("loadedmetadata", () => { video.classList.toggle("tiny", video.videoWidth < 160); paint(); });
  for (const name of ["play", "pause", "seeked"]) video.addEventListener(name, paint);
  video.addEventListener("error", () => box.replaceWith(make("p", { class: "no-clip" }, "This browser cannot play the clip.")));
  for (const each of [video, button]) each.addEventListener("click", toggle);
  seek.addEventListener("input", () => { video.currentTime = seconds() * Number(seek.value); });
  wide.addEventListener("click", () => video.requestFullscreen?.().catch(() => {}));
  box.append(make("div", { class: "controls" }, button, seek, time, wide));
  video.src = "data:video/mp4;base64," + find(`clip-${clip}`).textContent;
  return box;
}

function scoreTable(answer) {
  if (!answer.scores.length) return null;
  const table = make("dl", { class: "judged" });
  for (const [place, value, note] of answer.scores) {
    const { judge, criterion, low, high } = criteria[place];
    const unit = low === 0 && high === 1;
    const bar = make("i");
    bar.style.width = value === null ? 0 : `${100 * Math.min(1, Math.max(0, (value - low) / (high - low)))}%`;
    const figure = value === null ? "no score" : unit ? value.toFixed(2) : String(Number(value.toFixed(2)));
    table.append(make("div", { title: `${judge}, ${criterion}, range ${low} to ${high}` },
      make("dt", {}, `${judge} · ${criterion}`, unit ? null : make("small", {}, ` ${low}–${high}`)),
      make("dd", { class: "bar", "aria-hidden": "true" }, bar), make("dd", { class: "value" }, figure)));
    if (note) table.append(make("div", { class: "reason" }, make("dd", {}, text(note))));
  }
  return table;
}

function answerCard(side, answer, score) {
  return make("section", { class: `answer-card ${side}`, "aria-label": `${side} answer` },
    make("h4", {}, side, make("span", { class: "model" }, answer.model), make("b", { class: "total" }, number(score))),
    make("p", { class: answer.text.length > 160 ? "said long" : "said" }, text(answer.text)),
    make("div", {}, scoreTable(answer) ?? "", answer.flags.length ? make("p", { class: "flags" }, `flags: ${answer.flags.join(", ")}`) : ""));
}

function otherAnswers(pair) {
  if (!pair.others.length) return null;
  const items = pair.others.map((answer) => make("li", {},
    make("div", { class: "other" }, text(answer.text), make("span", { class: "model" }, answer.model),
      make("b", {}, number(answer.score))),
    scoreTable(answer)));
  const word = pair.others.length === 1 ? "1 other answer" : `${pair.others.length} other answers`;
  return make("details", { class: "others" }, make("summary", {}, word), make("ol", {}, ...items));
}

function facts(pair) {
  const { question } = pair, said = make("dl", { class: "facts" });
  const add = (name, value) => value && said.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  add("reference", question.reference && text(question.reference));
  add("margin", number(pair.margin));
  add("type", question.type);
  add("source", question.source);
  add("licence", question.license);
  add("question", make("code", {}, question.id));
  add("pair", make("a", { href: `#pair=${pair.id}`, title: "a link to this pair" }, make("code", {}, pair.id)));
  return said;
}

let othersOpen = false;
function render() {
  const place = shown.indexOf(open);
  find("place").textContent = open ? `${count(place + 1)} of ${count(shown.length)}` : "";
  find("previous").disabled = place <= 0;
  find("next").disabled = place < 0 || place === shown.length - 1;
  if (!open) {
    detail.replaceChildren(make("p", { class: "none" }, "No pair matches. Esc clears the filters."));
    return;
  }
  const others = otherAnswers(open);
  if (others) {
    others.open = othersOpen;
    others.addEventListener("toggle", () => { othersOpen = others.open; });
  }
  detail.replaceChildren(...[
    make("h3", {}, text(open.question.text)),
    make("div", { class: "seen" }, player(open), facts(open)),
    make("div", { class: "cards" }, answerCard("chosen", open.chosen, open.score_chosen),
      answerCard("rejected", open.rejected, open.score_rejected)),
    others].filter(Boolean));
}

// --- the list ------------------------------------------------------------------------------------------------------

function row(pair) {
  if (!rows.has(pair)) {
    const line = make("li", { id: `option-${pair.id}`, role: "option", "aria-selected": "false" },
      make("span", { class: "q" }, text(pair.question.text), make("span", { class: "m", title: "margin" }, pair.margin === null ? "" : pair.margin.toFixed(2))),
      make("span", { class: "a chosen" }, text(pair.chosen.text), make("span", { class: "m" }, pair.chosen.model)),
      make("span", { class: "a rejected" }, text(pair.rejected.text), make("span", { class: "m" }, pair.rejected.model)));
    line.addEventListener("click", () => show(pair));
    rows.set(pair, line);
  }
  return rows.get(pair);
}

function show(pair) {
  if (open) rows.get(open)?.setAttribute("aria-selected", "false");
  open = pair;
  if (pair) {
    const line = row(pair);
    line.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", line.id);
    const above = line.offsetTop - list.scrollTop, below = above + line.offsetHeight - list.clientHeight;
    if (above < 0) list.scrollTop += above; // of the list alone: the page stays where it is
    else if (below > 0) list.scrollTop += below;
  } else list.removeAttribute("aria-activedescendant");
  render();
  if (!begun) return; // nobody has chosen anything yet
  clearTimeout(addressTimer); // browsers refuse an address that changes too often
  addressTimer = setTimeout(() => history.replaceState(null, "", address(state, open)), 120);
}

function refresh(wanted = open) {
  shown = select(state);
  list.replaceChildren(...shown.map(row));
  list.scrollTop = 0;
  const all = pairs.length === 1 ? "1 pair" : `${count(pairs.length)} pairs`;
  shownText.textContent = `${count(shown.length)} of ${all}`;
  find("clear").hidden = address({ ...state, sort: nothing().sort }, null) === "#";
  show(shown.includes(wanted) ? wanted : shown[0] ?? null);
}

// --- the fields ----------------------------------------------------------------------------------------------------

function options(field, entries) {
  field.append(...entries.map(([value, words]) => make("option", { value }, words)));
}
const named = (values) => [["", "any"], ...[...new Set(values)].filter(Boolean).sort().map((value) => [value, value])];

function rangeField(name, place, words) {
  const values = pairs.map(RANGES[name]).filter((value) => value !== null);
  if (!values.length) return;
  const low = Math.min(0, Math.floor(values.reduce((a, b) => Math.min(a, b))));
  const high = Math.max(1, Math.ceil(values.reduce((a, b) => Math.max(a, b))));
  const ends = [0, 100].map((value, end) => make("input",
    { type: "range", min: 0, max: 100, value, "aria-label": `${end ? "highest" : "lowest"} ${words.toLowerCase()}`, id: `filter-${name}-${end ? "high" : "low"}` }));
  const said = make("output");
  const value = (step) => Number((low + (step / 100) * (high - low)).toFixed(4));
  const bins = new Array(20).fill(0), space = "http://www.w3.org/2000/svg";
  for (const each of values) bins[Math.min(19, Math.floor((20 * (each - low)) / (high - low)))] += 1;
  const drawing = document.createElementNS(space, "svg"), most = bins.reduce((a, b) => Math.max(a, b));
  drawing.setAttribute("viewBox", "0 0 100 20");
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("aria-hidden", "true");
  const bars = bins.map((count, bin) => {
    const bar = document.createElementNS(space, "rect"), height = count ? Math.max(1.5, (20 * count) / most) : 0;
    for (const [key, size] of Object.entries({ x: 5 * bin + 0.4, y: 20 - height, width: 4.2, height })) bar.setAttribute(key, size);
    return bar;
  });
  drawing.append(...bars);
  const paint = () => {
    const [from, to] = ends.map((end) => Number(end.value));
    said.textContent = `${value(from).toFixed(2)} – ${value(to).toFixed(2)}`;
    bars.forEach((bar, bin) => bar.classList.toggle("out", 5 * bin + 5 <= from || 5 * bin >= to));
    ends.forEach((end) => end.setAttribute("aria-valuetext", value(Number(end.value)).toFixed(2)));
    ends[0].style.zIndex = from > 50 ? 2 : 1; // both at the right end: the left one can still be taken hold of
  };
  ends.forEach((end, which) => end.addEventListener("input", () => {
    const other = Number(ends[1 - which].value);
    if (which ? Number(end.value) < other : Number(end.value) > other) end.value = other;
    const [from, to] = ends.map((each) => Number(each.value));
    state[name] = [from === 0 ? -Infinity : value(from), to === 100 ? Infinity : value(to)];
    paint();
    refresh();
  }));
  LIMITS[name] = () => {
    const steps = state[name].map((each) => Math.round((100 * (each - low)) / (high - low)));
    ends[0].value = Math.max(0, Math.min(100, steps[0]));
    ends[1].value = Math.max(0, Math.min(100, steps[1]));
    paint();
  };
  place.append(make("legend", {}, words, said), make("div", { class: "track" }, drawing, ...ends));
  place.hidden = false;
}

function fillFields() {
  search.value = state.q;
  for (const name of ["member", "side", "source", "type", "sort"]) {
    const field = find(`filter-${name}`);
    field.value = state[name];
    if (field.selectedIndex < 0) { // a name of another run
      state[name] = nothing()[name];
      field.value = state[name];
    }
  }
  find("filter-side").disabled = !state.member;
  find("filter-video").checked = state.video;
  for (const name of Object.keys(RANGES)) if (LIMITS[name]) LIMITS[name]();
}

function clearFilters() {
  state = { ...nothing(), sort: state.sort };
  fillFields();
  refresh();
}

function follow() { // the address
  const said = parse(location.hash);
  if (!said) return false;
  state = said.state;
  fillFields();
  const wanted = pairs.find((pair) => pair.id === said.pair || pair.question.id === said.pair);
  refresh(wanted);
  if (said.pair && !wanted) shownText.textContent += `; the pair “${said.pair}” is not on this page`;
  section.scrollIntoView({ behavior: "instant" });
  return true;
}

// --- keys ----------------------------------------------------------------------------------------------------------

function engaged() { // the reader looks at this section
  const { top, bottom } = section.getBoundingClientRect(), middle = innerHeight / 2;
  return section.contains(document.activeElement) || (document.activeElement === document.body && top < middle && bottom > middle);
}

function step(by) {
  if (!engaged()) section.scrollIntoView({ behavior: "instant" });
  list.focus({ preventScroll: true });
  const place = shown.indexOf(open) + by;
  if (place < 0 || place >= shown.length) return;
  show(shown[place]);
  if (detail.getBoundingClientRect().top < 0) detail.scrollIntoView({ behavior: "instant" }); // a new pair from its top
}

function toggle() {
  const video = detail.querySelector("video");
  if (video) video.paused ? video.play().catch(() => {}) : video.pause();
}

function pressed(event) {
  const { key, target } = event, is = (names) => target instanceof Element && target.matches(names);
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const ours = (action) => { event.preventDefault(); action(); };
  if (help.open) return key === "?" ? ours(() => help.close()) : undefined; // Esc closes a dialog by itself
  if (key === "Escape" && !is("select")) {
    return ours(() => { if (section.contains(target)) list.focus({ preventScroll: true }); clearFilters(); });
  }
  if (is("input[type=search]")) return key === "Enter" ? ours(() => list.focus({ preventScroll: true })) : undefined;
  if (is("select")) return undefined; // letters choose an option
  if (key === "/") return ours(() => { search.focus(); search.select(); });
  if (key === "?") return ours(() => help.showModal());
  if (key === "j") return ours(() => step(1));
  if (key === "k") return ours(() => step(-1));
  if (!engaged() || is("input")) return undefined;
  if (key === " " && !is("button, a, summary")) return ours(toggle);
  if (key === "ArrowDown" || key === "ArrowRight") return ours(() => step(1));
  if (key === "ArrowUp" || key === "ArrowLeft") return ours(() => step(-1));
  if (target === list && (key === "Home" || key === "End")) return ours(() => step(key === "Home" ? -shown.indexOf(open) : shown.length - 1 - shown.indexOf(open)));
  return undefined;
}

// --- begin ---------------------------------------------------------------------------------------------------------

if (pairs.length) {
  options(find("filter-member"), named(pairs.flatMap((pair) => [pair.chosen.model, pair.rejected.model])));
  options(find("filter-side"), Object.entries(SIDES).map(([value, [words]]) => [value, words]));
  options(find("filter-source"), named(pairs.map((pair) => pair.question.source)));
  options(find("filter-type"), named(pairs.map((pair) => pair.question.type)));
  options(find("filter-sort"), Object.entries(SORTS).map(([value, [words]]) => [value, words]));
  rangeField("score", find("range-score"), "Chosen score");
  rangeField("margin", find("range-margin"), "Margin");
  find("video-only").hidden = pairs.every((pair) => pair.question.clip !== null);
  for (const name of ["member", "side", "source", "type", "sort"]) {
    find(`filter-${name}`).addEventListener("change", (event) => { state[name] = event.target.value; fillFields(); refresh(); });
  }
  search.addEventListener("input", () => { state.q = search.value; refresh(); });
  find("filter-video").addEventListener("change", (event) => { state.video = event.target.checked; refresh(); });
  find("clear").addEventListener("click", clearFilters);
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  find("show-keys").addEventListener("click", () => help.showModal());
  find("close-keys").addEventListener("click", () => help.close());
  document.addEventListener("keydown", pressed);
  window.addEventListener("hashchange", follow);
  if (matchMedia("(max-width: 720px)").matches) filters.open = false;
  find("browser").hidden = false;
  if (!follow()) {
    fillFields();
    refresh();
  }
  begun = true;
}
