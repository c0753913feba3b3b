// Serves what its ConfigMap says, which it reads when it starts and when the kernel tells it of a change, at no other time.
import { readFileSync } from "node:fs";
import { watch } from "chokidar";
import express from "express";

const file = "/config/greeting";
const state = { greeting: readFileSync(file, "utf8"), changes: 0 };

watch("/config", { ignoreInitial: true, usePolling: false }).on("all", () => {
  const greeting = readFileSync(file, "utf8");
  if (greeting === state.greeting) return;
  state.greeting = greeting;
  state.changes++;
});

express()
  .get("/", (_request, response) => response.json(state))
  .listen(8080);
