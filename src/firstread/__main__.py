# SPDX-License-Identifier: Apache-2.0
"""The ``firstread`` command, and ``python -m firstread``, from its first instruction.

Owns what Ctrl-C does until the verb is loaded: it ends the process. Python would raise
KeyboardInterrupt in a module that is being imported, and print where. Owns as well what signals a
caller may have left ignored, which execve(2) keeps.
"""

import signal  # nothing else: each import takes a millisecond, in which Ctrl-C is not ours


def main() -> None:
    """Run the command; see `firstread.cli.main`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by the caller
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # then no child has an exit code
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    from firstread.cli.main import main as run  # noqa: PLC0415 - Ctrl-C may come meanwhile

    run()


if __name__ == "__main__":
    main()
