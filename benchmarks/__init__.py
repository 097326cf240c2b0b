"""Side by side with the peers, in one run on one machine: `python -m benchmarks` writes `benchmarks/results/`.

A benchmark is one file with a `SUITE` of measurements (see `runs`), named in `__main__.SUITES`. Its peers' work is in `peer`,
or in a file of its own beside it, and runs in a process of the peers' environment (`environment`), whose pins are
`peers.txt`. `harness` lets the two take turns and says how disturbed they were; `report` writes what was found.
"""
