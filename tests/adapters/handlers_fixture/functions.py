"""What users write, and what goes wrong in it: called by test_function.py."""
# ruff: noqa: ASYNC230, D101, T201 - a user's file: it blocks, prints and explains nothing

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time


def nothing(event):
    return None


def record(event):
    with open("calls.txt", "a") as calls:
        calls.write(f"{event['data']['n']} {os.getpid()}\n")


def begins_and_ends(event):
    with open("calls.txt", "a", buffering=1) as calls:
        calls.write(f"begin {event.data['n']}\n")
        time.sleep(0.0002)
        calls.write(f"end {event.data['n']}\n")


async def record_async(event, context):
    await asyncio.sleep(0)
    with open("calls.txt", "a") as calls:
        calls.write(f"{event.data['n']} {context.handler} {context.attempt} {context.remaining_seconds() > 1}\n")


def together(events):
    if any(event.data["n"] == 13 for event in events):
        raise ValueError("thirteen")
    return {"type": "test.sum", "data": sum(event.data["n"] for event in events)}


def derive(event, context):
    if event.data["n"] == 0:
        return {"type": "test.copy", "subject": event.subject, "data": event.data}
    return [dict(event, type="test.a"), {"type": "test.b", "partitionkey": "own"}]


def garbage(event):
    return [object(), "text", {"data": 1}, float("nan"), {"type": "test.x", "data": {1, 2}}][event.data["n"]]


def no_event(event):
    return {"type": "test.x", "subject": 5}


class Teapot(Exception):
    pass


def raises(event):
    if event.data["n"] == 1:
        raise Teapot("short\nand stout")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")


def raises_unprintable(event):
    raise Unprintable


async def raises_cancelled(event):
    raise asyncio.CancelledError


def exits(event):
    print("last words")
    if event.data["n"] == 1:
        sys.exit(3)


def exits_but_a_thread_stays(event):
    threading.Thread(target=time.sleep, args=(60,)).start()
    sys.exit("enough")


def exits_hard(event):
    if event.data["n"] == 1:
        os._exit(3)


def crashes(event):
    if event.data["n"] == 37:
        os.kill(os.getpid(), signal.SIGSEGV)
    record(event)


def hangs(event):
    if event.data["n"] == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)


async def hangs_async(event):
    await asyncio.sleep(60)


def sleeps(event):
    time.sleep(event.data["n"])


def prints(event):
    print("out", event.data["n"])
    if event.data["n"] == 1:
        print("err", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo from a child"], check=True)


def prints_binary(event):
    sys.stdout.buffer.write(bytes(range(256)) + b"\n")
    os.write(2, b"x" * 1_000_000)


def floods(event):
    for _ in range(200_000):
        print("y")


def prints_later(event):
    threading.Timer(0.1, print, ["after the event"]).start()


def spawns(event):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open("child.txt", "w") as file:
        file.write(str(child.pid))
    if event.data["n"] == 1:
        time.sleep(60)


def forks(event):
    if os.fork() == 0:
        return {"type": "test.child"}
    os.wait()
    return {"type": "test.parent"}


def closes_everything(event):
    os.closerange(3, 256)


def closes_output(event):
    sys.stdout.close()


def environment(event):
    return {"type": "test.environment", "data": {"env": dict(os.environ), "executable": sys.executable}}


def reads(event):
    with event.open() as file:
        return {"type": "test.content", "data": file.read().decode()}


def no_argument():
    return None


def too_many(event, context, more):
    return None
