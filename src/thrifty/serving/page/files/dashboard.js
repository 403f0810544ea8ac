// What /metrics tells, every second while it is looked at.

import { key } from "./settings.js";
import { ask } from "./stream.js";

const field = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const KEPT = 120;
const LATENCIES = {
  time_to_first_token_seconds: "to the first token",
  inter_token_latency_seconds: "between tokens",
  request_time_per_output_token_seconds: "a later token, by request",
  request_queue_time_seconds: "in the queue",
  e2e_request_latency_seconds: "whole answers",
};

/** Prometheus' text as a list of {name, labels, value}. */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([\w:]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}

/** The q-th quantile of a histogram's buckets [[bound, count up to it], …], by lines between bounds; null without any. */
export function quantile(buckets, q) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return null;
  let [low, before] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= q * total) return bound === Infinity ? low : low + ((bound - low) * (q * total - before)) / (count - before || 1);
    [low, before] = [bound, count];
  }
  return low;
}

export class Dashboard {
  constructor(notice, model) {
    this.notice = notice;
    this.model = model;
    this.rates = [];
    this.before = null;
    this.timer = null;
  }

  show(isShown) {
    clearInterval(this.timer);
    this.timer = isShown ? setInterval(() => this.update(), 1000) : null;
    if (isShown) this.update();
  }

  async update() {
    try {
      const samples = parse(await (await ask("/metrics", key())).text());
      this.draw(samples.filter(({ labels }) => !labels.model_name || labels.model_name === this.model()));
    } catch (error) {
      this.notice(error.message);
    }
  }

  draw(samples) {
    const value = (name) => samples.find((sample) => sample.name === name)?.value ?? null;
    this.remember(value("vllm:generation_tokens_total") ?? 0);
    const [queries, hits] = [value("vllm:prefix_cache_queries_total"), value("vllm:prefix_cache_hits_total")];
    const share = value("vllm:kv_cache_usage_perc");
    tiles({
      running: value("vllm:num_requests_running") ?? "–",
      waiting: value("vllm:num_requests_waiting") ?? "–",
      "waiting for memory": value("vllm:num_requests_swapped") ?? "–",
      "of the budget": share === null ? "no budget" : `${Math.round(share * 100)} %`,
      "prompt tokens cached": queries ? `${Math.round((100 * hits) / queries)} %` : "–",
      "on disk": bytes(value("thrifty:disk_bytes") ?? 0),
    });
    memory(samples.filter((sample) => sample.name === "thrifty:memory_bytes" && sample.value > 0), value("thrifty:memory_budget_bytes"));
    latencies(samples);
    curve(this.rates);
  }

  remember(tokens) {
    const now = performance.now();
    if (this.before) this.rates.push(Math.max(0, ((tokens - this.before.tokens) * 1000) / (now - this.before.now)));
    this.before = { tokens, now };
    this.rates = this.rates.slice(-KEPT);
  }
}

function tiles(values) {
  field("tiles").replaceChildren(...Object.entries(values).map(([name, value]) => {
    const [box, term, told] = ["div", "dt", "dd"].map((kind) => document.createElement(kind));
    term.textContent = name;
    told.textContent = value;
    box.append(term, told);
    return box;
  }));
}

function memory(samples, budget) {
  const largest = budget ?? Math.max(1, ...samples.map((sample) => sample.value));
  const box = document.createElement("div");
  box.className = "bars";
  for (const { labels, value } of samples.sort((a, b) => b.value - a.value)) {
    const [name, told] = [document.createElement("span"), document.createElement("span")];
    name.textContent = labels.owner;
    told.textContent = bytes(value);
    const bar = drawing("0 0 100 4", ["rect", { class: "back", width: 100, height: 4 }],
      ["rect", { class: "bar", width: Math.max(0.5, (100 * value) / largest), height: 4 }]);
    box.append(name, bar, told);
  }
  field("memory").replaceChildren(box);
}

function latencies(samples) {
  const rows = Object.entries(LATENCIES).map(([name, label]) => {
    const own = samples.filter((sample) => sample.name === `vllm:${name}_bucket`);
    const buckets = own.map(({ labels, value }) => [labels.le === "+Inf" ? Infinity : Number(labels.le), value]);
    const of = (part) => samples.find((sample) => sample.name === `vllm:${name}_${part}`)?.value ?? 0;
    const times = [of("count") ? of("sum") / of("count") : null, ...[0.5, 0.9, 0.99].map((q) => quantile(buckets, q))];
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = label;
    row.append(head, ...[String(of("count")), ...times.map(seconds)].map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  });
  field("latency").tBodies[0].replaceChildren(...rows);
}

function curve(rates) {
  const top = Math.max(1, ...rates);
  const points = rates.map((rate, index) => `${(600 * (index + KEPT - rates.length)) / (KEPT - 1)},${78 - (74 * rate) / top}`);
  const told = document.createElement("p");
  told.className = "figures";
  told.textContent = `now ${Math.round(rates.at(-1) ?? 0)}, at most ${Math.round(Math.max(0, ...rates))} in the last ${KEPT} seconds`;
  field("rate").replaceChildren(drawing("0 0 600 80", ["polyline", { class: "line", points: points.join(" ") }]), told);
}

function drawing(box, ...shapes) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", box);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [name, attributes] of shapes) {
    const shape = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
    svg.append(shape);
  }
  return svg;
}

function bytes(count) {
  return count < 1e6 ? `${Math.round(count / 1e3)} kB` : count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`;
}

function seconds(value) {
  if (value === null) return "–";
  return value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
}
