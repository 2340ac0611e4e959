"""The table of keys is what Redis holds after a life with everything in it."""

import re
import time

from redis import Redis

from service.contract import keys
from service.contract.device import Device
from service.contract.files import Files
from service.contract.fleet import Fleet, LiveWorker
from service.contract.job import JobStatus
from service.contract.models import Models
from service.contract.spec import ComparisonOptions
from service.contract.store import Store
from tests.service.contract.support import (
    EVENT,
    checkpoint,
    file_record,
    model_record,
    queued,
    record,
    running,
)
from tests.support.measured import LEDGER, RESOLVED, SCORED


def table() -> dict[str, str]:
    """Pattern to type, from the module's docstring."""
    row = re.compile(r"^    (\S+) +(HASH|STRING|STREAM|ZSET|SET) ", re.MULTILINE)
    return {
        re.sub(r"{\w+}", "[^ ]+", name): type_.lower() for name, type_ in row.findall(keys.__doc__)
    }


def test_the_table_is_complete_and_true(store: Store, redis: Redis) -> None:
    store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT)
    queued(store, comparison=ComparisonOptions())
    claim = running(store)
    store.add_checkpoint(claim, *checkpoint(claim, 1), keep=1)
    ended = running(store)
    store.update(ended, resolved=RESOLVED, estimate=SCORED, memory=LEDGER)
    store.transition(ended.job_id, JobStatus.SUCCEEDED, EVENT, token=ended.token)
    Files(redis).add(file_record(expires_at=int(time.time()) + 60))
    Models(redis).add(model_record("ft:adapter", kind="lora"))
    device = Device(kind="cpu", name="cpu", total_bytes=1)
    Fleet(redis).announce(LiveWorker(name="one", device=device), ttl_s=60)

    held = {key: redis.type(key) for key in redis.scan_iter()}
    seen = set()
    for key, type_ in held.items():
        rows = [row for row in table() if re.fullmatch(row, key)]
        assert len(rows) == 1, key
        assert table()[rows[0]] == type_, key
        seen.add(rows[0])
    assert seen == set(table())
