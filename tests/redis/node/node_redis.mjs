// node-redis with both versions of the protocol: HOST:PORT of each server.

import assert from "node:assert/strict";
import { createClient, WatchError } from "redis";

const servers = process.argv.slice(2);

async function open(at, RESP) {
  const client = createClient({ url: `redis://${servers[at % servers.length]}`, RESP });
  client.on("error", (error) => { throw error; });
  return client.connect();
}

for (const protocol of [2, 3]) {
  for (const at of servers.keys()) {
    const client = await open(at, protocol), other = await open(at + 1, protocol);
    await client.flushAll();
    assert.equal(await client.ping(), "PONG");
    assert.equal(await client.set("k", "v", { EX: 100 }), "OK");
    assert.equal(await client.get("k"), "v");
    assert.ok(await client.ttl("k") > 90);
    assert.equal(await client.set("k", "w", { NX: true }), null);
    assert.equal(await other.getDel("k"), "v");
    assert.equal(await client.get("k"), null);
    await client.mSet(Object.fromEntries([...Array(50).keys()].map((n) => [`m${n}`, `${n}`])));
    assert.deepEqual(await other.mGet(["m0", "m49", "absent"]), ["0", "49", null]);
    // Commands of one turn of the event loop are one pipeline.
    const sums = await Promise.all([...Array(200)].map(() => client.incr("n")));
    assert.deepEqual(sums, [...Array(200).keys()].map((n) => n + 1));
    const found = new Set();
    for await (const keys of client.scanIterator({ MATCH: "m*", COUNT: 5 })) keys.forEach((key) => found.add(key));
    assert.equal(found.size, 50);
    assert.deepEqual(await client.multi().set("{t}a", "1").incr("{t}a").get("{t}a").exec(), ["OK", 2, "2"]);
    await client.watch("{t}a");
    await other.incr("{t}a");
    await assert.rejects(client.multi().set("{t}a", "0").exec(), WatchError);
    await assert.rejects(client.incr("m0").then(() => client.set("m0", "text")).then(() => client.incr("m0")), /not an integer/);
    assert.match(await client.info("server"), /redis_mode:standalone/);
    await client.close();
    await other.close();
  }
}
console.log("passed");
