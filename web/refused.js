// What a node of this pack refuses before a run, as a toast: the front end shows such a sentence only behind "View
// details" and a circled i, once for each input that the check has read.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const MILLISECONDS = 100; // between looks: of a refused prompt there is no event
const LOOKS = 600;

let shown = [];
let timer;

function messages(errors) {
  const found = new Map();
  for (const { class_type: type, errors: parts } of Object.values(errors)) {
    if (!type.startsWith("MMDiff")) continue;
    for (const { type: kind, details, extra_info: about } of parts) {
      if (kind !== "custom_validation_failed") continue;
      const detail = details.slice(`${about.input_name} - `.length);
      const summary = LiteGraph.registered_node_types[type].title;
      found.set(summary + detail, { severity: "error", summary, detail });
    }
  }
  return [...found.values()];
}

function look() {
  if (!app.lastNodeErrors) return false;
  shown = messages(app.lastNodeErrors);
  shown.forEach((message) => app.extensionManager.toast.add(message));
  return true;
}

function clear() {
  shown.forEach((message) => app.extensionManager.toast.remove(message));
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
  name: "MM-Diff.Refused",
  setup() {
    api.addEventListener("promptQueueing", watch);
    api.addEventListener("promptQueued", () => {
      clearInterval(timer);
      if (!shown.length) look(); // some outputs of it may have been refused
    });
  },
  afterConfigureGraph: clear,
});
