import { z } from "zod";

/** A path as an option takes it. */
export const absolutePath = z.string().regex(/^\//, "an absolute path is allowed");

/** What is said of anything that is no rule. */
export const RULE_FORMS =
  "one of {dropNamespace: TYPE}, {dropMaskedPath: PATH}, {dropMount: PATH}, {unset: FIELD}, " +
  "{set: FIELD, value: JSON}, {sysctls: show} is allowed";

const field = z.string().min(1, "a path such as linux.seccomp is allowed");

/** See {@link OciRule}; node/wrapper/rules.go carries it out. */
export const ociRule = z.union([
  z.strictObject({ dropNamespace: z.enum(["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]) }),
  z.strictObject({ dropMaskedPath: absolutePath }),
  z.strictObject({ dropMount: absolutePath }),
  z.strictObject({ unset: field }),
  z.strictObject({ set: field, value: z.json() }),
  z.strictObject({ sysctls: z.literal("show") }),
]);

/** One change that the runtime wrapper makes to every container's OCI spec. */
export type OciRule = z.infer<typeof ociRule>;
