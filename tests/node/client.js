// A client in Node, made by others than the server: reads the .proto files as they are and calls whatever it is told.
//
// One command per line of standard input, as JSON, one answer per line of standard output, in the same order:
//
//   {"service", "method", "request", "deadline_ms"?, "metadata"?}       a unary call
//   {"service", "method", "requests", "deadline_ms"?, "hold"?}          a stream, closed after the last request;
//                                                                       "hold": never closed
//   {"service", "method", "request", "times"}                           so many unary calls at once
//
// An answer has "replies", and "code", "details" and "error" (the class of ours) of how the call ended;
// those of many calls are in "ends".
"use strict";

const path = require("node:path");
const readline = require("node:readline");
const modules = process.env.NODE_MODULES;
const grpc = require(path.join(modules, "@grpc/grpc-js"));
const loader = require(path.join(modules, "@grpc/proto-loader"));

const [target, root, ...files] = process.argv.slice(2);
const options = { keepCase: true, longs: Number, enums: String, defaults: true, includeDirs: [root] };
const loaded = grpc.loadPackageDefinition(loader.loadSync(files, options)).featurestore.v1;
const clients = {};

function clientOf(service) {
  clients[service] ??= new loaded[service](target, grpc.credentials.createInsecure());
  return clients[service];
}

function endOf(error, trailers) {
  const status = error ?? { code: 0, details: "", metadata: trailers };
  const ours = status.metadata?.get("featurestore-error") ?? [];
  return { code: status.code, details: status.details, error: ours[0] ?? "" };
}

function settingsOf(command) {
  return command.deadline_ms === undefined ? {} : { deadline: Date.now() + command.deadline_ms };
}

function unary(command) {
  return new Promise((resolve) => {
    const metadata = new grpc.Metadata();
    for (const [name, value] of Object.entries(command.metadata ?? {})) {
      metadata.add(name, name.endsWith("-bin") ? Buffer.from(value, "base64") : value);
    }
    const client = clientOf(command.service);
    client[command.method](command.request, metadata, settingsOf(command), (error, reply) => {
      resolve({ replies: error ? [] : [reply], ...endOf(error) });
    });
  });
}

function stream(command) {
  return new Promise((resolve) => {
    const replies = [];
    const call = clientOf(command.service)[command.method](new grpc.Metadata(), settingsOf(command));
    call.on("data", (reply) => replies.push(reply));
    call.on("error", (error) => resolve({ replies, ...endOf(error) }));
    call.on("end", () => resolve({ replies, ...endOf(null) }));
    for (const request of command.requests) call.write(request);
    if (!command.hold) call.end();
  });
}

async function run(command) {
  if (command.requests !== undefined) return stream(command);
  if (command.times === undefined) return unary(command);
  const ends = await Promise.all(Array.from({ length: command.times }, () => unary(command)));
  return { replies: ends.flatMap((end) => end.replies), ends: ends.map(({ replies, ...end }) => end) };
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(await run(JSON.parse(line))) + "\n");
  }
  for (const client of Object.values(clients)) client.close();
})();
