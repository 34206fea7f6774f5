"""Start the web UI: ``python app.py [--gallery DIR] [--pack NAME] [--demo] [--port 7860] ...``.

The same as ``facerec app``; see ``python app.py --help``.
"""

import sys

from facerec.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "app")
    main()
