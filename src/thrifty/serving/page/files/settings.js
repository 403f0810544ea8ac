// What the fields of the settings say, kept in this browser; the key only as long as the tab is open.

export const RECIPES = [
  { name: "the server's own", cache: null },
  { name: "kivi, 4 bits", cache: [{ technique: "kivi", bits: 4 }] },
  { name: "kivi, 2 bits", cache: [{ technique: "kivi", bits: 2 }] },
  { name: "snapkv, half", cache: [{ technique: "snapkv", keep: 0.5 }] },
  { name: "h2o, a fifth", cache: [{ technique: "h2o", keep: 0.2 }] },
  { name: "streaming, 1020 tokens", cache: [{ technique: "streaming", window: 1020 }] },
  { name: "full", cache: [] },
  { name: "own", cache: undefined },
];

const KEPT = ["recipe", "bound", "temperature", "top-p", "top-k", "min-p", "max-tokens", "seed", "system", "own-recipe"];
const field = (id) => document.getElementById(id);

export function fill(select, chosen = 0) {
  select.replaceChildren(...RECIPES.map((recipe, index) => new Option(recipe.name, String(index))));
  select.value = String(chosen);
}

export function restore() {
  fill(field("recipe"));
  const kept = JSON.parse(localStorage.getItem("thrifty") ?? "{}");
  for (const id of KEPT) if (kept[id] !== undefined) field(id).value = kept[id];
  if (!field("recipe").value) field("recipe").value = "0";
  field("key").value = sessionStorage.getItem("thrifty-key") ?? "";
  showOwn();
  field("settings").addEventListener("input", () => {
    localStorage.setItem("thrifty", JSON.stringify(Object.fromEntries(KEPT.map((id) => [id, field(id).value]))));
    sessionStorage.setItem("thrifty-key", key());
    showOwn();
  });
}

function showOwn() {
  const selects = ["recipe", "left-recipe", "right-recipe"].map((id) => field(id).value);
  field("own-recipe-field").hidden = !selects.includes(String(RECIPES.length - 1));
}

export function watch(select) {
  select.addEventListener("change", showOwn);
}

export function key() {
  return field("key").value.trim();
}

/** A body for these messages. recipe: an index of RECIPES; the chosen one unless given. Throws for JSON that is none. */
export function bodyFor(model, messages, recipe = Number(field("recipe").value)) {
  const system = field("system").value.trim();
  const body = { model, messages: system ? [{ role: "system", content: system }, ...messages] : messages };
  const numbers = { temperature: "temperature", top_p: "top-p", top_k: "top-k", min_p: "min-p", max_tokens: "max-tokens", seed: "seed" };
  for (const [name, id] of Object.entries(numbers)) if (field(id).value !== "") body[name] = Number(field(id).value);
  const thrifty = {};
  const { cache } = RECIPES[recipe];
  if (cache === undefined) thrifty.cache = ownRecipe();
  else if (cache) thrifty.cache = cache;
  const bound = field("bound").value.trim();
  if (bound) thrifty.cache_memory = bound;
  return Object.keys(thrifty).length ? { ...body, thrifty } : body;
}

function ownRecipe() {
  try {
    return JSON.parse(field("own-recipe").value);
  } catch (error) {
    throw new Error(`The own recipe is no JSON: ${error.message}`);
  }
}
