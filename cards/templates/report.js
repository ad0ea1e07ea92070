"use strict";
// The pairs of this page as data, which of them a filter keeps, and the part of the address that says so.

const data = JSON.parse(document.getElementById("pairs-data").textContent);
const criteria = data.criteria.map(([judge, criterion, low, high]) => ({ judge, criterion, low, high }));
const pairs = data.pairs.map((pair, drawn) => {
  const question = data.questions[pair.question];
  const chosen = question.answers[pair.chosen], rejected = question.answers[pair.rejected];
  const others = question.answers.filter((answer) => answer !== chosen && answer !== rejected);
  const words = [question.text, question.reference, chosen.text, rejected.text, question.id, pair.id];
  return { ...pair, drawn, question, chosen, rejected, others, words: words.join("\n").toLowerCase() };
});

const SORTS = {
  "drawn": ["as drawn (by hash)", (pair) => pair.drawn, 1],
  "margin-down": ["margin, widest first", (pair) => pair.margin, -1],
  "margin-up": ["margin, narrowest first", (pair) => pair.margin, 1],
  "score-down": ["chosen score, best first", (pair) => pair.score_chosen, -1],
  "score-up": ["chosen score, worst first", (pair) => pair.score_chosen, 1],
};
const SIDES = {
  "either": ["either", (pair, name) => pair.chosen.model === name || pair.rejected.model === name],
  "chosen": ["chosen", (pair, name) => pair.chosen.model === name],
  "rejected": ["rejected", (pair, name) => pair.rejected.model === name],
};
const RANGES = { score: (pair) => pair.score_chosen, margin: (pair) => pair.margin };
const ANY = [-Infinity, Infinity];
const nothing = () => (
  { q: "", member: "", side: "either", source: "", type: "", score: ANY, margin: ANY, video: false, sort: "drawn" });

// Pairs that a state keeps, in its order. A pair without a number is kept until that number is asked for.
function select(state) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const within = (value, [low, high]) => (value === null ? low === -Infinity && high === Infinity : value >= low && value <= high);
  const kept = pairs.filter((pair) =>
    words.every((word) => pair.words.includes(word)) &&
    (!state.member || SIDES[state.side][1](pair, state.member)) &&
    (!state.source || pair.question.source === state.source) &&
    (!state.type || pair.question.type === state.type) &&
    Object.entries(RANGES).every(([name, value]) => within(value(pair), state[name])) &&
    (!state.video || pair.question.clip !== null));
  const [, value, sign] = SORTS[state.sort];
  return kept.sort((a, b) => {
    const missing = (value(a) === null) - (value(b) === null); // those without a number come last
    return missing || sign * (value(a) - value(b)) || a.drawn - b.drawn;
  });
}

// "#pair=…&member=…": what differs from nothing, and the pair that is open.
function address(state, pair) {
  const said = new URLSearchParams();
  if (pair) said.set("pair", pair.id);
  const plain = nothing();
  for (const [name, value] of Object.entries(state)) {
    if (name in RANGES) {
      if (value !== ANY && (value[0] !== -Infinity || value[1] !== Infinity)) {
        said.set(name, value.map((end) => (Number.isFinite(end) ? String(end) : "")).join(".."));
      }
    } else if (value !== plain[name]) said.set(name, value === true ? "yes" : value);
  }
  return "#" + said;
}

// The state and the pair's id that an address says; null for an address that is an ordinary anchor.
function parse(hash) {
  if (!hash.includes("=")) return null;
  const said = new URLSearchParams(hash.slice(1)), state = nothing();
  for (const name of ["q", "member", "source", "type"]) state[name] = said.get(name) ?? "";
  if (Object.hasOwn(SIDES, said.get("side"))) state.side = said.get("side");
  if (Object.hasOwn(SORTS, said.get("sort"))) state.sort = said.get("sort");
  state.video = said.get("video") === "yes";
  for (const name of Object.keys(RANGES)) {
    const ends = (said.get(name) ?? "").split("..");
    if (ends.length === 2) {
      const [low, high] = ends.map((end) => (end.trim() === "" ? NaN : Number(end)));
      state[name] = [Number.isFinite(low) ? low : -Infinity, Number.isFinite(high) ? high : Infinity];
    }
  }
  return { state, pair: said.get("pair") };
}
