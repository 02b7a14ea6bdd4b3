"""Increments by a pool of redis-py while a server is killed: HOST:PORT of the servers that live.

A line on standard input ends the increments. Prints the number of acknowledged ones, and the longest time of one in
milliseconds."""

import sys
import threading
import time

import redis

THREADS, KEYS = 8, 30
over = threading.Event()
done, longest, errors = [0] * THREADS, [0.0] * THREADS, []


def work(thread, pool):
    client = redis.Redis(connection_pool=pool)
    number = thread
    try:
        while not over.is_set():
            begin = time.monotonic()
            if number % 3:
                client.incr(f"counter{number % KEYS}")
                done[thread] += 1
            else:
                with client.pipeline(transaction=False) as pipe:
                    for n in range(10):
                        pipe.incr(f"counter{(number + n) % KEYS}")
                    pipe.execute()
                done[thread] += 10
            longest[thread] = max(longest[thread], time.monotonic() - begin)
            number += 1
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")


# redis-py repeats no command here: a repeated INCR would count twice.
retry = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
pools = []
for address in sys.argv[1:]:
    host, port = address.rsplit(":", 1)
    pools.append(redis.ConnectionPool(host=host, port=int(port), retry=retry, protocol=2 + len(pools) % 2))
threads = [threading.Thread(target=work, args=(n, pools[n % len(pools)])) for n in range(THREADS)]
for thread in threads:
    thread.start()
print("started", flush=True)
sys.stdin.readline()
over.set()
for thread in threads:
    thread.join()
assert not errors, errors
total = sum(int(n or 0) for n in redis.Redis(connection_pool=pools[0]).mget([f"counter{n}" for n in range(KEYS)]))
assert total == sum(done), f"{sum(done)} increments were acknowledged, and the sum is {total}"
print(f"passed: {total} increments, the longest took {max(longest) * 1000:.0f} ms")
