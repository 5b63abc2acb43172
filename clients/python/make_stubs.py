"""Generates Python stubs of proto/ into build/python (or the folder given) and prints that folder.

Nothing is done when they are newer than the protos.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"


def make(out=ROOT / "build" / "python"):
    out = pathlib.Path(out)
    protos = sorted(PROTO.glob("*/v1/*.proto"))
    stamp = out / "stamp"
    newest = max(p.stat().st_mtime for p in protos)
    if not stamp.exists() or stamp.stat().st_mtime < newest:
        from grpc_tools import protoc

        out.mkdir(parents=True, exist_ok=True)
        google = pathlib.Path(protoc.__file__).parent / "_proto"
        code = protoc.main(["protoc", f"-Iloopserve={PROTO}", f"-I{google}", f"--python_out={out}",
                            f"--grpc_python_out={out}", *map(str, protos)])
        if code != 0:
            raise SystemExit(f"protoc failed with {code}")
        stamp.touch()
    return out


if __name__ == "__main__":
    print(make(*sys.argv[1:2]))
