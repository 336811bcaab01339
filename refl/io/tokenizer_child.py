"""A tokenizer at work in a process of its own, for `tokenizer_process`: run as a script, with
nothing imported but the tokenizers library.

Standard input: the length of tokenizer.json in eight bytes, its bytes, then a line of JSON for each
question, ["encode", text, whether special tokens are added] or ["decode", ids]. Standard output: a
line of JSON for the file and for each question, ["ok", answer] or ["error", why].
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress
from typing import Any

MOST = 1 << 22
"""Ids of a text, or characters."""

STACK = 256 << 10
"""Bytes for the thread that works: what ends well here does so in any thread of the caller."""


def limit(memory: int) -> None:
    """At most so many bytes of address space, and no core file. Where the system has limits."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def allow(seconds: int) -> None:
    """So many seconds of work from now on: whoever asked may be gone by then."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def answer(question: list[Any], tokenizer: Any) -> Any:
    kind, *rest = question
    if kind == "encoding":
        text, pair, special = rest
        e = tokenizer.encode(text, pair, add_special_tokens=special)
        if len(e.ids) > MOST:
            raise ValueError(f"it comes to {len(e.ids)} of them, expected at most {MOST}")
        return [e.ids, e.type_ids, e.sequence_ids, e.offsets]
    if kind == "encode":
        text, special = rest
        found = tokenizer.encode(text, add_special_tokens=special).ids
    else:
        found = tokenizer.decode(*rest, skip_special_tokens=True)
    if len(found) > MOST:
        raise ValueError(f"it comes to {len(found)} of them, expected at most {MOST}")
    return found


def say(kind: str, what: Any) -> None:
    sys.stdout.buffer.write(json.dumps([kind, what]).encode() + b"\n")
    sys.stdout.buffer.flush()


def attempt(work: Any) -> Any:
    """What `work` returns, said; an error of any kind, a Rust panic included, is said too."""
    allow(20)
    try:
        found = work()
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        say("error", f"{type(error).__name__}: {error}"[:1000])
        return None
    return found


def serve(data: bytes) -> None:
    from tokenizers import Tokenizer

    if b'"Unigram"' in data:  # its trie is dropped by recursion, as deep as its longest entry
        with suppress(BaseException):
            Tokenizer.from_buffer(data)
    tokenizer = attempt(lambda: Tokenizer.from_buffer(data))
    if tokenizer is None:
        return
    tokenizer.no_truncation()
    tokenizer.no_padding()
    say("ok", None)
    for line in sys.stdin.buffer:
        found = attempt(lambda line=line: answer(json.loads(line), tokenizer))
        if found is not None:
            say("ok", found)


def main() -> None:
    sys.path.insert(0, sys.argv[1])  # where the tokenizers library lies
    limit(int(sys.argv[2]))
    length = int.from_bytes(sys.stdin.buffer.read(8), "little")
    data = sys.stdin.buffer.read(length)
    threading.stack_size(STACK)
    work = threading.Thread(target=serve, args=(data,))
    work.start()
    work.join()


if __name__ == "__main__":
    main()
