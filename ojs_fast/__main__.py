"""The command `ojs-fast`, as `python -m ojs_fast`."""

if __name__ == "__main__":
    from ojs_fast.cli.main import main  # not above: each worker process runs this module too, by another name

    main(prog_name="ojs-fast")
