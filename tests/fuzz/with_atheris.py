"""Fuzz one target under atheris, which follows the lines that inputs reach.

    pip install atheris && python -m tests.fuzz.with_atheris pickles -max_total_time=600

Options behind the target are libFuzzer's. The first byte of an input chooses the file's form.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["weaklabels", "weaksam"]):
    from tests.fuzz.engine import chosen, corpus, run_one


def main() -> None:
    """Run until libFuzzer's options say so, or an input fails."""
    (target,) = chosen([sys.argv.pop(1)])
    names = [name for name, _ in corpus(target)]
    folder = Path(tempfile.mkdtemp())
    read = target.open(folder / "files")

    def one_input(data: bytes) -> None:
        path = folder / names[data[0] % len(names) if data else 0]
        path.write_bytes(data[1:])
        fault = run_one(read, path)
        path.unlink()
        if fault:
            raise RuntimeError(fault)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
