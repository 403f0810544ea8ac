// node openai_package.mjs URL MODEL KEY: chats, a stream, a tool, a response, an embedding, an error; told as JSON.
import OpenAI from "openai";

const [baseURL, model, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the weather in Paris, in celsius?" }];
const asked = { model, messages, temperature: 0, max_tokens: 40 };

const whole = await client.chat.completions.create(asked);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } },
  required: ["city", "unit"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const called = await client.chat.completions.create({ ...asked, tools, tool_choice: "required" });
const response = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 8 });
const embedded = await client.embeddings.create({ model, input: "a text" });
let status = 200;
try {
  await client.chat.completions.create({ ...asked, model: "gone" });
} catch (error) {
  status = error.status;
}
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    arguments: called.choices[0].message.tool_calls[0].function.arguments,
    response: response.output_text,
    length: embedded.data[0].embedding.length,
    status,
  }),
);
