"""Caches and sessions of Django, Flask and cachelib: HOST:PORT of each server, with --redis-multi ordered."""

import sys

import cachelib
import django.conf
import flask
import flask_caching
import flask_session
import redis

SERVERS = sys.argv[1:]
URL = f"redis://{SERVERS[0]}/2"
HOST, PORT = SERVERS[1].rsplit(":", 1)


def use_django():
    django.conf.settings.configure(
        CACHES={
            "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": URL},
            "package": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": URL, "KEY_PREFIX": "package"},
        },
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
    )
    django.setup()
    from django.contrib.sessions.backends.cache import SessionStore
    from django.core.cache import caches

    for name in ("default", "package"):
        cache = caches[name]
        cache.clear()
        assert cache.add("k", {"a": [1, None, "ü"]}, 100) and not cache.add("k", 0)
        assert cache.get("k") == {"a": [1, None, "ü"]}
        cache.set("n", 1)
        assert cache.incr("n") == 2 and cache.decr("n") == 1 and cache.touch("n", 50)
        # Both send set_many as one transaction, with keys of several shards. The cluster executes them in order.
        assert cache.set_many({f"m{n}": n for n in range(30)}, 100) in ([], None)
        assert cache.get_many([f"m{n}" for n in range(31)]) == {f"m{n}": n for n in range(30)}
        assert cache.get_or_set("o", lambda: 7) == 7 and cache.has_key("o")
        cache.delete_many(["m0", "m1"])
        assert cache.delete("k") and cache.get("k", "none") == "none"
    cache = caches["package"]
    assert 45 < cache.ttl("n") <= 50 and cache.persist("n") and cache.ttl("n") is None
    assert len(cache.keys("m*")) == 28 and cache.delete_pattern("m*") == 28
    session = SessionStore()
    session["user"] = 7
    session.save()
    assert SessionStore(session.session_key)["user"] == 7
    session.flush()
    assert not SessionStore(session.session_key).exists(session.session_key)


def use_flask():
    app = flask.Flask("app")
    app.config.update(
        CACHE_TYPE="RedisCache", CACHE_REDIS_HOST=HOST, CACHE_REDIS_PORT=int(PORT), CACHE_REDIS_DB=4,
        SESSION_TYPE="redis", SESSION_REDIS=redis.Redis(host=HOST, port=int(PORT), db=5),
    )
    cache = flask_caching.Cache(app)
    flask_session.Session(app)
    calls = []

    @app.route("/cached")
    @cache.cached(timeout=100)
    def cached():
        calls.append(1)
        return "cached"

    @cache.memoize(100)
    def square(number):
        calls.append(number)
        return number * number

    @app.route("/visits")
    def visits():
        flask.session["visits"] = flask.session.get("visits", 0) + 1
        return str(flask.session["visits"])

    with app.app_context():
        cache.clear()
        assert cache.set_many({"a": 1, "b": 2}) and cache.get_many("a", "b", "c") == [1, 2, None]
        assert [square(5), square(5), calls] == [25, 25, [5]]
        cache.delete_memoized(square)
        assert square(5) == 25 and calls == [5, 5]
    browser, other = app.test_client(), app.test_client()
    assert [browser.get("/cached").text for _ in range(2)] == ["cached"] * 2 and len(calls) == 3
    assert [browser.get("/visits").text for _ in range(3)] == ["1", "2", "3"]
    assert other.get("/visits").text == "1"


def use_cachelib():
    cache = cachelib.RedisCache(host=HOST, port=int(PORT), db=6, key_prefix="lib", default_timeout=100)
    cache.clear()
    assert cache.set("k", [1, 2]) and cache.get("k") == [1, 2] and cache.has("k")
    assert cache.add("k", 0) is False and cache.inc("n", 3) == 3 and cache.dec("n") == 2
    assert cache.set_many({"a": 1, "b": "x"}) and cache.get_dict("a", "b", "c") == {"a": 1, "b": "x", "c": None}
    assert cache.delete_many("a", "b") and cache.delete("k") and cache.get("k") is None


use_django()
use_flask()
use_cachelib()
print("passed")
