// Sockets of a growing list are called in the user's language, as all others are: the front end labels them with the
// end of their name, and a label goes before a translation.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let texts = {};

function translate(node) {
  for (const input of node.inputs) {
    const [list, name] = input.name.split(".");
    const translated = texts[node.comfyClass]?.inputs[`${list}_${name}`]?.name;
    if (!translated || (input.label && input.label !== name)) continue;
    input.localized_name = translated;
    input.label = undefined;
  }
}

app.registerExtension({
  name: "MM-Diff.GrowingSockets",
  async init() {
    const languages = await (await api.fetchApi("/i18n")).json();
    texts = (languages[app.ui.settings.getSettingValue("Comfy.Locale")] ?? languages.en).nodeDefs;
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("MMDiff")) return;
    const { addInput, onConfigure } = nodeType.prototype;
    nodeType.prototype.addInput = function (...given) {
      queueMicrotask(() => translate(this)); // after the front end has set the label
      return addInput.apply(this, given);
    };
    nodeType.prototype.onConfigure = function (...given) {
      onConfigure?.apply(this, given);
      translate(this);
    };
  },
});
