"""OpenAI's Responses API: texts, tools, structured output; whole or streamed. Nothing is stored."""
