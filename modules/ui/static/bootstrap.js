// Runs before anything else of the page: where to keep things, the language and the theme chosen here, the style, and which tab is in front.
(() => {
  const {page, tabs, opens_on} = TEXTLOOM;

  // In a frame of another site (a notebook's output) browsers may refuse both stores: then things are kept while the page is open.
  for (const name of ["localStorage", "sessionStorage"]) {
    try {
      void window[name];
    } catch {
      const kept = new Map();
      const store = {
        getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => void kept.set(key, String(value)),
        removeItem: (key) => void kept.delete(key), clear: () => kept.clear(), key: (at) => [...kept.keys()][at] ?? null,
        get length() { return kept.size; },
      };
      Object.defineProperty(window, name, {value: store});
    }
  }

  // A key that writes a Chinese, Japanese or Korean word is the input method's, here as in Gradio's boxes: the Enter that ends the
  // word sends nothing. Safari tells of it only once the word has ended, and by its number.
  document.addEventListener("keydown", (event) => {
    if (!event.isComposing && event.keyCode !== 229) return;
    event.stopPropagation();
    if (["Enter", "Escape"].includes(event.key)) event.preventDefault();
  }, true);

  // Gradio reads both once, while its script starts.
  if (page.language !== "auto") {
    const name = page.language === "zh" ? "zh-CN" : page.language;
    Object.defineProperty(navigator, "language", {get: () => name});
    Object.defineProperty(navigator, "languages", {get: () => [name]});
  }
  if (page.theme !== "auto") {
    const query = window.matchMedia.bind(window);
    const nothing = () => {};
    // @ts-expect-error what Gradio asks of it
    window.matchMedia = (text) => text.includes("prefers-color-scheme")
      ? {matches: text.includes(page.theme), media: text, addEventListener: nothing, removeEventListener: nothing,
         addListener: nothing, removeListener: nothing}
      : query(text);
  }
  const parameters = new URLSearchParams(location.search);
  TEXTLOOM.dark = (parameters.get("__theme") ?? "system") === "system"
    ? matchMedia("(prefers-color-scheme: dark)").matches
    : parameters.get("__theme") === "dark";
  document.documentElement.classList.toggle("tl-dark", TEXTLOOM.dark);
  document.documentElement.style.colorScheme = TEXTLOOM.dark ? "dark" : "light";
  // Gradio says so too, when it is there: the first frame is painted before.
  new MutationObserver((_, watch) => {
    if (!document.body) return;
    watch.disconnect();
    document.body.classList.toggle("dark", TEXTLOOM.dark);
  }).observe(document.documentElement, {childList: true});

  // Gradio counts the seconds of an event in every frame, and those of its loading screen for good, when that is long gone: a
  // page that does nothing would keep the machine busy. No event of ours shows its seconds.
  const frame = window.requestAnimationFrame.bind(window);
  const counts = (callback) => /performance\.now\(\)-.{1,20}\/1e3/.test(callback);
  window.requestAnimationFrame = (callback) => (counts(callback) ? 0 : frame(callback));

  // Ours comes after Gradio's styles, which arrive one by one; sheets of this kind are behind all others, wherever those are.
  const style = /** @type {HTMLLinkElement} */ (document.getElementById("tl-style"));
  const sheet = new CSSStyleSheet();
  const own = [...style.sheet.cssRules].filter((rule) => !(rule instanceof CSSFontFaceRule)); // a font is found beside its first sheet
  sheet.replaceSync(own.map((rule) => rule.cssText).join("\n"));
  document.adoptedStyleSheets.push(sheet);

  // Which tab is in front is remembered, for this browser tab.
  const shown = () => document.querySelector("#tl-tabs [role=tab][aria-selected=true]")?.dataset.tabId;
  // On narrow pages Gradio puts tabs into a menu, where they have their label alone; a hidden row has all labels in order.
  const press = (name) => {
    const tab = document.getElementById(`tab-${name}-button`);
    if (tab) return tab.click();
    const labels = document.querySelectorAll("#tl-tabs > .tab-wrapper > .visually-hidden > button");
    const label = labels[tabs.indexOf(name)]?.textContent;
    [...document.querySelectorAll("#tl-tabs .overflow-dropdown > button")].find((button) => button.textContent === label)?.click();
  };
  let timer = null;
  TEXTLOOM.openTab = (name) => {
    clearInterval(timer);
    const until = Date.now() + 20000; // the buttons are not there at first, and then there before they listen
    press(name);
    timer = setInterval(() => {
      if (shown() === name || Date.now() > until) clearInterval(timer);
      else press(name);
    }, 40);
  };
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#tl-tabs > .tab-wrapper")) setTimeout(() => shown() && sessionStorage.setItem("textloom-tab", shown()), 50);
  });
  TEXTLOOM.first = sessionStorage.getItem("textloom-tab") ?? (parameters.has("chat") ? "chat" : page.first_tab);
  if (TEXTLOOM.first !== opens_on) TEXTLOOM.openTab(TEXTLOOM.first);
})();
