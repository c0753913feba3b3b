import { readFileSync } from "node:fs";
import * as pulumi from "@pulumi/pulumi";
import { renderContainerdConfig } from "../config/containerdToml.ts";
import { containerdKeysFor } from "../config/quirks.ts";
import { renderCredentials, renderRegistries } from "../config/registries.ts";
import type { StackConfig } from "../config/schema.ts";
import { imageName, pathInSandbox, stagedPath } from "../toolchain/artifacts.ts";
import type { QuirkProbe } from "./quirkProbe.ts";
import type { RuntimeWrapper } from "./runtimeWrapper.ts";
import type { Sandbox } from "./sandbox.ts";

export interface ContainerdConfigArgs {
  sandbox: Sandbox;
  probe: QuirkProbe;
  runtime: RuntimeWrapper;
  containerd: StackConfig["containerd"];
  registries: StackConfig["registries"];
  proxy: StackConfig["proxy"];
  /** Networks that need no proxy: the cluster's own. */
  direct: string[];
}

/**
 * containerd with its shim, and their configuration; a change of it is one restart of containerd, which running pods
 * survive.
 */
export class ContainerdConfig extends pulumi.ComponentResource {
  /** The file as containerd reads it. */
  readonly toml: pulumi.Output<string>;

  constructor(name: string, args: ContainerdConfigArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:ContainerdConfig", name, {}, options);
    const { sandbox, probe, runtime, containerd, registries } = args;
    const own = (["containerd", "shim"] as const).flatMap((option) =>
      containerd[option] ? [{ source: containerd[option], name: fileName[option] }] : [],
    );
    const path = (option: keyof typeof fileName) =>
      containerd[option]
        ? stagedPath(containerd[option], fileName[option])
        : pathInSandbox({ name: "containerd" }, fileName[option]);
    this.toml = pulumi
      .all([runtime.path, probe.found])
      .apply(([binary, found]) =>
        renderContainerdConfig(
          containerd,
          { runtime: binary, cniPlugins: pathInSandbox({ name: "cni" }, ""), pauseImage: imageName("pause") },
          containerdKeysFor(found),
        ),
      );
    const build = sandbox.build(name, { artifacts: [{ name: "containerd" }, { name: "cni" }], own }, { parent: this });
    const credentials = renderCredentials(registries);
    const params = {
      ...sandbox.ref,
      containerd: path("containerd"),
      shim: path("shim"),
      ...(credentials ? { credentials: pulumi.secret(credentials) } : {}),
      env: proxyEnvironment(args.proxy, args.direct),
    };
    sandbox.step(
      `${name}-apply`,
      {
        step: "containerd",
        params,
        content: this.toml,
        incarnation: sandbox.incarnation,
        repairs: sandbox.repairs("containerd"),
      },
      sandbox.inside(this, runtime, build),
    );
    const files = renderRegistries(registries, (file) => readFileSync(file, "utf8"));
    const content = JSON.stringify(files, null, 2);
    const secret = Object.keys(files).some((file) => file.endsWith(".key"));
    sandbox.step(
      `${name}-registries`,
      {
        step: "registries",
        params: sandbox.ref,
        content: secret ? pulumi.secret(content) : content,
        ...sandbox.again,
        repairs: sandbox.repairs("registries"),
      },
      sandbox.inside(this, sandbox),
    );
    this.registerOutputs();
  }
}

function proxyEnvironment({ http, https, noProxy }: StackConfig["proxy"], direct: string[]): string[] {
  const variables = { ...(http ? { HTTP_PROXY: http } : {}), ...(https ? { HTTPS_PROXY: https } : {}) };
  if (Object.keys(variables).length === 0) return [];
  return Object.entries({ ...variables, NO_PROXY: ["localhost", "127.0.0.0/8", ...direct, ...noProxy].join(",") }).map(
    ([name, value]) => `${name}=${value}`,
  );
}

const fileName = { containerd: "containerd", shim: "containerd-shim-runc-v2" } as const;
