/**
 * Which conformance tests are not tried on a node, and why.
 * @module
 */
import { parse } from "yaml";

/** What no node alone can do, or none in gVisor. */
const leftOut: { match: RegExp; reason: string; nodes?: number }[] = [
  {
    match: /should have at least two untainted nodes|Daemon set should rollback without unnecessary restarts/,
    reason: "needs two nodes",
    nodes: 2,
  },
  { match: /\[Feature:SCTPConnectivity\]/, reason: "needs SCTP, which gVisor does not have" },
];

/**
 * The minor versions of Kubernetes since which tests are part of its conformance.
 * @param text upstream's list of the tests, test/conformance/testdata/conformance.yaml
 * @returns the number behind "1.", by the tests' full names on one line
 */
export function releasesOf(text: string): Map<string, number> {
  const tests = parse(text) as { codename: string; release: string }[];
  // Where several are named, the first one brought the test, and the others changed it.
  return new Map(
    tests.map(({ codename, release }) => [codename.replace(/\s+/g, " "), Number(/1\.(\d+)/.exec(release)![1])]),
  );
}

/**
 * Why a test is not tried; undefined if it is.
 * @param test its full name on one line
 * @param kubernetes the version of the server; without one, every version's tests are tried
 * @param has how many nodes there are
 */
export function reasonOf(
  test: string,
  releases: Map<string, number>,
  kubernetes?: string,
  has = 1,
): string | undefined {
  const [since, minor] = [releases.get(test), /^1\.(\d+)/.exec(kubernetes ?? "")?.[1]];
  if (since !== undefined && minor !== undefined && since > Number(minor))
    return `part of conformance since Kubernetes 1.${since}`;
  return leftOut.find(({ match, nodes = Number.POSITIVE_INFINITY }) => match.test(test) && has < nodes)?.reason;
}
