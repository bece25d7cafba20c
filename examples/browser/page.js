// Classify what the user types with the bundle in models/classifier. Nothing that is typed leaves the page.
import { env, pipeline } from "@huggingface/transformers";

env.allowRemoteModels = false;
env.allowLocalModels = true; // off by default in browsers
env.localModelPath = "./models/"; // a path: with a full address, the tokenizer is not found
env.useBrowserCache = false; // otherwise the browser may keep an older version of the model
const runtime = new URL("node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify", location.href);
env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` }; // otherwise it is loaded from a CDN
env.backends.onnx.wasm.numThreads = 1; // more threads need a cross-origin isolated page

const [sentence, state, answer] = ["sentence", "state", "answer"].map((id) => document.getElementById(id));

function row({ label, score }) {
  const cells = [label, document.createElement("meter"), score.toFixed(4)].map((content) => {
    const cell = document.createElement("td");
    cell.append(content);
    return cell;
  });
  Object.assign(cells[1].firstChild, { value: score, ariaLabel: label });
  const line = document.createElement("tr");
  line.append(...cells);
  return line;
}

async function show(classify) {
  const text = sentence.value;
  const scores = await classify(text, { top_k: null });
  if (text !== sentence.value) return; // the user has typed more since
  answer.replaceChildren(...scores.map(row));
  state.textContent = `${scores[0].label}, ${scores[0].score.toFixed(6)}`;
}

try {
  const classify = await pipeline("text-classification", "classifier", { dtype: "fp32", device: "wasm" });
  const report = (error) => { state.textContent = String(error); };
  sentence.addEventListener("input", () => show(classify).catch(report));
  document.forms[0].addEventListener("submit", (event) => event.preventDefault());
  sentence.disabled = false;
  sentence.focus();
  state.textContent = "Ready.";
} catch (error) {
  state.textContent = `The model cannot be loaded: ${error.message}`;
}
