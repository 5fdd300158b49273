# SPDX-License-Identifier: Apache-2.0
"""Loop devices: a file as a block device, for kernels whose EROFS does not take files.

Owns the ioctls. Does not mount. Invariant: a device made here is read-only, and ends by itself with
its last user, so nothing of it is left over.

Facts about loop devices (Linux 5.8 to 6.18; tests/privileged/test_device_flat.py shows them):

* The file must have its size: for one over FUSE, somebody has to ask for its attributes before.
* With direct I/O pages are cached once, above, and reads do not wait for each other if the file's
  own direct I/O is asynchronous. Without it one thread does one read after the other.
* A device has at most 128 reads in flight; further ones wait.
* LOOP_CHANGE_FD puts another file of the same size in place of one that has failed, under a mount.
* The number of a free device is only a hint: somebody else may be faster.

Source: include/uapi/linux/loop.h, drivers/block/loop.c, loop(4).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

CONTROL = "/dev/loop-control"
MAJOR = 7
_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_CHANGE_FD = 0x4C06
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_BLOCK_BYTES = 512  # the alignment that O_DIRECT asks for
_MOST_ATTEMPTS = 64
# struct loop_config: fd, block size; then struct loop_info64: device, inode, rdevice, offset, size
# limit, number, encryption type and key size, flags, file name, crypt name, key, init; reserved
_CONFIG = struct.Struct("=II5Q4I64s64s32s2Q64x")


def attach_loop(file: int, name: bytes) -> tuple[int, str]:
    """Make a loop device of a file.

    Args:
        file: descriptor, for reading.
        name: for those who list loop devices.

    Returns:
        a descriptor of the device, and its path. The device ends with the last descriptor or mount.

    Raises:
        OSError: with the path of what is missing, as far as it is known.
    """
    nothing = (0, 0, 0, 0, 0)
    flags = _READ_ONLY | _AUTOCLEAR | _DIRECT_IO
    config = _CONFIG.pack(file, _BLOCK_BYTES, *nothing, 0, 0, 0, flags, name[:63], b"", b"", 0, 0)
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


def _path(number: int) -> str:
    name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
    return f"/dev/{name}"
