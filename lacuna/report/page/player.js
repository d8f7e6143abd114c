// SPDX-License-Identifier: Apache-2.0
// Clips side by side, frame by frame and in step.

const GAIN = 4;  // differences between good clips are faint

function needClip(clip) {
  need(isObject(clip), "a clip must be an object");
  needText(clip.name, "clips.name");
  needCount(clip.columns, 4096, `columns of clip "${clip.name}"`);
  need(
      typeof clip.image === "string" && clip.image.startsWith("data:image/"),
      `image of clip "${clip.name}" must be a data:image/ address`);
}

// Shows |clip - reference| in place of the clip.
function subtract(context, other, width, height) {
  const image = context.getImageData(0, 0, width, height),
        reference = other.getImageData(0, 0, width, height);
  for (let i = 0; i < image.data.length; ++i) {
    if (i % 4 !== 3) image.data[i] = GAIN * Math.abs(image.data[i] - reference.data[i]);
  }
  context.putImageData(image, 0, 0);
}

function clipView(section, clip) {
  const canvas = element(
      "canvas",
      {width: section.width, height: section.height, role: "img", "aria-label": clip.name});
  const name = element("figcaption", {}, clip.name);
  const node = element("figure", {class: "clip"}, canvas, name);
  const view = {
    node,
    canvas,
    name,
    clip,
    sheet: null,
    context: canvas.getContext("2d", {willReadFrequently: true})
  };
  return view;
}

function drawFrame(section, view, frame) {
  const {width, height} = section, {columns} = view.clip;
  view.context.clearRect(0, 0, width, height);
  if (!view.sheet) return false;
  view.context.drawImage(
      view.sheet, frame % columns * width, Math.floor(frame / columns) * height, width, height, 0,
      0, width, height);
  return true;
}

// Decodes a sheet, or says below its clip why that is not possible.
async function loadSheet(section, view) {
  const sheet = new Image(), {columns, image} = view.clip;
  sheet.src = image;
  try {
    await sheet.decode();
  } catch {
    view.name.textContent = `${view.clip.name}: the picture cannot be read`;
    return;
  }
  const used = Math.min(columns, section.frames);
  if (sheet.naturalWidth < used * section.width ||
      sheet.naturalHeight < Math.ceil(section.frames / columns) * section.height) {
    view.name.textContent =
        `${view.clip.name}: the picture is too small for ${section.frames} frames`;
    return;
  }
  view.sheet = sheet;
}

kinds.player = (section) => {
  need(
      typeof section.fps === "number" && section.fps > 0 && section.fps <= 1000,
      "fps must be above 0 and at most 1000");
  needCount(section.frames, 100000, "frames");
  needCount(section.width, 8192, "width");
  needCount(section.height, 8192, "height");
  need(Array.isArray(section.clips) && section.clips.length > 0, "clips must be a list");
  section.clips.forEach(needClip);

  const position = sequence(section.frames);
  const control = transport(position, {
    name: "frame",
    rate: section.fps,
    describe: (i) => `frame ${i} (${i + 1} of ${section.frames})`
  });
  const views = section.clips.map((clip) => clipView(section, clip));
  const difference = element("input", {type: "checkbox", change: () => paint(position.index)});
  function paint(frame) {
    const drawn = views.map((view) => drawFrame(section, view, frame));
    views.slice(1).forEach((view, i) => {
      const active = difference.checked && drawn[0] && drawn[i + 1];
      view.node.classList.toggle("difference", active);
      if (active) subtract(view.context, views[0].context, section.width, section.height);
    });
  }
  position.onChange(paint);
  position.set(0);
  for (const view of views) loadSheet(section, view).then(() => paint(position.index));

  const clips = element(
      "div", {class: section.width < 256 ? "clips coarse" : "clips"},
      ...views.map((view) => view.node));
  clips.style.setProperty(
      "--clip", `${Math.max(section.width, section.width * Math.floor(320 / section.width))}px`);
  clips.style.setProperty("--count", views.length);
  const box = element(
      "div", {class: "player-box"}, clips, control.node,
      views.length > 1 ? element(
                             "label", {class: "check"}, difference,
                             `Difference to ${views[0].clip.name}, ${GAIN} times enlarged`) :
                         null);
  arrowKeys(box, control, section.frames);
  return [box];
};
