#!/usr/bin/env node
// In JavaScript that any Node.js of the last years reads, so that an old one is told what is wrong.
import { existsSync } from "node:fs";

const NEEDED = 24;

if (Number(process.versions.node.split(".")[0]) < NEEDED) {
  console.error(
    `gvisor-k3s needs Node.js ${NEEDED} or newer, and this is ${process.versions.node} (${process.execPath}); ` +
      "install one from https://nodejs.org",
  );
  process.exitCode = 1;
} else {
  const compiled = new URL("../automation/cli.js", import.meta.url); // in the npm package
  await import(existsSync(compiled) ? compiled.href : new URL("../automation/cli.ts", import.meta.url).href);
}
