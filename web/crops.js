// The crops in Encode MM-Diff Subject outlast a reload: the server still has the run that they are from.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const TYPE = "MMDiffEncodeSubject";
const RUNS = 32; // how far back to look

// a node and all that it comes from, as one string
function origin(prompt, id) {
  const { class_type, inputs } = prompt[id];
  const given = Object.entries(inputs).map(([name, value]) =>
    Array.isArray(value) && value[0] in prompt ? [name, origin(prompt, value[0]), value[1]] : [name, value],
  );
  return JSON.stringify([class_type, given.sort()]);
}

// the server writes NaN and infinite numbers, of anybody's run, as they are, and JSON has none
const parse = (text) => JSON.parse(text.replace(/(?<=[:,[]\s*)(?:NaN|-?Infinity)/g, "null"));

const encoders = (prompt) => Object.keys(prompt).filter((id) => prompt[id].class_type === TYPE);

async function showAgain() {
  const graph = app.graph;
  const { output: prompt } = await app.graphToPrompt();
  if (!encoders(prompt).length) return;
  const history = parse(await (await api.fetchApi(`/history?max_items=${RUNS}`)).text());
  const shown = {};
  for (const { prompt: queued, outputs } of Object.values(history)) {
    for (const id of encoders(queued[2])) {
      if (outputs[id]) shown[origin(queued[2], id)] = outputs[id];
    }
  }
  if (app.graph !== graph) return; // another workflow was opened meanwhile
  for (const id of encoders(prompt)) {
    const output = shown[origin(prompt, id)];
    if (output) api.dispatchCustomEvent("executed", { node: id, display_node: id, output });
  }
}

app.registerExtension({
  name: "MM-Diff.Crops",
  afterConfigureGraph() {
    setTimeout(showAgain); // not before the outputs of the last workflow are gone
  },
});
