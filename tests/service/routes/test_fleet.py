"""The list of live workers over HTTP."""

import httpx
from redis import Redis

from service.contract.device import Device
from service.contract.fleet import Fleet, LiveWorker


def test_live_workers_are_listed_with_their_devices(http: httpx.Client, redis: Redis) -> None:
    assert http.get("/v1/fleet").json() == {"data": []}
    device = Device(kind="cuda", name="NVIDIA H200", total_bytes=150_000_000_000)
    Fleet(redis).announce(LiveWorker(name="one", device=device), ttl_s=30)
    assert http.get("/v1/fleet").json() == {
        "data": [
            {
                "name": "one",
                "device": {
                    "kind": "cuda",
                    "name": "NVIDIA H200",
                    "total_bytes": 150_000_000_000,
                },
            }
        ]
    }
