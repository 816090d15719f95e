"""``accelerate launch -m fastpure.train COMMAND ...``: what ``fastpure train COMMAND ...`` does, on many devices.

A program, not a part of the layer: it stands above the command line that it starts.
"""

import sys

from ..cli.main import main

if __name__ == "__main__":
    sys.argv = [sys.argv[0], "train", *sys.argv[1:]]
    main()
