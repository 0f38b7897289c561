"""The command `llmlab`. Each subcommand is a file of this package; nothing heavy is imported before it is chosen."""

from __future__ import annotations

import os
import sys

from llmlab.config import did_you_mean

COMMANDS = {
    "train": "train an experiment, or go on with its run",
    "eval": "score a run on its whole validation split",
    "generate": "continue or classify prompts with the model of a run or a checkpoint",
    "chat": "talk with a model in the terminal",
    "embed": "turn texts into vectors, search a folder of texts",
    "describe": "print an experiment: config, parameters, sharding, FLOPs, memory",
    "plan": "compile an experiment for a pod that is not there: memory, messages, time, cost",
    "report": "write the report of a study, check it against its rows, or follow it live",
    "runs": "list runs and studies",
    "check": "run the contract of parts on an experiment's model",
    "coordinates": "check that activations keep their size with width, in muP",
    "bench": "time training, decoding and kernels on this machine, and check the kernels",
    "study": "run an ablation: matched arms, paired seeds, a verdict",
}
# Exit codes that a scheduler can act on; docs/checkpoints.md has the table.
EXIT_DATA, EXIT_DIVERGED, EXIT_MACHINE, EXIT_STOPPED, EXIT_CONFIG = 65, 70, 75, 76, 78


def main(arguments: list[str] | None = None) -> None:
    """The entry point; ends the process with an exit code of the table in docs/checkpoints.md."""
    own = arguments is None
    arguments = sys.argv[1:] if own else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        sys.exit(0)
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"llmlab {version('llmlab')}")
        sys.exit(0)
    if arguments[0] not in COMMANDS:
        print(f"llmlab has no command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}", file=sys.stderr)
        print(usage(), file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    if own:
        use_huge_pages()
    sys.exit(run(arguments[0], arguments[1:]))


def run(command: str, arguments: list[str]) -> int:
    """Runs a subcommand; what a user can mend is one message and an exit code, not a traceback."""
    import importlib

    try:
        return importlib.import_module(f"llmlab.cli.{command}").main(arguments)
    except KeyboardInterrupt:
        print(f"llmlab {command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, RuntimeError) as error:
        if os.environ.get("LLMLAB_TRACEBACK"):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"llmlab {command}: {text}\n(LLMLAB_TRACEBACK=1 shows where)", file=sys.stderr)
        machine = isinstance(error, OSError | RuntimeError) and not isinstance(error, FileNotFoundError)
        return getattr(error, "exit_code", EXIT_MACHINE if machine else EXIT_CONFIG)


def usage() -> str:
    lines = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return (
        f"usage: llmlab COMMAND ...\n\n{lines}\n\n"
        "`llmlab COMMAND --help` tells more; `llmlab train EXPERIMENT --help` lists every leaf of an experiment.\n"
        "On CPU the command starts itself anew once, with huge pages for the C library's memory\n"
        "(GLIBC_TUNABLES=glibc.malloc.hugetlb=1): training is faster. LLMLAB_HUGE_PAGES=0 leaves that out."
    )


def use_huge_pages() -> None:
    """Starts the process anew with huge pages, which glibc reads only at the start: on Linux, without accelerators."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    wanted = os.environ.get("LLMLAB_HUGE_PAGES", "1") != "0" and sys.platform == "linux"
    if not wanted or "glibc.malloc.hugetlb" in tunables or not on_cpu():
        return
    setting = "glibc.malloc.hugetlb=1"
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:{setting}" if tunables else setting
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def on_cpu() -> bool:
    """Whether jax will run on CPU, as far as can be told without importing it."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return asked.split(",")[0] == "cpu"
    return not any(
        os.path.exists(path) for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
    )
