"""Offsets and flags shared by the pool's native code (`pool.py`) and the code that starts it (`driver.py`).

The control block: words that many threads write stand on cache lines of their own.
"""

GENERATION = 0  # one more for every list; its low half is the futex word
ARRIVED = 64  # threads that reached the current barrier or the end
SLEEPERS = 128
LIST = 192  # address of the commands
COUNT = 200  # how many; negative: the workers end
TEAM = 208  # threads, the caller included
SYSCALL = 216  # address of libc's syscall()
FUTEX = 224  # system call numbers of this machine
YIELD = 232
SPIN = 240  # iterations of waiting before giving the core away
BYTES = 256

# a command is three words: kernel address, argument block address, flags
SYNC = 1  # all threads meet after it
SERIAL = 2  # thread 0 runs it alone
