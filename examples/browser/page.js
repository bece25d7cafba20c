// Classify what the user types, or an image, with the bundle in models/classifier. Nothing of it leaves the page.
import { env, pipeline, RawImage } from "@huggingface/transformers";

env.allowRemoteModels = false;
env.allowLocalModels = true; // off by default in browsers
env.localModelPath = "./models/"; // a path: with a full address, the tokenizer is not found
env.useBrowserCache = false; // otherwise the browser may keep an older version of the model
const runtime = new URL("node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify", location.href);
env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` }; // otherwise it is loaded from a CDN
env.backends.onnx.wasm.numThreads = 1; // more threads need a cross-origin isolated page

const [text, sentence, image, file, shown, state, answer] = [
  "text", "sentence", "image", "file", "shown", "state", "answer",
].map((id) => document.getElementById(id));

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

let last = 0; // number of the newest input, because an older one may be answered later

async function show(classify, input) {
  const number = (last += 1);
  try {
    const scores = await classify(await input, { top_k: null });
    if (number !== last) return;
    answer.replaceChildren(...scores.map(row));
    state.textContent = `${scores[0].label}, ${scores[0].score.toFixed(6)}`;
  } catch (error) {
    if (number === last) state.textContent = String(error);
  }
}

function readTexts(classify) {
  sentence.addEventListener("input", () => show(classify, sentence.value));
  text.addEventListener("submit", (event) => event.preventDefault());
  text.hidden = false;
  sentence.focus();
}

function readImages(classify) {
  const take = (files) => {
    if (!files.length) return;
    URL.revokeObjectURL(shown.src);
    shown.src = URL.createObjectURL(files[0]);
    shown.hidden = false;
    show(classify, RawImage.fromBlob(files[0]));
  };
  file.addEventListener("change", () => take(file.files));
  for (const name of ["dragover", "dragleave", "drop"]) {
    // without this, the browser would open a file that misses the frame
    document.addEventListener(name, (event) => {
      event.preventDefault();
      image.classList.toggle("over", name === "dragover");
    });
  }
  document.addEventListener("drop", (event) => take(event.dataTransfer.files));
  image.hidden = false;
}

try {
  const config = await (await fetch("./models/classifier/config.json")).json();
  const images = config.architectures[0].endsWith("ForImageClassification");
  const task = images ? "image-classification" : "text-classification";
  const classify = await pipeline(task, "classifier", { dtype: "fp32", device: "wasm" });
  (images ? readImages : readTexts)(classify);
  state.textContent = "Ready.";
} catch (error) {
  state.textContent = `The model cannot be loaded: ${error.message}`;
}
