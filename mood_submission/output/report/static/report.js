// The viewer: a dialog with NiiVue. A volume's layers are in data/NUMBER.js, a plain script, so that it works from file://.
"use strict";
window.MOOD_DATA = {};
const dialog = document.getElementById("viewer");
const told = document.getElementById("viewer-told");
let view = null;

function loadData(number) {
  return new Promise((resolve, reject) => {
    if (window.MOOD_DATA[number]) return resolve(window.MOOD_DATA[number]);
    const script = document.createElement("script");
    script.src = `data/${number}.js`;
    script.onload = () => resolve(window.MOOD_DATA[number]);
    script.onerror = () => reject(new Error(`data/${number}.js is not beside this page`));
    document.head.append(script);
  });
}

async function imageOf(base64, name, options) {
  return niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...options });
}

async function openViewer(number, place) {
  const section = document.getElementById(`volume-${number}`);
  document.getElementById("viewer-name").textContent = section.dataset.name;
  listFindings(section, number);
  if (!dialog.open) dialog.showModal();
  told.textContent = "loading";
  try {
    const layers = await loadData(number);
    if (!view) {
      view = new niivue.Niivue({ backColor: [0, 0, 0, 1], show3Dcrosshair: true, isColorbar: false, crosshairWidth: 0.5, loadingText: "" });
      await view.attachToCanvas(document.getElementById("viewer-canvas"));
      view.setMultiplanarLayout(2);
      view.opts.multiplanarShowRender = 1;
    }
    while (view.volumes.length) view.removeVolume(view.volumes[0]);
    view.addVolume(await imageOf(layers.volume, "volume", { colormap: "gray", cal_min: 0, cal_max: 255 }));
    view.addVolume(await imageOf(layers.scores, "scores", { colormap: "inferno", cal_min: 30, cal_max: 90, opacity: 0.6 }));
    if (layers.findings) view.addVolume(await imageOf(layers.findings, "findings", { colormap: "winter", cal_min: 0.5, cal_max: 4, opacity: 0 }));
    if (layers.label) view.addVolume(await imageOf(layers.label, "label", { colormap: "blue", cal_min: 0.5, cal_max: 1, opacity: 0 }));
    for (const name of ["findings", "label"]) document.getElementById(`show-${name}`).disabled = !layers[name];
    applySliders();
    if (place) goTo(place);
    told.textContent = "";
    dialog.dataset.ready = String(number);
  } catch (error) {
    told.textContent = `The viewer cannot be shown: ${error.message}`;
  }
}

function listFindings(section, number) {
  const list = document.getElementById("viewer-findings");
  list.replaceChildren();
  for (const row of section.querySelectorAll("tr[data-place]")) {
    const button = document.createElement("button");
    button.textContent = row.dataset.title;
    button.addEventListener("click", () => goTo(JSON.parse(row.dataset.place)));
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
  }
}

function goTo(millimetres) {
  view.scene.crosshairPos = view.mm2frac(millimetres);
  view.drawScene();
  dialog.dataset.at = millimetres.join(",");
}

function layer(name) {
  return view ? view.volumes.findIndex((volume) => volume.name === `${name}.nii.gz`) : -1;
}

function applySliders() {
  const scores = layer("scores");
  if (scores < 0) return;
  view.volumes[scores].cal_min = Number(document.getElementById("threshold").value);
  view.setOpacity(scores, Number(document.getElementById("opacity").value) / 100);
  for (const name of ["findings", "label"]) {
    const at = layer(name);
    if (at >= 0) view.setOpacity(at, document.getElementById(`show-${name}`).checked ? 0.7 : 0);
  }
  view.updateGLVolume();
  document.getElementById("threshold-told").textContent = (document.getElementById("threshold").value / 100).toFixed(2);
}

for (const name of ["opacity", "threshold", "show-findings", "show-label"]) document.getElementById(name).addEventListener("input", applySliders);
document.getElementById("viewer-close").addEventListener("click", () => dialog.close());
for (const button of document.querySelectorAll("button[data-view]")) {
  button.addEventListener("click", () => openViewer(button.dataset.view, button.dataset.place ? JSON.parse(button.dataset.place) : null));
}
