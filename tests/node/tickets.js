// Counts each event once, whatever becomes of its server: tickets as a client in any language makes them, see "A ticket"
// in feature_store_service.proto.
//
//   node tickets.js TARGET PROTO_ROOT EVENTS EACH
//
// Observes EVENTS events, some at once, each within 1 to 20 ms; one of unknown outcome again under its ticket, with
// more time each try, until it is answered. Writes a line of JSON after every EACH events that were begun, and one at
// the end: how many were "unknown" once at least, and of those how many had been applied all the same ("found").
"use strict";

const crypto = require("node:crypto");
const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");
const modules = process.env.NODE_MODULES;
const grpc = require(path.join(modules, "@grpc/grpc-js"));
const loader = require(path.join(modules, "@grpc/proto-loader"));

const [target, root, ...numbers] = process.argv.slice(2);
const [events, each] = numbers.map(Number);
const T0 = 1_700_000_000_000;
const AT_ONCE = 8;
const NEAR = 1000; // below the 1,024 numbers that the store can judge
const WAIT_MS = 50;
const LAST_WORDS = [grpc.status.INVALID_ARGUMENT, grpc.status.FAILED_PRECONDITION]; // of the same again, the same

const options = { keepCase: true, longs: Number, enums: String, defaults: true, includeDirs: [root] };
const loaded = loader.loadSync("featurestore/v1/feature_store_service.proto", options);
const { FeatureStoreService } = grpc.loadPackageDefinition(loaded).featurestore.v1;
const reconnect = { "grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 100 };
const client = new FeatureStoreService(target, grpc.credentials.createInsecure(), reconnect);

class Tickets {
  producer = `client-${crypto.randomBytes(8).toString("hex")}`;
  next = 1;
  unfinished = new Set(); // sequences, the lowest first

  async take() {
    while (this.next - (this.unfinished.values().next().value ?? this.next) >= NEAR) await sleep(1);
    this.unfinished.add(this.next);
    return { producer: this.producer, epoch: 1, sequence: this.next++ };
  }

  finish(ticket) {
    this.unfinished.delete(ticket.sequence);
  }
}

function observe(request, time_ms) {
  return new Promise((resolve, reject) => {
    const ended = (error, reply) => (error ? reject(error) : resolve(reply));
    client.Observe(request, { deadline: Date.now() + time_ms }, ended);
  });
}

const tickets = new Tickets();
const seen = { unknown: 0, found: 0 };

// Any answer is the last word, one that refuses the event too; an error is none, unless it would be the same again.
async function count(ticket) {
  const event = { time_ms: T0, fields: [{ name: "ip", text: "a" }] };
  const request = { event_type: "play", event, ...ticket };
  let time_ms = 1 + Math.floor(Math.random() * 20);
  let unknown = false;
  for (;;) {
    try {
      const { outcome } = await observe(request, time_ms);
      if (outcome !== "OUTCOME_ACCEPTED" && !(unknown && outcome === "OUTCOME_DUPLICATE")) {
        throw new Error(`sequence ${ticket.sequence}: ${outcome}`);
      }
      seen.unknown += unknown;
      seen.found += outcome === "OUTCOME_DUPLICATE";
      return;
    } catch (error) {
      if (error.code === undefined || LAST_WORDS.includes(error.code)) throw error;
      // "no" is of this try: of one before it says nothing
      if (error.metadata?.get("featurestore-applied")[0] !== "no") unknown = true;
      if (error.code !== grpc.status.DEADLINE_EXCEEDED) await sleep(WAIT_MS);
      time_ms = Math.min(2 * time_ms, 60_000);
    }
  }
}

let left = events;

async function work() {
  while (left-- > 0) {
    const ticket = await tickets.take();
    if (ticket.sequence % each === 0) console.log(JSON.stringify({ begun: ticket.sequence }));
    await count(ticket);
    tickets.finish(ticket);
  }
}

(async () => {
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  console.log(JSON.stringify(seen));
  client.close();
})();
