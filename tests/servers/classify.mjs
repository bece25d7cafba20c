// Classify the sentences on stdin, a JSON list, as transformers.js does in Node.
// node classify.mjs NODE_MODULES FOLDER NAME DTYPE
import { pathToFileURL } from "node:url";
import { join } from "node:path";
import { text } from "node:stream/consumers";

const [modules, folder, name, dtype] = process.argv.slice(2);
const library = join(modules, "@huggingface/transformers/dist/transformers.node.mjs");
const { env, pipeline } = await import(pathToFileURL(library).href);

env.allowRemoteModels = false;
env.localModelPath = folder;
const classify = await pipeline("text-classification", name, { dtype });
const sentences = JSON.parse(await text(process.stdin));
const answers = [];
for (const sentence of sentences) answers.push((await classify(sentence))[0]);
const tokens = sentences.map((sentence) => classify.tokenizer.encode(sentence));
const together = await classify(sentences); // one batch, padded
console.log(JSON.stringify({ answers, together, tokens }));
