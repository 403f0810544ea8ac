// One prompt under two cache recipes, side by side.

import { render } from "./markdown.js";
import * as settings from "./settings.js";
import { chat, shown } from "./stream.js";

const field = (id) => document.getElementById(id);
const SIDES = ["left", "right"];

export class Comparison {
  constructor(model, notice) {
    this.model = model;
    this.notice = notice;
    this.running = null;
    SIDES.forEach((side, index) => {
      settings.fill(field(`${side}-recipe`), index);
      settings.watch(field(`${side}-recipe`));
    });
    field("compare-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    field("compare-stop").addEventListener("click", () => this.stop());
  }

  stop() {
    this.running?.abort();
  }

  /** Both at once: they share the machine, so their speeds are those of two answers together. */
  async run() {
    const prompt = field("compare-prompt").value.trim();
    if (!prompt || this.running) return;
    this.busy(new AbortController());
    field("difference").textContent = "";
    try {
      const texts = await Promise.all(SIDES.map((side) => this.one(side, prompt)));
      field("difference").textContent = difference(...texts);
    } catch (error) {
      this.stop();
      if (error.name !== "AbortError") this.notice(error.message);
    } finally {
      this.busy(null);
    }
  }

  async one(side, prompt) {
    const recipe = Number(field(`${side}-recipe`).value);
    const body = settings.bodyFor(this.model(), [{ role: "user", content: prompt }], recipe);
    field(side).replaceChildren();
    const done = await chat(body, settings.key(), this.running.signal, (text, figures) => {
      render(field(side), text);
      field(`${side}-figures`).textContent = shown(figures);
    });
    return done.text;
  }

  busy(controller) {
    this.running = controller;
    field("compare-run").disabled = controller !== null;
    field("compare-stop").hidden = controller === null;
  }
}

function difference(left, right) {
  if (left === right) return "Both answers are the same.";
  let same = 0;
  while (same < left.length && left[same] === right[same]) same += 1;
  return `The answers are the same for their first ${same} characters.`;
}
