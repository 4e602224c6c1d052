// What a node of this pack refuses, as a toast: the front end shows a sentence of before a run only behind "View details"
// and a circled i, once for each input that the check has read, and one of a run behind "View details".
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const MILLISECONDS = 100; // between looks: of a refused prompt there is no event
const LOOKS = 600;

let shown = [];
let graph; // the id of the one that the shown messages are of
let timer;

const message = (type, detail) => ({
  severity: "error",
  summary: LiteGraph.registered_node_types[type].title,
  detail,
});

function messages(errors) {
  const found = new Map();
  for (const { class_type: type, errors: parts } of Object.values(errors)) {
    if (!type.startsWith("MMDiff")) continue;
    for (const { type: kind, details, extra_info: about } of parts) {
      if (kind !== "custom_validation_failed") continue;
      const detail = details.slice(`${about.input_name} - `.length);
      found.set(type + detail, message(type, detail));
    }
  }
  return [...found.values()];
}

function look() {
  if (!app.lastNodeErrors) return false;
  show(messages(app.lastNodeErrors));
  return true;
}

function show(added) {
  shown.push(...added);
  graph = app.graph.id;
  added.forEach((one) => app.extensionManager.toast.add(one));
}

function clear() {
  shown.forEach((one) => app.extensionManager.toast.remove(one));
  shown = [];
  clearInterval(timer);
}

function watch() {
  clear();
  let looks = 0;
  timer = setInterval(() => {
    if (look() || ++looks === LOOKS) clearInterval(timer);
  }, MILLISECONDS);
}

app.registerExtension({
  name: "MM-Diff.Errors",
  setup() {
    api.addEventListener("promptQueueing", watch);
    api.addEventListener("promptQueued", () => {
      clearInterval(timer);
      if (!shown.length) look(); // some outputs of it may have been refused
    });
    api.addEventListener("execution_error", ({ detail: { node_type: type, exception_message: said } }) => {
      if (type.startsWith("MMDiff")) show([message(type, said.trim())]);
    });
  },
  afterConfigureGraph() {
    if (app.graph.id !== graph) clear(); // undoing configures the same one anew
  },
});
