// Tabs, the settings' drawer, the model's name, and who is told of a key.

import { Comparison } from "./compare.js";
import { Conversation } from "./conversation.js";
import { Dashboard } from "./dashboard.js";
import * as settings from "./settings.js";
import { ask } from "./stream.js";

const field = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];
let model = "";
let counted = ""; // the name that metrics carry: an adapter's is its model's

function notice(text) {
  field("notice").textContent = text;
  field("notice").hidden = !text;
}

async function findModel() {
  try {
    const listed = (await (await ask("/v1/models", settings.key())).json()).data;
    const chosen = listed.find((entry) => entry.id === field("models").value) ?? listed[0];
    model = chosen.id;
    counted = chosen.parent ?? chosen.id;
    field("models").replaceChildren(...listed.map(({ id }) => new Option(id)));
    field("models").value = model;
    field("models").hidden = listed.length < 2;
    if (listed.length > 1) field("model").textContent = chosen.loaded ? `${chosen.max_model_len} tokens` : "loaded when asked";
    else field("model").textContent = chosen.loaded ? `${model}, ${chosen.max_model_len} tokens` : `${model} is being loaded`;
    notice("");
    if (listed.length < 2 && !chosen.loaded) setTimeout(findModel, 1000);
  } catch (error) {
    notice(error.message);
  }
}

const asked = () => model;
const conversation = new Conversation(asked, notice);
const comparison = new Comparison(asked, notice);
const dashboard = new Dashboard(notice, () => counted);

function select(tab) {
  for (const own of tabs) {
    const isSelected = own === tab;
    own.setAttribute("aria-selected", String(isSelected));
    own.tabIndex = isSelected ? 0 : -1;
    field(own.getAttribute("aria-controls")).hidden = !isSelected;
  }
  dashboard.show(tab.id === "tab-server");
  history.replaceState(null, "", `#${tab.id.slice(4)}`);
}

tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: tabs.length - 1 }[event.key];
    if (!step) return;
    const next = tabs[(index + step) % tabs.length];
    select(next);
    next.focus();
  });
});

field("settings-button").addEventListener("click", () => {
  const isShown = field("settings").hidden;
  field("settings").hidden = !isShown;
  field("settings-button").setAttribute("aria-expanded", String(isShown));
});
field("settings-form").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["key", "models"]) field(id).addEventListener("change", findModel);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  conversation.stop();
  comparison.stop();
});

settings.restore();
const first = tabs.find((tab) => `#${tab.id.slice(4)}` === location.hash);
if (first) select(first);
field("prompt").focus();
findModel();
