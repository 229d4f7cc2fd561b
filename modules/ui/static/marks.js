// The replies that were marked, as a data set to train on.

import {address, attempt, get, post} from "./api.js";
import {h, toast} from "./dom.js";
import {openSheet} from "./sheet.js";
import {count, t} from "./words.js";

export async function showMarks(host) {
  const marks = await attempt(() => get("/marks"));
  if (!marks) return;
  const section = (kind, example) => {
    const number = marks[kind];
    const name = h("input", {type: "text", value: `${kind}-${new Date().toISOString().slice(0, 10)}`, "aria-label": t("marks.name")});
    const save = h("button", {type: "button", class: "tl-strong", disabled: !number || !marks.admin, title: marks.admin ? undefined : t("marks.admin"), onclick: async () => {
      const saved = await attempt(() => post("/marks/dataset", {kind, name: name.value}));
      if (saved) toast(t("marks.saved", {name: saved.name, n: count(saved.rows)}), {seconds: 6});
    }}, t("marks.save"));
    const download = h("a", {class: "tl-quiet", download: `${kind}.jsonl`,
      ...(number ? {href: address(`/marks/${kind}.jsonl`)} : {role: "link", "aria-disabled": "true"})}, t("marks.download"));
    return h("section", {class: "tl-marks"}, h("h3", {}, t(`marks.${kind}`, {n: count(number)})), h("p", {class: "tl-prompt-facts"}, t(`marks.${kind}.help`)),
      h("pre", {class: "tl-marks-form"}, example), h("div", {class: "tl-marks-row"}, name, save, download));
  };
  openSheet(host, t("marks"), {wide: true}).body.append(
    section("examples", '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'),
    section("preferences", '{"prompt": […], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}'));
}
