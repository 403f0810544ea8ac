// Chat completions as they come, and the times of their tokens.

/** An error as the server tells it. */
export class ServerError extends Error {}

export function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Where a key is needed, or the server is away, say so. */
export async function ask(path, key, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { ...headers(key), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.");
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new ServerError(told?.error?.message ?? `The server answered ${answer.status}.`);
}

/**
 * Stream one answer. onText(text, figures) is told after every piece.
 * Returns {text, reason, figures}: figures = {first, tokens, rate, prompt, cached, kv}, times in seconds, null while unknown.
 */
export async function chat(body, key, signal, onText) {
  const began = performance.now();
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const answer = await ask("/v1/chat/completions", key, {
    method: "POST", signal, body: JSON.stringify(asked), headers: { "Content-Type": "application/json" },
  });
  const state = { text: "", reason: null, figures: { first: null, tokens: 0, rate: null, prompt: null, cached: null, kv: null } };
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") break;
    take(JSON.parse(data), state, began);
    onText(state.text, state.figures);
  }
  return state;
}

function take(chunk, state, began) {
  if (chunk.error) throw new ServerError(chunk.error.message);
  const { figures } = state;
  for (const choice of chunk.choices) {
    const text = choice.delta.content ?? "";
    if (text) {
      const seconds = (performance.now() - began) / 1000;
      if (figures.first === null) figures.first = seconds;
      else if (seconds > figures.first) figures.rate = figures.tokens / (seconds - figures.first);
      figures.tokens += 1;
      state.text += text;
    }
    state.reason = choice.finish_reason ?? state.reason;
  }
  if (chunk.usage) {
    figures.tokens = chunk.usage.completion_tokens;
    figures.rate = chunk.usage.thrifty.decode_tokens_per_second || null;
    figures.prompt = chunk.usage.prompt_tokens;
    figures.cached = chunk.usage.prompt_tokens_details.cached_tokens;
    figures.kv = chunk.usage.thrifty.kv_bytes || null;
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const blocks = held.split("\n\n");
      held = blocks.pop();
      for (const block of blocks) if (block.startsWith("data: ")) yield block.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One line about an answer's cost. */
export function shown({ first, tokens, rate, prompt, cached, kv }) {
  const parts = [`${tokens} tokens`];
  if (rate) parts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tok/s`);
  if (first !== null) parts.push(`first after ${first < 1 ? `${Math.round(first * 1000)} ms` : `${first.toFixed(2)} s`}`);
  if (cached !== null) parts.push(`${cached} of ${prompt} prompt tokens cached`);
  if (kv) parts.push(`${(kv / 1e6).toFixed(1)} MB of cache`);
  return parts.join(" · ");
}
