// Tries the JavaScript clients that are installed against a running server:
//   node run.mjs http://127.0.0.1:8000 MODEL
// Packages: openai, ai, @ai-sdk/openai-compatible, zod.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [url, model] = process.argv.slice(2);
const require = createRequire(path.join(process.cwd(), "here.js"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const version = (name) => {
  let folder = path.dirname(require.resolve(name));
  for (; ; folder = path.dirname(folder)) {
    try {
      const found = require(path.join(folder, "package.json"));
      if (found.name === name) return found.version;
    } catch {}
  }
};
const ask = { model, messages: [{ role: "user", content: "Fly to the meadow." }], max_tokens: 40 };
const properties = { place: { type: "string", enum: ["hive", "meadow"] } };
const schema = { type: "object", properties, required: ["place"], additionalProperties: false };

async function attempt(client, packageName, capability, call) {
  let result;
  try {
    result = `ok ${JSON.stringify(await call()).slice(0, 60)}`;
  } catch (error) {
    result = `FAILED ${String(error).slice(0, 200)}`;
  }
  console.log([client, version(packageName), capability, result].join(" | "));
}

const { default: OpenAI } = await load("openai");
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
await attempt("openai (Node)", "openai", "chat", async () =>
  (await openai.chat.completions.create(ask)).choices[0].message.content);
await attempt("openai (Node)", "openai", "stream", async () => {
  let text = "";
  for await (const part of await openai.chat.completions.create({ ...ask, stream: true }))
    text += part.choices[0]?.delta?.content ?? "";
  return text;
});
await attempt("openai (Node)", "openai", "tools", async () => {
  const tools = [{ type: "function", function: { name: "fly", parameters: schema } }];
  const answer = await openai.chat.completions.create({ ...ask, tools, tool_choice: "required" });
  return answer.choices[0].message.tool_calls[0].function;
});

const { generateText, streamText, generateObject, jsonSchema } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const provider = createOpenAICompatible({
  name: "whet", baseURL: `${url}/v1`, supportsStructuredOutputs: true,
});
const options = { model: provider(model), prompt: "Fly to the meadow.", maxOutputTokens: 40 };
await attempt("ai SDK", "ai", "chat", async () => (await generateText(options)).text);
await attempt("ai SDK", "ai", "stream", async () => {
  let text = "";
  for await (const part of streamText(options).textStream) text += part;
  return text;
});
await attempt("ai SDK", "ai", "structured", async () =>
  (await generateObject({ ...options, schema: jsonSchema(schema) })).object);
await attempt("ai SDK", "ai", "tools", async () => {
  const tools = { fly: { description: "Fly to a place.", inputSchema: jsonSchema(schema) } };
  return (await generateText({ ...options, tools, toolChoice: "required" })).toolCalls[0].input;
});
