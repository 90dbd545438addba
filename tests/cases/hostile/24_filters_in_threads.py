"""Filters parsed in threads, while cyclic garbage with finalizers is collected. Right: no SystemError ("AST constructor recursion depth
mismatch" of CPython 3.11)."""
from common import *
import threading, collections, time, gc
from whet.data.filters import parse
sys.setswitchinterval(1e-6); gc.set_threshold(20)
class Cycle:
    def __init__(self): self.me = self
    def __del__(self): time.sleep(0)
c = collections.Counter()
def go(seed):
    r = random.Random(seed); end = time.time() + 25
    while time.time() < end:
        w = " and ".join(f'(not (f{r.randrange(50)} == {r.randrange(99)} or g in ["{r.random()}", 2]))' for _ in range(r.randrange(1, 12)))
        Cycle()
        try: parse(w); c["ok"] += 1
        except BaseException as e: c[type(e).__name__ + ": " + str(e)[:60]] += 1
ts = [threading.Thread(target=go, args=(i,)) for i in range(4)]
[t.start() for t in ts]; [t.join() for t in ts]
(fault if len(c) > 1 else ok)(dict(c), sys.version.split()[0])
