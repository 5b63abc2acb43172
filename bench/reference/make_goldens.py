"""Writes tests/golden/model/<architecture>-<preset>.txt: a text's tokens, then the reference's logits
after its last token, one number a line. Run it after changing the presets of tests/support/tiny_model.

    python bench/reference/make_goldens.py build/release/bin/make-tiny-model
"""

import pathlib
import subprocess
import sys
import tempfile

from llama_f64 import Gguf, Llama

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENS = [1, 120, 118, 104, 117, 13, 75, 260, 274, 2, 13, 1]


def presets(tool):
    listing = subprocess.run([tool], capture_output=True, text=True, check=False).stderr
    return [line.strip() for line in listing.splitlines() if line.startswith("  ")]


def main(tool):
    folder = ROOT / "tests/golden/model"
    folder.mkdir(parents=True, exist_ok=True)
    for preset in presets(tool):
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            subprocess.run([tool, f"--preset={preset}", f"--out={file.name}"], check=True)
            gguf = Gguf(file.name)
            last = Llama(gguf).logits(TOKENS)[-1]
        lines = [" ".join(map(str, TOKENS))] + [f"{value:.7g}" for value in last]
        name = f"{gguf.keys['general.architecture']}-{preset}.txt"
        (folder / name).write_text("\n".join(lines) + "\n", encoding="ascii")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1])
