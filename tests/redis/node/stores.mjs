// Stores on top of the clients: connect-redis with the interface of express-session, and keyv. HOST:PORT of each server.

import assert from "node:assert/strict";
import { promisify } from "node:util";
import { RedisStore } from "connect-redis";
import session from "express-session";
import Keyv from "keyv";
import KeyvRedis from "@keyv/redis";
import { createClient } from "redis";

const servers = process.argv.slice(2);

const client = await createClient({ url: `redis://${servers[0]}/7` }).connect();
await client.flushDb();
const store = new RedisStore({ client, prefix: "sess:" });
assert.ok(store instanceof session.Store);
const call = (name, ...words) => promisify(store[name]).call(store, ...words);
const content = { cookie: { originalMaxAge: 60_000 }, user: "ü" };
await call("set", "one", content);
await call("set", "two", content);
assert.deepEqual(await call("get", "one"), content);
assert.ok(!await call("get", "absent"));
await call("touch", "one", content);
assert.equal(await call("length"), 2);
assert.deepEqual((await call("ids")).sort(), ["one", "two"]);
assert.equal((await call("all")).length, 2);
await call("destroy", "one");
await call("clear");
assert.equal(await call("length"), 0);
await client.close();

const keyv = new Keyv(new KeyvRedis(`redis://${servers[1]}/8`), { namespace: "kv" });
keyv.on("error", (error) => { throw error; });
assert.ok(await keyv.set("k", { a: [1, null] }, 60_000));
assert.deepEqual(await keyv.get("k"), { a: [1, null] });
await keyv.set("n", 7);
assert.deepEqual(await keyv.get(["k", "n", "absent"]), [{ a: [1, null] }, 7, undefined]);
assert.ok(await keyv.has("n"));
assert.ok(await keyv.delete("n"));
const found = [];
for await (const [key] of keyv.iterator()) found.push(key);
assert.deepEqual(found, ["k"]);
await keyv.clear();
assert.equal(await keyv.get("k"), undefined);
await keyv.disconnect();
console.log("passed");
