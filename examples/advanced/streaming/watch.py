"""The most memory of its own that this process held during a piece of work."""

import threading


def own_bytes():
    """Anonymous and shared memory; pages of mapped files can go at any time."""
    held = 0
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(("RssAnon:", "RssShmem:")):
                held += 1024 * int(line.split()[1])
    return held


class Peak:
    """Looks every few milliseconds while it is entered."""

    def __enter__(self):
        self.before = self.most = own_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self

    def look(self):
        while not self.done.wait(0.005):
            self.most = max(self.most, own_bytes())

    def __exit__(self, *exception):
        self.done.set()
        self.thread.join()
        self.most = max(self.most, own_bytes())
        self.bytes = self.most - self.before
