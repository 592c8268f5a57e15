"""Other clients and this one, side by side, against one stub server.

`python -m benchmarks.peers` runs it; `__main__` measures, `clients` says what is compared.
Each client is a process of its own, in an environment that only the peers live in, so that none
pays for what another imports.
"""
