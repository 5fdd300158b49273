# SPDX-License-Identifier: Apache-2.0
"""Loop devices: a file as a block device, for kernels whose EROFS does not take files.

Owns the ioctls. Does not mount. Invariant: a device made here is read-only, and ends by itself with
its last user, so nothing of it is left over.

Facts about loop devices (Linux 5.8 to 6.18; tests/privileged/test_device_flat.py shows them):

* The file must have its size: for one over FUSE, somebody has to ask for its attributes before.
* With direct I/O pages are cached once, above, and reads do not wait for each other if the file's
  own direct I/O is asynchronous. Each read of a small file is a request of its own then.
* Without direct I/O the file reads ahead, across what the files above are, and its page cache
  answers. But one thread does one read after the other.
* Before Linux 6.15 such a read succeeds with zeros if it is across two pages of the file, one of
  them cached and the other an error (lo_read_simple; stable kernels may have the commit that took
  it away, "loop: stop using vfs_iter_{read,write} for buffered I/O"). The loop goes page by page of
  the reader's memory, so that cannot be where both are aligned alike. EROFS wants O_DIRECT aligned
  to the blocks of the device, which are pages here; Linux 6.13 and 6.14 let memory be
  (fs/erofs/data.c: erofs_file_read_iter).
* A finished request is completed by a thread of its own (ksoftirqd) on the processor that did it,
  which then wakes the reader elsewhere. With ``rq_affinity`` 2 the reader's processor completes it:
  a switch less for each (block/blk-mq.c: blk_mq_complete_need_ipi). The setting outlives the
  device: the next one with its number has it. 1 is the kernel's own.
* A change between the two waits, deaf to signals, for reads in flight, and lets no other begin.
* A device has at most 128 reads in flight; further ones wait.
* LOOP_CHANGE_FD puts another file of the same size in place of one that has failed, under a mount.
* The number of a free device is only a hint: somebody else may be faster.

Source: include/uapi/linux/loop.h, drivers/block/loop.c, loop(4).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import sys

CONTROL = "/dev/loop-control"
MAJOR = 7
_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_CHANGE_FD = 0x4C06
_SET_DIRECT_IO = 0x4C08
_GET_STATUS64 = 0x4C05
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_BLOCK_BYTES = 4096  # a page: see above
_ZEROS = ("6.13.", "6.14.")  # releases that may read zeros through the cache
_MOST_ATTEMPTS = 64
# struct loop_info64: device, inode, rdevice, offset, size limit, number, encryption type and key
# size, flags, file name, crypt name, key, init
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: fd, block size, struct loop_info64, reserved
_CONFIG = struct.Struct(f"=II{_INFO.size}s64x")
NAME = b"firstread"  # of the devices made here, for those who list loop devices


def attach_loop(file: int) -> tuple[int, str]:
    """Make a loop device of a file, which it reads directly.

    Args:
        file: descriptor, for reading.

    Returns:
        a descriptor of the device, and its path. The device ends with the last descriptor or mount.

    Raises:
        OSError: with the path of what is missing, as far as it is known.
    """
    flags = _READ_ONLY | _AUTOCLEAR | _DIRECT_IO
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, NAME, b"", b"", 0, 0)
    config = _CONFIG.pack(file, _BLOCK_BYTES, info)
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_MOST_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as exc:
                os.close(device)
                if exc.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "every loop device is taken", CONTROL)


def complete_at_reader(number: int) -> None:
    """Have the processor of a reader complete its reads, unless somebody has chosen otherwise."""
    _change_affinity(number, "1", "2")


def give_back(number: int) -> None:
    """Undo `complete_at_reader`: the next who takes the device would have it. Once it has ended."""
    if not os.path.exists(f"{_sys(number)}/loop"):  # else the next has it
        _change_affinity(number, "2", "1")


def _change_affinity(number: int, before: str, after: str) -> None:
    with contextlib.suppress(OSError), open(f"{_sys(number)}/queue/rq_affinity", "r+") as file:
        if file.read().strip() == before:
            file.seek(0)
            file.write(after)


def change_file(number: int, file: int) -> None:
    """Put another file in place of the one that a loop device has.

    Args:
        number: of the device.
        file: descriptor of one with the same content, for reading.

    Raises:
        OSError: it is no loop device any more, or the file has another size.
    """
    device = os.open(_path(number), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _CHANGE_FD, file)
    finally:
        os.close(device)


def may_cache() -> bool:
    """Return whether a read through the page cache of a file gets its bytes, or fails."""
    return not os.uname().release.startswith(_ZEROS)


def is_cached(number: int) -> bool:
    """Return whether a loop device reads through the page cache of its file.

    Raises:
        OSError: it is no loop device any more.
    """
    with open(f"{_sys(number)}/loop/dio") as file:
        return file.read().strip() == "0"


def set_cached(number: int, *, cached: bool) -> None:
    """Have a loop device of `attach_loop` read through the page cache of its file, or directly.

    The caller may be killed meanwhile: a child waits for the reads in flight in its place, which
    the next process may have to answer.

    Args:
        number: of the device.
        cached: through the page cache.

    Raises:
        OSError: it is no such device any more, or there can be no child now.
    """
    command = [sys.executable, "-I", "-S", __file__, _path(number), str(int(not cached))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(errno.EIO, said or f"the child ended with {done.returncode}")


def _set_direct(path: str, direct: int) -> None:
    device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    status = fcntl.ioctl(device, _GET_STATUS64, bytes(_INFO.size))
    if _INFO.unpack(status)[9].rstrip(b"\0") != NAME:
        raise OSError(errno.ENXIO, "it is somebody else's by now", path)
    fcntl.ioctl(device, _SET_DIRECT_IO, direct)


def _path(number: int) -> str:
    return f"/dev/{os.path.basename(os.readlink(_sys(number)))}"


def _sys(number: int) -> str:
    return f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"


if __name__ == "__main__":
    _set_direct(sys.argv[1], int(sys.argv[2]))
