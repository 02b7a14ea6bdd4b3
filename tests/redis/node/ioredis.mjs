// ioredis: HOST:PORT of each server.

import assert from "node:assert/strict";
import Redis from "ioredis";

const servers = process.argv.slice(2).map((address) => address.split(":"));

function open(at, options = {}) {
  const [host, port] = servers[at % servers.length];
  const client = new Redis({ host, port: Number(port), ...options });
  client.on("error", (error) => { throw error; });
  return client;
}

for (const at of servers.keys()) {
  const client = open(at, { enableAutoPipelining: true }), other = open(at + 1, { db: 1 });
  await client.flushall();
  assert.equal(await client.set("k", "v", "EX", 100), "OK");
  assert.equal(await client.get("k"), "v");
  assert.equal(await other.get("k"), null);
  await other.select(0);
  assert.equal(await other.get("k"), "v");
  const bytes = Buffer.from([...Array(256).keys()]);
  await client.set(bytes, bytes);
  assert.deepEqual(await other.getBuffer(bytes), bytes);
  const sums = await Promise.all([...Array(200)].map(() => client.incr("n")));
  assert.deepEqual(sums, [...Array(200).keys()].map((n) => n + 1));
  const pipeline = client.pipeline();
  for (let n = 0; n < 100; n++) pipeline.set(`p${n}`, n).get(`p${n}`);
  const replies = await pipeline.exec();
  replies.forEach(([error, reply], n) => {
    assert.equal(error, null);
    assert.equal(reply, n % 2 ? `${(n - 1) / 2}` : "OK");
  });
  const found = new Set();
  for await (const keys of client.scanStream({ match: "p*" })) keys.forEach((key) => found.add(key));
  assert.equal(found.size, 100);
  assert.deepEqual(await client.multi().incr("{t}a").incr("{t}b").exec(), [[null, 1], [null, 1]]);
  await client.watch("{t}a");
  await other.incr("{t}a");
  assert.equal(await client.multi().incr("{t}a").exec(), null);
  await assert.rejects(client.call("NOSUCH", "a"), /unknown command 'NOSUCH'/);
  await client.quit();
  await other.quit();
}
console.log("passed");
