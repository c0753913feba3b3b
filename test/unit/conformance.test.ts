/** What of the conformance tests is run without a node. */
import { describe, expect, it } from "vitest";
import { withoutSkipped } from "../../conformance/cncf.ts";
import { groupNames, groupOf, groupsOf, usualGroups } from "../../conformance/groups.ts";
import { keptRuns, type Run, tableOf } from "../../conformance/results.ts";
import { reasonOf, releasesOf } from "../../conformance/skipped.ts";

describe("the groups of the conformance tests", () => {
  it.each(groupNames)("%s can be asked for by its name, alone and with others", (name) => {
    expect(groupsOf(name)).toEqual([name]);
    expect(groupsOf(`${name}, ${groupNames[0]}`)).toEqual([name, groupNames[0]]);
  });

  it("are the usual ones where nobody asks, and every one for all", () => {
    expect(groupsOf()).toEqual(usualGroups);
    expect(groupsOf("all")).toEqual(groupNames);
    expect(usualGroups.length).toBeLessThan(groupNames.length);
  });

  it("that do not exist are refused, with those that do", () => {
    expect(() => groupsOf("dns,network")).toThrow(/no group network; allowed are all, or some of: services, dns/);
  });

  it("are those that the kept results are counted by", () => {
    for (const { results } of keptRuns())
      expect(results.filter(({ name, group }) => groupOf(name) !== group)).toEqual([]);
  });
});

describe("a test", () => {
  const [old, changed, fresh] = ["[sig-a] old", "[sig-a] changed twice", "[sig-a] fresh"];
  const releases = releasesOf(`
- codename: '[sig-a]
    old'
  release: v1.9
- codename: "${changed}"
  release: v1.16, v1.37
- codename: "${fresh}"
  release: v1.37
`);

  it("is tried on a server of the release that made it part of conformance, and of later ones", () => {
    for (const test of [old, changed, fresh]) {
      expect(reasonOf(test, releases)).toBeUndefined();
      expect(reasonOf(test, releases, "1.37.2")).toBeUndefined();
      expect(reasonOf(test, releases, "1.38.0")).toBeUndefined();
    }
  });

  it("is not tried on an older one, and the reason is told", () => {
    expect([old, changed, fresh].map((test) => reasonOf(test, releases, "1.36.3+k3s1"))).toEqual([
      undefined,
      undefined,
      "part of conformance since Kubernetes 1.37",
    ]);
  });

  it("that needs another node is tried nowhere", () => {
    const test = "[sig-apps] Daemon set should rollback without unnecessary restarts [Conformance] [Serial]";
    expect(reasonOf(test, releases, "1.37.2")).toBe("needs two nodes");
    expect(reasonOf(test, releases, "1.37.2", 2)).toBeUndefined();
  });
});

describe("the table of the results", () => {
  const run = (server: Run["server"], state: Run["results"][number]["state"]): Run => ({
    server,
    date: "2026-11-26",
    minutes: 9,
    procs: 6,
    kubernetes: server === "k3s" ? "1.36.3+k3s1" : "1.37.2",
    gvisor: "1",
    results: [
      { group: "dns", name: "[sig-network] DNS a", state, seconds: 60, ...(state !== "passed" && { reason: "why" }) },
      { group: "other", name: "[sig-b] b [Serial]", state: "passed", seconds: 150 },
    ],
  });

  it("has a column for each server, and the reasons of what did not pass", () => {
    expect(tableOf([run("embedded", "passed"), run("k3s", "skipped")])).toMatchInlineSnapshot(`
      "- embedded: 2026-11-26, 9 minutes, 6 tests at a time and those that must be alone in 3 of them; Kubernetes 1.37.2, gVisor 1
      - k3s: 2026-11-26, 9 minutes, 6 tests at a time and those that must be alone in 3 of them; Kubernetes 1.36.3+k3s1, gVisor 1

      | Group: passed / failed / skipped | embedded | k3s |
      |---|---:|---:|
      | dns | 1 / 0 / 0 | 0 / 0 / 1 |
      | other | 1 / 0 / 0 | 1 / 0 / 0 |
      | **all** | 2 / 0 / 0 | 1 / 0 / 1 |

      k3s, skipped:

      - [sig-network] DNS a: why"
    `);
  });
});

it("the CNCF gets the tests that were chosen", () => {
  const passed = '<testcase name="a" status="passed" time="1"></testcase>';
  const skipped = '<testcase name="b" status="skipped" time="0">\n<skipped message="skipped"></skipped>\n</testcase>';
  expect(withoutSkipped(`<testsuite>\n${skipped}\n${passed}\n${skipped}\n</testsuite>`)).toBe(
    `<testsuite>\n${passed}\n</testsuite>`,
  );
});
