import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { parse } from "yaml";
import { redacted } from "../../automation/bundle.ts";
import { asText, changeOf } from "../../automation/changes.ts";
import { asTable } from "../../automation/doctor.ts";
import {
  changeUserKubeconfig,
  chosen,
  forget,
  merged,
  undo,
  userKubeconfig,
  without,
} from "../../automation/kubeconfig.ts";
import { machineOf, machinesOf } from "../../automation/list.ts";
import { statesInClear } from "../../automation/secrets.ts";
import { dropOldCopies, mendState, readConfig, setOption } from "../../automation/workspace.ts";
import { hostPaths } from "../../machines/paths.ts";

const own = (key: string) => `apiVersion: v1
kind: Config
clusters: [{ name: default, cluster: { server: "https://10.0.0.2:6443", certificate-authority-data: Y2E= } }]
users: [{ name: default, user: { client-key-data: ${key} } }]
contexts: [{ name: default, context: { cluster: default, user: default } }]
current-context: default
`;

const theirs = `# mine
apiVersion: v1
kind: Config
clusters:
  - name: work # do not touch
    cluster: { server: "https://work.example" }
users: []
contexts:
  - name: work
    context: { cluster: work, user: me }
current-context: work
`;

describe("the user's kubeconfig", () => {
  it("gets a cluster's entries under names of its own, and keeps all else", () => {
    const text = merged(theirs, own("a2V5"), "dev", true);
    expect(text).toContain("# mine");
    expect(text).toContain("# do not touch");
    const { clusters, users, contexts, ...rest } = parse(text);
    expect(clusters.map(({ name }: { name: string }) => name)).toEqual(["work", "gvisor-k3s-dev"]);
    expect(users).toEqual([{ name: "gvisor-k3s-dev", user: { "client-key-data": "a2V5" } }]);
    expect(contexts[1]).toEqual({
      name: "gvisor-k3s-dev",
      context: { cluster: "gvisor-k3s-dev", user: "gvisor-k3s-dev" },
    });
    expect(rest["current-context"]).toBe("gvisor-k3s-dev");
  });

  it("has them once, however often they are merged, and is the same as before without them", () => {
    const [once, twice] = [
      merged(theirs, own("b2xk"), "dev", false),
      merged(merged(theirs, own("b2xk"), "dev", false), own("bmV3"), "dev", false),
    ];
    expect(twice).toBe(once.replace("b2xk", "bmV3"));
    expect(parse(without(twice, "dev")!)).toEqual(parse(theirs));
    expect(without(theirs, "dev")).toBe(theirs);
  });

  it("is made where there is none, and is nothing without its only cluster", () => {
    const text = merged("", own("a2V5"), "dev", true);
    expect(parse(text)).toMatchObject({ apiVersion: "v1", kind: "Config", "current-context": "gvisor-k3s-dev" });
    expect(without(text, "dev")).toBeUndefined();
  });

  it("is switched to what is in it only", () => {
    expect(parse(chosen(merged(theirs, own("a2V5"), "dev", false), "dev")!)["current-context"]).toBe("gvisor-k3s-dev");
    expect(chosen(theirs, "dev")).toBeUndefined();
  });

  it("that is no YAML is refused", () => {
    expect(() => merged("a: [", own("a2V5"), "dev", true)).toThrow(
      /^the kubeconfig is no YAML .*; nothing was changed$/s,
    );
  });

  it("is the first file of KUBECONFIG", () => {
    expect(userKubeconfig({ KUBECONFIG: "/a:/b" })).toBe("/a");
    expect(userKubeconfig({})).toMatch(/\/\.kube\/config$/);
  });
});

describe("a change of the user's kubeconfig", () => {
  let folder: string;
  let file: string;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-kubeconfig-"));
    file = join(folder, "kube/config");
    vi.stubEnv("GVISOR_K3S_HOME", join(folder, "home"));
    vi.stubEnv("KUBECONFIG", file);
  });

  afterEach(() => {
    vi.unstubAllEnvs();
    rmSync(folder, { recursive: true });
  });

  const write = (text: string) => changeUserKubeconfig(file, () => text);
  const mine = merged(theirs, own("a2V5"), "dev", true);

  it("is its owner's only, and can be taken back, once", async () => {
    await write(theirs);
    await write(mine);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(await undo()).toBe(file);
    expect(readFileSync(file, "utf8")).toBe(theirs);
    await expect(undo()).rejects.toThrow("there is no change of a kubeconfig to take back");
  });

  it("is not taken back over a change of somebody else's", async () => {
    await write(theirs);
    writeFileSync(file, `${theirs}# later\n`);
    await expect(undo()).rejects.toThrow(/was changed since by something else; nothing was changed/);
    expect(readFileSync(file, "utf8")).toContain("# later");
  });

  it("ends with its cluster", async () => {
    await write(mine);
    await forget("dev");
    expect(readFileSync(file, "utf8")).not.toContain("gvisor-k3s");
    expect(readFileSync(file, "utf8")).toContain("# do not touch");
  });

  it("keeps the owner, the permissions and the link of what is there", async () => {
    const real = join(folder, "real");
    writeFileSync(real, theirs);
    chmodSync(real, 0o640);
    chownSync(real, 12345, 23456);
    mkdirSync(dirname(file));
    symlinkSync(real, file);
    await write(mine);
    expect(lstatSync(file).isSymbolicLink()).toBe(true);
    expect(statSync(real)).toMatchObject({ uid: 12345, gid: 23456, mode: 0o100640 });
    expect(readFileSync(real, "utf8")).toBe(mine);
  });

  it("follows a link to what is not there yet, and makes that", async () => {
    mkdirSync(dirname(file));
    symlinkSync("../later", file);
    await write(mine);
    expect(readFileSync(join(folder, "later"), "utf8")).toBe(mine);
  });

  it("a new one belongs to whom the folder belongs, under sudo too", async () => {
    chownSync(folder, 12345, 23456);
    await write(mine);
    expect(statSync(file)).toMatchObject({ uid: 12345, gid: 23456 });
    expect(statSync(dirname(file))).toMatchObject({ uid: 12345, gid: 23456, mode: 0o40700 });
  });

  it("waits for who has it locked, as kubectl does, and leaves no lock", async () => {
    mkdirSync(dirname(file));
    writeFileSync(`${file}.lock`, "");
    let done = false;
    const writing = write(mine).then(() => {
      done = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    expect(done).toBe(false);
    rmSync(`${file}.lock`);
    await writing;
    expect(existsSync(`${file}.lock`)).toBe(false);
  });

  it.each([
    ["a folder", () => mkdirSync(file, { recursive: true }), /kube\/config cannot be read: EISDIR/],
    ["no YAML", () => put("a: ["), /kube\/config: the kubeconfig is no YAML/],
    ["a list", () => put("- a\n"), /kube\/config: it holds something else than a kubeconfig/],
    ["in a place where nothing can be", () => (file = "/proc/nope/config"), /the folder \/proc\/nope cannot be made/],
  ])("that is %s is named", async (_, make, message) => {
    make();
    await expect(changeUserKubeconfig(file, (text) => merged(text, own("a2V5"), "dev", true))).rejects.toThrow(message);
  });

  function put(text: string): void {
    mkdirSync(dirname(file));
    writeFileSync(file, text);
  }
});

describe("a version of Kubernetes", () => {
  it("is set as a text, in a file that comes to be for it, and is taken back", async () => {
    const before = process.cwd();
    const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-options-"));
    const file = join(folder, "Pulumi.fresh.yaml");
    process.chdir(folder);
    const putBack = await setOption("fresh", ["kubernetes"], "1.36");
    expect(readFileSync(file, "utf8")).toBe('config:\n  gvisor-k3s:kubernetes: "1.36"\n');
    expect((await readConfig("fresh")).kubernetes).toBe("1.36");
    await putBack();
    expect(existsSync(file)).toBe(false);
    // As people write it.
    writeFileSync(file, "config:\n  gvisor-k3s:kubernetes: 1.36 # for now\n");
    expect((await readConfig("fresh")).kubernetes).toBe("1.36");
    await setOption("fresh", ["kubernetes"], "1.37");
    expect(readFileSync(file, "utf8")).toContain('gvisor-k3s:kubernetes: "1.37" # for now');
    process.chdir(before);
    rmSync(folder, { recursive: true });
  });
});

describe("a release of k3s", () => {
  it("is set in the options' file, comments kept, and taken back", async () => {
    const before = process.cwd();
    const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-options-"));
    const file = join(folder, "Pulumi.dev.yaml");
    process.chdir(folder);
    for (const given of [
      "{ version: v1.36.4+k3s1, mirror: http://m }",
      `'{"version":"v1.36.4+k3s1","mirror":"http://m"}'`,
    ]) {
      writeFileSync(file, `# mine\nconfig:\n  gvisor-k3s:distribution: k3s\n  gvisor-k3s:k3s: ${given}\n`);
      const putBack = await setOption("dev", ["k3s", "version"], "v1.37.0+k3s1");
      expect(readFileSync(file, "utf8")).toContain("# mine");
      expect((await readConfig("dev")).k3s).toEqual({ version: "v1.37.0+k3s1", mirror: "http://m" });
      await putBack();
      expect(readFileSync(file, "utf8")).toContain(given);
    }
    // It is the user's own: a link stays one.
    const real = join(folder, "elsewhere.yaml");
    renameSync(file, real);
    chmodSync(real, 0o640);
    symlinkSync(real, file);
    await setOption("dev", ["k3s", "version"], "v1.37.0+k3s1");
    expect([lstatSync(file).isSymbolicLink(), statSync(real).mode & 0o777]).toEqual([true, 0o640]);
    expect(readFileSync(real, "utf8")).toContain("v1.37.0+k3s1");
    process.chdir(before);
    rmSync(folder, { recursive: true });
  });
});

describe("Pulumi's copies of a stack's state", () => {
  it("are those of the last runs, and other stacks' are left alone", () => {
    const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-copies-"));
    const folder = (kind: string, stack: string) => join(home, "pulumi/.pulumi", kind, "gvisor-k3s", stack);
    const time = (run: number) => `17956554092${String(run).padStart(8, "0")}`;
    const files = (stack: string, run: number) => ({
      [folder("backups", stack)]: [`${stack}.${time(run)}.json`, `${stack}.${time(run)}.json.attrs`],
      [folder("history", stack)]: [`${stack}-${time(run)}.checkpoint.json`, `${stack}-${time(run)}.history.json`],
    });
    for (const stack of ["a", "a-179565540922365163"])
      for (let run = 0; run < 23; run++)
        for (const [where, names] of Object.entries(files(stack, run))) {
          mkdirSync(where, { recursive: true });
          for (const name of names) writeFileSync(join(where, name), "");
        }
    dropOldCopies(home, "a");
    dropOldCopies(home, "of which there is none");
    for (const [stack, first] of [["a", 3] as const, ["a-179565540922365163", 0] as const])
      for (let run = 0; run < 23; run++)
        for (const [where, names] of Object.entries(files(stack, run)))
          for (const name of names) expect(existsSync(join(where, name)), name).toBe(run >= first);
    dropOldCopies(home, "a-179565540922365163");
    expect(readdirSync(folder("history", "a-179565540922365163"))).toHaveLength(40);
    rmSync(home, { recursive: true });
  });
});

describe("a state that a full disk has cut short", () => {
  it("is replaced by its last whole copy, and by nothing where it is whole or there is none", () => {
    const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-states-"));
    const at = (file: string) => join(home, "pulumi/.pulumi", file);
    const [state, bak] = ["stacks/gvisor-k3s/dev.json", "stacks/gvisor-k3s/dev.json.bak"].map(at);
    const write = (files: Record<string, string>) => {
      rmSync(join(home, "pulumi"), { recursive: true, force: true });
      for (const [file, text] of Object.entries(files)) {
        mkdirSync(dirname(at(file)), { recursive: true });
        writeFileSync(at(file), text);
      }
    };
    const mended = () => {
      const said: string[] = [];
      mendState(home, "dev", (line) => said.push(line));
      return said.join();
    };
    const backup = (time: number) => `backups/gvisor-k3s/dev/dev.${time}.json`;
    write({ "stacks/gvisor-k3s/dev.json": '{"of":"now"}', "stacks/gvisor-k3s/dev.json.bak": '{"of":"before"}' });
    expect([mended(), readFileSync(state!, "utf8")]).toEqual(["", '{"of":"now"}']);
    for (const cut of ["", '{"of":"n']) {
      write({ "stacks/gvisor-k3s/dev.json": cut, "stacks/gvisor-k3s/dev.json.bak": '{"of":"before"}' });
      expect(mended()).toContain(bak);
      expect(readFileSync(state!, "utf8")).toBe('{"of":"before"}');
      write({
        "stacks/gvisor-k3s/dev.json": cut,
        "stacks/gvisor-k3s/dev.json.bak": cut,
        [backup(1)]: '{"of":"long ago"}',
        [backup(2)]: '{"of":"before"}',
        [backup(3)]: cut,
      });
      expect(mended()).toContain(at(backup(2)));
      expect(readFileSync(state!, "utf8")).toBe('{"of":"before"}');
      write({ "stacks/gvisor-k3s/dev.json": cut });
      expect([mended(), readFileSync(state!, "utf8")]).toEqual(["", cut]);
    }
    write({});
    expect(mended()).toBe("");
    rmSync(home, { recursive: true });
  });
});

describe("a state with secrets in clear", () => {
  it("is found in each of its copies, by what is known and by the form of keys, and no other stack's", () => {
    const folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-states-"));
    const at = (file: string) => join(folder, ".pulumi", file);
    const write = (file: string, text: string) => {
      mkdirSync(dirname(at(file)), { recursive: true });
      writeFileSync(at(file), text);
    };
    const encrypted = readFileSync(join(import.meta.dirname, "../e2e/fixtures/v0.2.0/stack.json"), "utf8");
    const state = (inputs: object) => encrypted.replace('"dependencies"', `"inputs": ${JSON.stringify(inputs)}, "d"`);
    const key = `-----BEGIN EC PRIVATE KEY-----\n${"A".repeat(64)}\n-----END EC PRIVATE KEY-----\n`;
    const kubeconfig = `users: [{ user: { client-key-data: ${Buffer.from(key).toString("base64")} } }]`;
    write("stacks/gvisor-k3s/dev.json", state({ content: kubeconfig }));
    write(
      "stacks/gvisor-k3s/dev.json.bak",
      state({ environment: { STEP_PARAMS: JSON.stringify({ auth: 'pass"word' }) } }),
    );
    write("stacks/gvisor-k3s/other.json", state({ content: kubeconfig }));
    write("history/gvisor-k3s/dev/dev-1.checkpoint.json", state({ content: key }));
    write("history/gvisor-k3s/dev/dev-2.checkpoint.json", encrypted);
    write("backups/gvisor-k3s/dev/dev.1.json", state({ content: "short" }));
    expect(statesInClear(folder, "dev", ['pass"word', "short"])).toEqual(
      [
        "stacks/gvisor-k3s/dev.json",
        "stacks/gvisor-k3s/dev.json.bak",
        "history/gvisor-k3s/dev/dev-1.checkpoint.json",
      ].map(at),
    );
    expect(statesInClear(join(folder, "none"), "dev", [])).toEqual([]);
    rmSync(folder, { recursive: true });
  });

  it("is told by doctor with what to do", () => {
    const report = { probed: "it", kernel: "4.4", findings: [], blockers: [], recommendedMode: "node" as const };
    expect(asTable({ ...report, secretsInClear: [] })).not.toContain("secrets");
    const told = asTable({ ...report, secretsInClear: ["/home/state.json"] });
    expect(told).toMatch(
      /\n! secrets are in clear in the stack's state: .*`gvisor-k3s up`.*\n {2}\/home\/state\.json\n$/,
    );
  });
});

describe("the machines of a stack", () => {
  const home = mkdtempSync(join(tmpdir(), "gvisor-k3s-machines-"));
  const ssh = { host: "192.0.2.1", port: 22, user: "root", knownHosts: "/nowhere", sudo: false };

  function made(name: string, more: object): void {
    const known = {
      version: 2,
      incarnation: 1,
      revision: "",
      pid: 0,
      startTime: "",
      repairs: 0,
      programs: { init: "" },
    };
    const { record } = hostPaths(name, home);
    mkdirSync(dirname(record), { recursive: true });
    writeFileSync(record, JSON.stringify({ ...known, ...more }));
  }

  beforeEach(() => {
    vi.stubEnv("GVISOR_K3S_HOME", home);
    made("own", { kind: "managed", owner: "gvisor-k3s/dev" });
    made("elsewhere", { kind: "ssh", owner: "gvisor-k3s/dev", ssh });
    made("theirs", { kind: "managed", owner: "gvisor-k3s/other" });
  });

  afterEach(() => {
    vi.unstubAllEnvs();
    rmSync(home, { recursive: true });
  });

  it("are those that were made for it, and how they are reached is known", () => {
    expect(machinesOf("dev")).toEqual([
      { kind: "ssh", name: "elsewhere", home, ssh },
      { kind: "managed", name: "own", home },
    ]);
    expect(machinesOf("own")).toEqual([]);
  });

  it("are no other stack's, whatever the option name says", () => {
    expect(machineOf("dev", "theirs")?.name).not.toBe("theirs");
    expect(machineOf("another", "theirs")).toBeUndefined();
    expect(machineOf("other", "theirs")).toEqual({ kind: "managed", name: "theirs", home });
  });
});

describe("a text for a bug report", () => {
  it("has no known secret in it, wherever it stands", () => {
    const secret = fc
      .string({ minLength: 6, maxLength: 40 })
      .filter((text) => !"<removed>".includes(text.trim()) && !text.includes("<") && text.trim() !== "");
    fc.assert(
      fc.property(
        fc.string(),
        secret,
        fc.string(),
        (before, hidden, after) => !redacted(`${before}${hidden}${after}`, [hidden]).includes(hidden),
      ),
    );
  });

  it.each([
    ["-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----", "MHcCAQ"],
    ["Authorization: Bearer eyJhbGciOi.eyJpc3MiOi.c2ln", "eyJ"],
    ['{"password":"hunter2 and more","user":"me"}', "hunter2"],
    ["password = 'hunter2'", "hunter2"],
    ["pull from https://me:hunter2@registry.example/v2", "hunter2"],
    ["client-key-data: TUhjQ0FRRUU=", "TUhj"],
    [`server token K10${"a1".repeat(32)}::server:hunter2`, "hunter2"],
  ])("has no secret of a known form: %s", (text, secret) => {
    expect(redacted(text, [])).not.toContain(secret);
  });

  it("keeps what is none", () => {
    const text = "I1124 pods/default/testpod: Running on 10.42.0.5, https://10.0.0.2:6443/healthz?x=1";
    expect(redacted(text, ["short"])).toBe(text);
  });
});

describe("a preview", () => {
  const event = (op: string, before: object | undefined, after: object | undefined, type = "command:local:Command") =>
    ({
      sequence: 1,
      timestamp: 1,
      resourcePreEvent: {
        metadata: {
          op,
          urn: "urn:pulumi:dev::gvisor-k3s::x::containerd-apply",
          type,
          provider: "",
          old: before && { inputs: before },
          new: after && { inputs: after },
        },
      },
    }) as unknown as Parameters<typeof changeOf>[0];
  const inputs = (stdin: string, params: object = {}) => ({
    create: "containerd",
    stdin,
    environment: { STEP_PARAMS: JSON.stringify(params) },
  });

  it("shows a file's change as a unified diff, and what is restarted", () => {
    const change = changeOf(
      event(
        "update",
        inputs('root = "/a"\nsnapshotter = "overlayfs"\n'),
        inputs('root = "/a"\nsnapshotter = "native"\n'),
      ),
    )!;
    expect(asText([change], false).split("\n")).toEqual([
      "~ update containerd-apply: restarts containerd; running pods live on",
      "    --- a/etc/containerd/config.toml",
      "    +++ b/etc/containerd/config.toml",
      "    @@ -1,2 +1,2 @@",
      '     root = "/a"',
      '    -snapshotter = "overlayfs"',
      '    +snapshotter = "native"',
    ]);
    expect(asText([change], true)).toContain('\u001b[32m+snapshotter = "native"\u001b[39m');
  });

  it("shows a changed parameter as a line of its own", () => {
    const change = changeOf(event("update", inputs("", { name: "a", port: 1 }), inputs("", { name: "a", port: 2 })))!;
    expect(change.diffs.join("")).toContain("-  port: 1\n+  port: 2\n");
  });

  it("says what is lost where something is made anew, and nothing of what stays or only groups", () => {
    expect(asText([changeOf(event("replace", inputs(""), inputs("")))!], false)).toBe(
      "± replace containerd-apply: made anew: what is in it is lost",
    );
    expect(changeOf(event("same", inputs(""), inputs("")))).toBeUndefined();
    expect(changeOf(event("create", undefined, {}, "gvisor-k3s:index:Images"))).toBeUndefined();
  });
});

it("a log that somebody has thought of takes no time without end to be looked through", () => {
  const texts = ["a", "eyJ-", "-----BEGIN PRIVATE KEY-----", "a://b:", "password=", "token : ", " "];
  for (const text of texts) expect(redacted(text.repeat(2 ** 19 / text.length), [])).toBeTypeOf("string");
});

it("a secret is one however long it is, and whatever stands before it", () => {
  const [long, key] = ["A1".repeat(20_000), "PRIVATE KEY-----"];
  const texts = [
    `-----BEGIN RSA ${key}\n${long}\n-----END RSA ${key}`,
    `x-eyJ${long}.${long}.${long}`,
    `averyveryverylongnameofascheme://user:${long}@host`,
    `password${" ".repeat(100)}=${" ".repeat(100)}${long}`,
  ];
  for (const text of texts) expect(redacted(`before ${text} after`, [])).not.toContain("A1A1");
  const unfinished = `eyJ${long} -----BEGIN ${key} ${long}`;
  expect(redacted(unfinished, [])).toBe(unfinished);
});
