"""What the tests of faults run in processes of their own, to be killed or to compete.

python fault_child.py enrol|fit|ask STORE PHOTOS|PHOTO|PHOTO
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def _become(uid: int) -> None:
    """Another user from here on; what is imported late is imported before, for that user may not read it."""
    from fake_stores import fake_store, herd, taken_in

    from reid.pipeline import identify, query_of

    "".encode("cp437")  # which `zipfile` looks up when it meets the first archive
    with TemporaryDirectory() as folder, fake_store(Path(folder) / "s") as store:
        rows = herd(Path(folder) / "p", 3, 2)
        taken_in(store, rows)
        identify(store, [query_of([rows[0].path])])
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def main(what: str, root: Path, where: Path) -> None:
    """Print a line for everything that is done for good."""
    from fake_stores import reopened, seen, taken_in

    from reid import enrol as enrolling
    from reid import fit, whiten, withheld
    from reid.errors import ReidError
    from reid.pipeline import identify, query_of

    enrolling.BATCH = 4
    if "REID_TEST_UID" in os.environ:
        _become(int(os.environ["REID_TEST_UID"]))
    store = reopened(root)
    print("ready", flush=True)
    if what == "enrol":
        rows = [seen(path, path.name.partition("-")[0]) for path in sorted(where.iterdir())]
        taken_in(store, rows, progress=lambda *_: print(store.catalogue.counts().photos, flush=True))
        print("done", flush=True)
    elif what == "fit":
        _, vectors = withheld.gathered(store.catalogue, store.fingerprint)
        for turn in range(10_000):
            fit.fit(store)
            store.rebuild(whiten.fit(vectors, least=2, dimensions=8 + turn % 5))
            print(turn, flush=True)
    elif what == "ask":
        try:
            while True:
                [answer] = identify(reopened(root), [query_of([where])])
                print(answer.status, *(one.label for one in answer.labels[:1]), flush=True)
                if sys.stdin.readline() == "stop\n":
                    return
        except ReidError as error:
            print("refused", error, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
