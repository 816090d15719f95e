"""``python -m fastpure``: the command line, for launchers that want a module.

``accelerate launch -m fastpure train addt ...`` trains on many devices.
"""

from .cli.main import main

if __name__ == "__main__":
    main()
