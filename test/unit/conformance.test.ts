/** What of the conformance tests is run without a node. */
import { describe, expect, it } from "vitest";
import { groupNames, groupOf, groupsOf, usualGroups } from "../../conformance/groups.ts";
import results from "../../conformance/results.json" with { type: "json" };

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
    expect(results.results.filter(({ name, group }) => groupOf(name) !== group)).toEqual([]);
  });
});
