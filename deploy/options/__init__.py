"""Writes down the table of options where it cannot be imported: `python -m deploy.options`, or `make options`.

Made whole: the fields of client, command line and gateway. Between marks BEGIN and END: the inputs of the config.pbtxt
files, the tables of the docs. tests/repo/test_option_table.py finds what is out of date.
"""
