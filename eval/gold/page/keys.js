// Keys stand for buttons: a key clicks the button whose id is "key-" and its name. Kept out of the way of typing,
// of the browser's own shortcuts, and of a key that is held down.
(() => {
  const NAMES = { ArrowLeft: "left", ArrowRight: "right" };
  const LABELS = ["c", "i", "u", "a", "b", "t"];
  const TOO_SOON = 300; // ms after a label: nobody has seen the next answer by then
  let last = -TOO_SOON;

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=range]), textarea, select, [contenteditable=true]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.key === " ") {
      if (!video() || event.target.closest?.("button:not(.play), a, summary")) return;
      event.preventDefault();
      return turn();
    }
    const name = NAMES[event.key] || event.key.toLowerCase();
    if (!/^[a-z]+$/.test(name)) return;
    const button = document.getElementById("key-" + name);
    if (!button || button.disabled || !button.offsetParent) return;
    event.preventDefault();
    if (LABELS.includes(name)) {
      if (performance.now() - last < TOO_SOON) return;
      last = performance.now();
    }
    button.click();
  });

  // The player: its controls stand below the picture.
  const video = () => document.querySelector(".clip video");
  const turn = () => (video().paused ? video().play() : video().pause());
  const seconds = (time) => (Number.isFinite(time) ? time.toFixed(1) : "–") + " s";
  const onVideo = (names, run) => names.forEach((name) => document.addEventListener(name, (event) => {
    if (event.target.matches?.(".clip video")) run(event.target);
  }, true));
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".player .play");
    if (!video() || !(button || event.target.matches?.(".clip video"))) return;
    turn();
    button?.blur();
  });
  document.addEventListener("input", (event) => {
    if (!video() || !event.target.matches?.(".player input")) return;
    video().pause();
    video().currentTime = (event.target.value / 1000) * (video().duration || 0);
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches?.(".player input")) event.target.blur();
  });
  onVideo(["play", "pause"], (shown) => {
    const button = document.querySelector(".player .play");
    if (button) button.textContent = shown.paused ? "Play" : "Pause";
  });
  onVideo(["timeupdate", "seeked", "loadedmetadata"], (shown) => {
    const [slider, time] = [document.querySelector(".player input"), document.querySelector(".player .time")];
    if (slider && document.activeElement !== slider) slider.value = (1000 * shown.currentTime) / shown.duration || 0;
    if (time) time.textContent = `${seconds(shown.currentTime)} of ${seconds(shown.duration)}`;
  });

  // Pixels of tiny clips stay sharp when they are blown up.
  onVideo(["loadedmetadata"], (shown) => shown.classList.toggle("tiny", shown.videoWidth < 160));
  document.addEventListener("error", (event) => {
    if (!event.target.matches?.(".clip video")) return;
    event.target.closest(".clip").classList.add("broken");
    event.target.replaceWith("This video cannot be played here.");
  }, true);
})();
