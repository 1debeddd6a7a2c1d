"""The command `ojs-fast`, as `python -m ojs_fast`."""

from ojs_fast.cli.main import main

if __name__ == "__main__":
    main(prog_name="ojs-fast")
