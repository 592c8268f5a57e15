"""`make lanes`: the tests on the versions and Pythons that the package declares.

A lane is one run of the tests against the built wheel: on one Python, with the lowest or the newest
versions of what is needed, perhaps with eager tasks or without what only POSIX has. `_plan.py`
decides which lanes there are and what each of them runs; `__main__.py` finds interpreters, builds,
installs and runs. `plugin.py` and `bare/` go into the tests' own processes.
"""
