"""Lets every suite import the helpers beside it."""

import pathlib
import sys

for folder in ("architecture", "e2e"):
    sys.path.insert(0, str(pathlib.Path(__file__).parent / folder))
