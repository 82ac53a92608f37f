"""A process that fills a store, rewrites every record of it, or reads while another one does.

``rotation_worker.py STORE FOLDER RECORDS fill|rewrite|rewrite-and-read|read``: what it has found is
its last line, as JSON. To rewrite is to rotate the keys of an encrypted store; its plain twin reads
every record and writes it again, in batches of the same size. A reader reads until its input ends.
"""

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .own_stores import opener
from .store_worker import Names, Store, Worker

SIZE: Final = 1024
GETS_PER_SECOND: Final = 200
_BATCH: Final = 500
_LEAST_GETS: Final = 2


def rewrite(store: Any, kind: str) -> float:
    """Return the seconds that it takes to write every record anew."""
    begun = time.perf_counter()
    if kind == "plain":
        position = 0
        while page := store.page(position, _BATCH):
            # Other values: SQLite does not write a page on which nothing changes.
            store.insert_many([(name, value[1:] + value[:1]) for _, name, value in page])
            position = page[-1][0]
    else:
        store.rotation().run()
    return time.perf_counter() - begun


def read(store: Store, records: int, stopped: Callable[[], bool]) -> list[float]:
    """Get records by chance, so many a second, and return the seconds that each took."""
    choice, names = random.Random(1), Names("random")  # noqa: S311 - test data
    taken: list[float] = []
    due = time.perf_counter()
    while not stopped() or len(taken) < _LEAST_GETS:
        (name,) = names.of(range((number := choice.randrange(records)), number + 1))
        due += 1 / GETS_PER_SECOND
        time.sleep(max(due - time.perf_counter(), 0))
        begun = time.perf_counter()
        if store.get(name) is None:
            raise RuntimeError("the store has lost a record")
        taken.append(time.perf_counter() - begun)
    return taken


def _stop_at_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main(kind: str, folder: Path, records: int, what: str) -> object:
    """Do one thing, and return what is to be told."""
    open_store = opener(kind)
    if what == "fill":
        folder.mkdir(parents=True)
        worker = Worker(open_store, folder, "random", SIZE, 0)
        worker.fill(records, "single")
        worker.flush()
        worker.finish()
        return None
    store = open_store(folder)
    stop = threading.Event()
    taken: list[float] = []
    seconds = None
    if what == "read":
        print("ready", flush=True)
        threading.Thread(target=_stop_at_end_of_input, args=(stop,)).start()
        taken = read(store, records, stop.is_set)
    elif what == "rewrite":
        seconds = rewrite(store, kind)
    else:
        reader = threading.Thread(target=lambda: taken.extend(read(store, records, stop.is_set)))
        reader.start()
        try:
            seconds = rewrite(store, kind)
        finally:
            stop.set()
            reader.join()
    store.close()
    return {"seconds": seconds, "taken": taken}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
