"""`make mutants`: which wrong lines of the pure modules no test would notice.

`_plan` decides and is pure: which modules, what is made of a line, what is counted.
`__main__` starts processes, and `_child` is what runs in one: the tests against one mutant.
`equivalent.toml` lists the mutants that no test can tell from the original.
"""
