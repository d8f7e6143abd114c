// SPDX-License-Identifier: Apache-2.0
// A position in a sequence (a sampling step, a frame) and the controls that move it.

function sequence(count) {
  const listeners = [];
  return {
    count,
    index: 0,
    onChange(listener) {
      listeners.push(listener);
    },
    set(index) {
      this.index = clamp(index, 0, count - 1);
      for (const listener of listeners) listener(this.index);
    },
  };
}

// Buttons back, play, forward, a slider and what it says. describe(index) -> text; rate in places
// per second. A sequence of one
// has nothing to move. Returns {node, step(by), stop()}.
function transport(position, {name, describe, rate}) {
  const last = position.count - 1;
  const button = (label, path, click) => element(
      "button", {type: "button", class: "tool", "aria-label": label, title: label, click},
      icon(path));
  const slider =
      element("input", {type: "range", min: 0, max: last, step: 1, value: 0, "aria-label": name});
  const readout = element("output", {class: "readout"});
  const play = button("Play", ICONS.play, () => toggle());
  let began = 0, from = 0, request = null;

  function frame(now) {
    began ||= now;
    const index = (from + Math.floor(Math.max(0, now - began) / 1000 * rate)) % position.count;
    if (index !== position.index) position.set(index);
    request = requestAnimationFrame(frame);
  }
  function face(label, path) {
    play.replaceChildren(icon(path));
    play.setAttribute("aria-label", label);
    play.title = label;
  }
  function stop() {
    if (request === null) return;
    cancelAnimationFrame(request);
    request = null;
    face("Play", ICONS.play);
  }
  function toggle() {
    if (request !== null) return stop();
    began = 0;
    from = position.index;
    face("Pause", ICONS.pause);
    request = requestAnimationFrame(frame);
  }
  function step(by) {
    stop();
    position.set(position.index + by);
  }
  slider.addEventListener("input", () => {
    stop();
    position.set(Number(slider.value));
  });
  position.onChange((index) => {
    slider.value = index;
    slider.setAttribute("aria-valuetext", describe(index));
    readout.textContent = describe(index);
  });
  const tools = element(
      "span", {class: "tools"}, button(`Previous ${name}`, ICONS.previous, () => step(-1)), play,
      button(`Next ${name}`, ICONS.next, () => step(1)));
  const node = element("div", {class: "transport"}, ...(last > 0 ? [tools, slider] : []), readout);
  return {node, step, stop};
}

// Arrow keys, Home and End move the position; a focused slider has these keys already.
function arrowKeys(node, control, count) {
  node.addEventListener("keydown", (event) => {
    if (event.target.type === "range" || event.ctrlKey || event.altKey || event.metaKey) return;
    const move = {ArrowLeft: -1, ArrowRight: 1, Home: -count, End: count}[event.key];
    if (move === undefined) return;
    event.preventDefault();
    control.step(move);
  });
}
