// The keys that do something, as a list for people.

import {h} from "./dom.js";
import {t} from "./words.js";

const KEYS = ["enter", "newline", "escape", "up", "new", "search", "sidebar", "regenerate", "continue", "version", "copy",
  "compare", "impersonate", "remove", "good", "diff", "tokens", "prompt", "map", "help"];

export function keyList() {
  return h("dl", {class: "tl-keys"}, KEYS.flatMap((name) => [
    h("dt", {}, t(`key.${name}`).split(" ").flatMap((key) => [h("kbd", {}, key), " "])),
    h("dd", {}, t(`key.${name}.does`)),
  ]));
}
