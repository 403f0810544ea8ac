// The chat: messages, streaming, stop, edit, regenerate.

import { render } from "./markdown.js";
import * as settings from "./settings.js";
import { chat, shown } from "./stream.js";

const field = (id) => document.getElementById(id);

export class Conversation {
  constructor(model, notice) {
    this.model = model;
    this.notice = notice;
    this.messages = [];
    this.running = null;
    field("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    field("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    field("stop").addEventListener("click", () => this.stop());
    field("clear").addEventListener("click", () => this.clear());
  }

  send() {
    const text = field("prompt").value.trim();
    if (!text || this.running) return;
    field("prompt").value = "";
    this.add({ role: "user", content: text });
    this.answer();
  }

  stop() {
    this.running?.abort();
  }

  clear() {
    this.stop();
    this.messages = [];
    field("messages").replaceChildren();
    field("prompt").focus();
  }

  /** Ask for the answer to all that was said, and show it as it comes. */
  async answer() {
    const said = this.messages.map(({ role, content }) => ({ role, content }));
    const message = this.add({ role: "assistant", content: "" });
    this.busy(new AbortController());
    try {
      const body = settings.bodyFor(this.model(), said);
      const done = await chat(body, settings.key(), this.running.signal, (text, figures) => this.show(message, text, figures));
      if (done.reason === "length") message.figures.append(" · cut at the most tokens");
    } catch (error) {
      if (error.name === "AbortError") message.figures.append(" · stopped");
      else this.failed(message, error);
    } finally {
      this.busy(null);
    }
  }

  show(message, text, figures) {
    const isAtEnd = window.innerHeight + window.scrollY >= document.body.scrollHeight - 80;
    message.content = text;
    render(message.text, text);
    message.figures.textContent = shown(figures);
    if (isAtEnd) this.toEnd();
  }

  /** The field for the next question is part of the page, so its end shows the last message above it. */
  toEnd() {
    window.scrollTo(0, document.body.scrollHeight);
  }

  failed(message, error) {
    message.figures.textContent = error.message;
    message.figures.classList.add("failed");
    this.notice(error.message);
  }

  busy(controller) {
    this.running = controller;
    field("send").disabled = controller !== null;
    field("stop").hidden = controller === null;
    field("messages").setAttribute("aria-busy", String(controller !== null));
  }

  /** Forget this message and all after it. */
  cut(message) {
    this.stop();
    const at = this.messages.indexOf(message);
    for (const later of this.messages.splice(at)) later.node.remove();
  }

  edit(message) {
    this.cut(message);
    field("prompt").value = message.content;
    field("prompt").focus();
  }

  regenerate(message) {
    if (this.running) return;
    this.cut(message);
    this.answer();
  }

  add(message) {
    const make = (name, kind, ...children) => {
      const node = document.createElement(name);
      node.className = kind;
      node.append(...children);
      return node;
    };
    const isUser = message.role === "user";
    message.text = make("div", "text", isUser ? message.content : "");
    message.figures = make("span", "figures");
    const change = make("button", "", isUser ? "Edit" : "Regenerate");
    change.type = "button";
    change.addEventListener("click", () => (isUser ? this.edit(message) : this.regenerate(message)));
    message.node = make("article", `message ${message.role}`,
      make("p", "who", isUser ? "You" : this.model()), message.text, make("div", "tools", change, message.figures));
    field("messages").append(message.node);
    this.messages.push(message);
    this.toEnd();
    return message;
  }
}
