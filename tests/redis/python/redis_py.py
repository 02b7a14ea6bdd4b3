"""redis-py, synchronous and asynchronous, with both versions of the protocol: HOST:PORT of each server."""

import asyncio
import sys
import time

import redis
import redis.asyncio

SERVERS = [address.rsplit(":", 1) for address in sys.argv[1:]]


def client(protocol, at=0, **options):
    host, port = SERVERS[at % len(SERVERS)]
    return redis.Redis(host=host, port=int(port), protocol=protocol, **options)


def fails(text, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except redis.ResponseError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error: {text}")


def strings(r):
    assert r.ping()
    binary = bytes(range(256))
    assert r.set(binary, binary) and r.get(binary) == binary
    assert r.set("k", "v", nx=True) and r.set("k", "w", nx=True) is None
    assert r.set("k", "w", xx=True, get=True) == b"v"
    assert r.getset("k", "x") == b"w" and r.getdel("k") == b"x" and r.get("k") is None
    assert r.append("k", "ab") == 2 and r.setrange("k", 3, "c") == 4 and r.getrange("k", 0, -1) == b"ab\0c"
    assert r.strlen("k") == 4
    assert r.incr("n") == 1 and r.incrby("n", 41) == 42 and r.decr("n", 2) == 40
    assert r.incrbyfloat("f", 0.5) == 0.5
    assert r.mset({f"m{n}": n for n in range(20)})
    assert r.mget([f"m{n}" for n in range(21)]) == [str(n).encode() for n in range(20)] + [None]
    fails("not an integer", r.incr, "k")
    fails("unknown command", r.execute_command, "NOSUCH", "a")
    big = b"x" * (1 << 20)
    assert r.set("big", big) and r.get("big") == big


def keys(r):
    assert r.exists("k", "n", "absent") == 2 and r.type("k") == b"string"
    assert r.expire("k", 100) and 98 <= r.ttl("k") <= 100 and not r.expire("k", 50, gt=True)
    assert r.persist("k") and r.ttl("k") == -1 and r.ttl("absent") == -2
    assert r.set("short", "v", px=50)
    end = time.monotonic() + 10
    while r.exists("short"):
        assert time.monotonic() < end, "an entry outlives its deadline"
    assert set(r.scan_iter("m*", count=3)) == {f"m{n}".encode() for n in range(20)}
    assert set(r.keys("m?")) == {f"m{n}".encode() for n in range(10)}
    assert r.dbsize() > 20 and r.randomkey() is not None
    assert r.delete(*[f"m{n}" for n in range(20)]) == 20


def pipelines(r):
    with r.pipeline(transaction=False) as pipe:
        for n in range(300):
            pipe.set(f"p{n}", n).get(f"p{n}")
        assert pipe.execute() == [reply for n in range(300) for reply in (True, str(n).encode())]
    with r.pipeline(transaction=False) as pipe:
        pipe.set("{t}s", "text").incr("{t}s").get("{t}s")
        replies = pipe.execute(raise_on_error=False)
        assert isinstance(replies[1], redis.ResponseError) and replies[2] == b"text"


def transactions(r, other):
    r.set("{t}a", 1)
    with r.pipeline() as pipe:
        assert pipe.incr("{t}a").incr("{t}b").get("{t}a").execute() == [2, 1, b"2"]
        pipe.watch("{t}a")
        number = int(pipe.get("{t}a"))
        other.incr("{t}a")
        pipe.multi()
        pipe.set("{t}a", number + 10)
        try:
            pipe.execute()
            raise AssertionError("a transaction ignored a change of a watched key")
        except redis.WatchError:
            pass
    r.transaction(lambda pipe: (pipe.multi(), pipe.incr("{t}a")), "{t}a")
    assert r.get("{t}a") == b"4"


def connections(r, protocol):
    assert r.client_setname("name") and r.client_getname() in ("name", b"name")
    assert r.client_id() > 0
    info = r.info()
    assert info["role"] == "master" and info["redis_mode"] == "standalone"
    assert tuple(int(part) for part in info["redis_version"].split(".")) >= (7, 2)
    assert r.command_count() > 50
    other = client(protocol, db=3)
    other.set("k", "of 3")
    assert r.get("k") != b"of 3" and other.flushdb() and other.dbsize() == 0 and r.exists("k")
    fails("out of range", client(protocol, db=16).get, "k")


def locks(r):
    """Acquires a lock. redis-py releases and extends a lock with a script, so these fail here."""
    lock = r.lock("lock", timeout=100)
    assert lock.acquire(blocking=False) and lock.locked() and lock.owned()
    assert not r.lock("lock", timeout=100).acquire(blocking=False)
    fails("unknown command", lock.release)
    r.delete("lock")
    assert r.lock("lock", timeout=100).acquire(blocking=False)


async def asynchronous(protocol):
    host, port = SERVERS[-1]
    async with redis.asyncio.Redis(host=host, port=int(port), protocol=protocol) as r:
        assert await r.set("async", 0)
        numbers = await asyncio.gather(*(r.incr("async") for _ in range(50)))
        assert sorted(numbers) == list(range(1, 51))
        async with r.pipeline(transaction=True) as pipe:
            assert await pipe.incr("{t}x").delete("{t}x").execute() == [1, 1]
        assert [key async for key in r.scan_iter("asyn?")] == [b"async"]


def main():
    for protocol in (2, 3):
        for at in range(len(SERVERS)):
            r, other = client(protocol, at), client(protocol, at + 1)
            r.flushall()
            strings(r)
            keys(r)
            pipelines(r)
            transactions(r, other)
            connections(r, protocol)
            locks(r)
        asyncio.run(asynchronous(protocol))
    print("passed")


main()
