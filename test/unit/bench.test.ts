/** What the bench has written down. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { history, pastOf } from "../../bench/history.ts";
import { pictures } from "../../bench/pictures.ts";
import type { Results } from "../../bench/results.ts";

const folder = join(import.meta.dirname, "../../bench");

it.each(Object.entries(pictures()))("the picture %s is of what was measured", (file, picture) => {
  expect(readFileSync(join(folder, "pictures", file), "utf8")).toBe(picture);
  expect(picture).not.toMatch(/NaN|undefined/);
});

it("the last run is in the history", () => {
  const results = JSON.parse(readFileSync(join(folder, "results.json"), "utf8")) as Results;
  expect(history().at(-1)).toEqual(pastOf(results));
  const dates = history().map(({ date }) => date);
  expect(dates).toEqual(dates.toSorted());
});
